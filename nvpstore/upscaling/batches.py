"""Training batches: sharp clips, what became of them, and the flow that inference would find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvpstore.upscaling.degrade import Recipe, degrade, stored
from nvpstore.upscaling.flow import Motion, Step, step_between
from nvpstore.upscaling.footage import Footage


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipBatch:
    """`sharp[t]` [b, 3, H, W] and `lows[t]` [b, 3, H/factor, W/factor]; `steps[t]` from frame t to t + 1."""

    sharp: tuple[Tensor, ...]
    lows: tuple[Tensor, ...]
    steps: tuple[Step, ...]
    factor: int


def draw_batch(
    footage: Sequence[Footage],
    shares: Sequence[float],
    *,
    recipe: Recipe,
    factor: int,
    clips: int,
    frames: int,
    side: int,
    chance: torch.Generator,
    device: str,
) -> ClipBatch:
    """`shares`: how often each footage is drawn from, of their sum."""
    chosen = torch.multinomial(torch.tensor(shares), clips, replacement=True, generator=chance).tolist()
    drawn = [footage[i].clip(frames, side, chance) for i in chosen]
    sharp = torch.stack([stored(clip.sharp, recipe, chance) for clip in drawn])
    low = torch.stack(
        [degrade(s, factor, recipe, chance, decoded=c.decoded) for s, c in zip(sharp, drawn, strict=True)]
    )
    pairs = [[step_between(clip[t], clip[t + 1]) for clip in low] for t in range(frames - 1)]
    return ClipBatch(
        sharp=sharp.to(device).unbind(1),
        lows=low.to(device).unbind(1),
        steps=tuple(_together(steps, device) for steps in pairs),
        factor=factor,
    )


def _together(steps: Sequence[Step], device: str) -> Step:
    """Steps of batch 1 as one."""
    return Step(
        forward=_motions([step.forward for step in steps], device),
        backward=_motions([step.backward for step in steps], device),
    )


def _motions(motions: Sequence[Motion], device: str) -> Motion:
    return Motion(
        flow=torch.cat([motion.flow for motion in motions]).to(device),
        visible=torch.cat([motion.visible for motion in motions]).to(device),
    )
