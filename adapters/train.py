"""Training an adapter behind a frozen, stored decoder: features are constant, only the 1×1 learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nvpstore.adapters.joint import OutputLoss
from nvpstore.adapters.losses import composite_loss
from nvpstore.adapters.micro import FeatureScale, MicroAdapter


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTraining:
    """Settings. The task term carries weight 1 beside the composite feature loss, on normalised features.

    The learning rate is for adapters that begin at the ridge optimum, which is far from where answers are
    right; what a joint fit ends with wants a lower one.
    """

    epochs: int = 8
    batch_frames: int = 8
    learning_rate: float = 8e-3


def train_adapter(
    adapter: MicroAdapter,
    inputs: Sequence[Tensor],
    *,
    targets: Sequence[Tensor],
    reference: Tensor,
    tail: nn.Module,
    output_loss: OutputLoss,
    settings: AdapterTraining,
    seed: int,
    feature_loss: OutputLoss = composite_loss,
) -> MicroAdapter:
    """Train an adapter of raw features in place of its start, and return one for raw features.

    `inputs` are what `adapter.inputs` gives for n units; `targets` the cut's tensors [n, c, …];
    `reference` [n, …] the backbone's outputs. All on one device, of frames that task terms may see.
    """
    scales = [FeatureScale(t) for t in targets]
    normalised = [s.normalise(t) for s, t in zip(scales, targets, strict=True)]
    student = adapter.normalised(scales)
    optimiser = torch.optim.Adam(student.parameters(), lr=settings.learning_rate)
    frames = len(reference)
    steps = settings.epochs * math.ceil(frames / settings.batch_frames)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(settings.epochs):
        for rows in torch.randperm(frames, generator=generator).split(settings.batch_frames):
            adapted = student.from_inputs([x[rows] for x in inputs])
            feature = torch.stack(
                [feature_loss(a, t[rows]) for a, t in zip(adapted, normalised, strict=True)]
            ).mean()
            output = tail(*(s.restore(a) for s, a in zip(scales, adapted, strict=True)))
            loss = feature + output_loss(output, reference[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    return student.denormalised(scales)
