"""Losses that bring adapted features to a backbone's own, and answers to steadiness."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from nvpstore.errors import UsageError

MSE_WEIGHT, COSINE_WEIGHT, HUBER_WEIGHT = 1.0, 0.2, 0.1


def composite_loss(adapted: Tensor, target: Tensor) -> Tensor:
    """1.0 · MSE + 0.2 · (1 − cosine over channels) + 0.1 · Huber, on normalised features [u, c, …].

    The feature transfer loss of the neural-centric pipeline (CVPR 2026).
    """
    cosine = F.cosine_similarity(adapted, target, dim=1).mean()
    huber = F.smooth_l1_loss(adapted, target)
    return MSE_WEIGHT * F.mse_loss(adapted, target) + COSINE_WEIGHT * (1 - cosine) + HUBER_WEIGHT * huber


# ---------------------------------------------------------------- steadiness

Distance = Callable[
    [Tensor, Tensor], Tensor
]  # of frames [t, …]: one value a frame, a norm of their difference


def rmse(a: Tensor, b: Tensor) -> Tensor:
    """√(mean of squares) of each frame's difference, [t]: the Euclidean norm over the root of its size."""
    # The smallest number keeps the gradient finite where nothing differs.
    return (a - b).flatten(1).square().mean(1).clamp_min(1e-12).sqrt()


def steady_loss(outputs: Tensor, targets: Tensor, *, stability: float, distance: Distance = rmse) -> Tensor:
    """Unified accuracy–stability–robustness loss of t frames:
    1/t Σ_t δ(ŷ_t, y_t) + λ/(t − 1) Σ_t δ(ŷ_t, ŷ_{t−1}), λ = `stability` (NeurIPS 2025, arXiv 2512.03014).

    ŷ are answers to corrupted frames, y what is right: labels, or the net's own answers to clean ones.
    """
    right = distance(outputs, targets).mean()
    if len(outputs) < 2:
        return right
    return right + stability * distance(outputs[1:], outputs[:-1]).mean()


def check_stability(stability: float, *, frames: int, forced: bool = False) -> None:
    """Whether λ keeps to its bounds for clips of `frames` (τ).

    Below ½ the truth is the best answer (oracle bound): from there on a warning. Above τ − 1 the best answer
    is to repeat the first one for ever (collapse bound): UsageError, unless `forced`.
    """
    if not stability >= 0:
        raise UsageError(f"stability {stability}: at least 0 is needed")
    if stability > frames - 1 and not forced:
        raise UsageError(
            f"stability {stability} on clips of {frames} frames: above {frames - 1} the best answer is to "
            "repeat the first one; below 0.5 is safe"
        )
    if stability >= 0.5:
        warnings.warn(
            f"stability {stability}: from 0.5 on, being wrong and steady can cost less than being right",
            stacklevel=2,
        )
