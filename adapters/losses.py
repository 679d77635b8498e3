"""Losses that bring adapted features to a backbone's own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

MSE_WEIGHT, COSINE_WEIGHT, HUBER_WEIGHT = 1.0, 0.2, 0.1


def composite_loss(adapted: Tensor, target: Tensor) -> Tensor:
    """1.0 · MSE + 0.2 · (1 − cosine over channels) + 0.1 · Huber, on normalised features [u, c, …].

    The feature transfer loss of the neural-centric pipeline (CVPR 2026).
    """
    cosine = F.cosine_similarity(adapted, target, dim=1).mean()
    huber = F.smooth_l1_loss(adapted, target)
    return MSE_WEIGHT * F.mse_loss(adapted, target) + COSINE_WEIGHT * (1 - cosine) + HUBER_WEIGHT * huber
