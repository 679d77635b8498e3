"""The adversarial phase's opponents: two discriminators, a perceptual term, and a watch over the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nvpstore.upscaling.batches import ClipBatch
from nvpstore.upscaling.discriminators import (
    Discriminator,
    FeatureSpace,
    Pairs,
    PixelSpace,
    augmented,
    mismatched,
)
from nvpstore.upscaling.features import FrozenFeatures, distance, frozen
from nvpstore.upscaling.flow import enlarged, warp
from nvpstore.upscaling.losses import hinge_for_discriminator, hinge_for_generator
from nvpstore.upscaling.net import Upscaler

FEATURES = "efficientnet-lite0"
WATCHED = 50  # steps over which the loss is followed
WORST = 3.0  # times what it was at first: beyond that, training has diverged


class Diverged(Exception):
    """The loss is not finite, or far above what it was."""


class Adversaries:
    """Discriminators in the upscaler's own feature space and in that of pixels, with their optimiser.

    `weights` of the two in the generator's loss; 0 leaves one out.
    """

    def __init__(
        self,
        net: Upscaler,
        *,
        weights: tuple[float, float],
        perceptual_weight: float,
        learning_rate: float,
        device: str,
    ) -> None:
        self.features: FrozenFeatures = frozen(FEATURES, device)
        self.perceptual_weight = perceptual_weight
        spaces: tuple[FeatureSpace | PixelSpace, ...] = (FeatureSpace(net), PixelSpace(self.features))
        self.rivals = [
            (weight, Discriminator(space).to(device))
            for weight, space in zip(weights, spaces, strict=True)
            if weight
        ]
        trained = [p for _, rival in self.rivals for p in rival.trained()]
        self.optimiser = torch.optim.Adam(trained, lr=learning_rate, betas=(0.5, 0.99)) if trained else None
        self.first = self.recent = math.nan

    def generator_loss(
        self, pictures: Sequence[Tensor], batch: ClipBatch, ramp: float, chance: torch.Generator
    ) -> Tensor:
        """What is added to the generator's loss; the discriminators take a step of their own first."""
        at = 1 + int(torch.randint(len(pictures) - 1, (), generator=chance))
        fake, real = pair(pictures, batch, at), pair(batch.sharp, batch, at)
        self._train_rivals(real, fake, chance)
        near = distance(self.features(fake.frames), self.features(real.frames))
        loss = self.perceptual_weight * near
        shown = augmented(fake, chance)
        for weight, rival in self.rivals:
            rival.requires_grad_(False)
            scores = rival(shown.frames, shown.before)
            loss = loss + ramp * weight * hinge_for_generator([*scores.detail, *scores.consistency])
        return loss

    def _train_rivals(self, real: Pairs, fake: Pairs, chance: torch.Generator) -> None:
        if self.optimiser is None:
            return
        made = Pairs(frames=fake.frames.detach(), before=fake.before.detach())
        shown, generated = augmented(real, chance), augmented(made, chance)
        unrelated = mismatched(shown, chance)
        losses = []
        for _, rival in self.rivals:
            for parameter in rival.trained():
                parameter.requires_grad_(True)
            good, bad = rival(shown.frames, shown.before), rival(generated.frames, generated.before)
            odd = rival(unrelated.frames, unrelated.before).consistency
            losses.append(hinge_for_discriminator(good.detail, bad.detail))
            losses.append(hinge_for_discriminator(good.consistency, (*bad.consistency, *odd)))
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        self.optimiser.step()

    def watch(self, loss: float) -> None:
        """Raises Diverged. Tell it each step's loss."""
        if not math.isfinite(loss):
            raise Diverged
        if math.isnan(self.first):
            self.first = self.recent = abs(loss)
        self.recent += (abs(loss) - self.recent) / WATCHED
        if self.recent > WORST * self.first + 1e-3:
            raise Diverged

    def state_dict(self) -> dict[str, Any]:
        return {
            "rivals": [rival.state_dict() for _, rival in self.rivals],
            "optimiser": None if self.optimiser is None else self.optimiser.state_dict(),
            "watched": [self.first, self.recent],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for (_, rival), tensors in zip(self.rivals, state["rivals"], strict=True):
            rival.load_state_dict(tensors)
        if self.optimiser is not None:
            self.optimiser.load_state_dict(state["optimiser"])
        self.first, self.recent = state["watched"]


def pair(pictures: Sequence[Tensor], batch: ClipBatch, at: int) -> Pairs:
    """Frame `at` of a clip, and the one before moved onto it; where that cannot be seen, the frame itself."""
    now = pictures[at]
    motion = enlarged(batch.steps[at - 1].backward, *now.shape[-2:])
    before = warp(pictures[at - 1], motion.flow)
    return Pairs(frames=now, before=torch.lerp(now, before, motion.visible))
