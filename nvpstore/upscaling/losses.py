"""What an upscaler is trained for, beside fooling discriminators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nvpstore.upscaling.flow import Step, enlarged, warp

EPSILON = 1e-3  # below this, errors count by their square


def charbonnier(pictures: Tensor, targets: Tensor) -> Tensor:
    """mean √(e² + ε²): L1 that is smooth at 0."""
    return ((pictures - targets).square() + EPSILON**2).sqrt().mean()


def reconstruction_loss(pictures: Sequence[Tensor], sharp: Sequence[Tensor]) -> Tensor:
    """Over a clip's frames."""
    return torch.stack([charbonnier(a, b) for a, b in zip(pictures, sharp, strict=True)]).mean()


def temporal_loss(pictures: Sequence[Tensor], sharp: Sequence[Tensor], steps: Sequence[Step]) -> Tensor:
    """How the change between neighbours, motion taken out, differs from the sharp clip's own.

    mean |(y_t − W y_{t−1}) − (x_t − W x_{t−1})| where frame t − 1 shows the place. Comparing with the
    sharp clip asks for steadiness without asking for blur. Only the flow is a constant: the gradient reaches
    both frames through the warp.
    """
    size = pictures[0].shape[-2:]
    parts = [pictures[0].new_zeros(())] if len(pictures) == 1 else []
    for t in range(1, len(pictures)):
        motion = enlarged(steps[t - 1].backward, *size)
        error, before = pictures[t] - sharp[t], pictures[t - 1] - sharp[t - 1]
        parts.append(((error - warp(before, motion.flow)) * motion.visible).abs().mean())
    return torch.stack(parts).mean()


def hinge_for_discriminator(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Mean over heads of relu(1 − D(real)) + relu(1 + D(fake))."""
    parts = [F.relu(1 - score).mean() for score in real] + [F.relu(1 + score).mean() for score in fake]
    return torch.stack(parts).sum() / max(len(real), 1)


def hinge_for_generator(fake: Sequence[Tensor]) -> Tensor:
    """Mean over heads of −D(fake)."""
    return torch.stack([-score.mean() for score in fake]).mean()
