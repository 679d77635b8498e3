"""Clips that tests upscale: texture that moves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def moving_clip(*, frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    """float32 [t, 3, h, w] in 0 … 1: a camera that moves a pixel a frame over smooth texture."""
    chance = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 4 + 2, (width + frames) // 4 + 2, generator=chance)
    world = F.interpolate(coarse, scale_factor=4, mode="bicubic", align_corners=False)[0].clamp(0, 1)
    return torch.stack([world[:, :height, t : t + width] for t in range(frames)])
