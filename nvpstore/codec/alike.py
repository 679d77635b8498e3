"""Frames that show the same: a camera at rest, a drawing held for several frames, a screen that waits.

A fit learns one of them at a time, its network is as large as what differs needs, and what is stored shows
the first of them for all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 16  # pixels: what is small and moves must not drown in a frame that rests


@torch.no_grad()
def alike_runs(frames_tchw: Tensor, rms: float) -> Tensor:
    """How many frames each run has, int64 [runs]: a run's frames show what its first one shows.

    `frames_tchw` [t, 3, H, W] in 0 … 1. In no block of BLOCK × BLOCK pixels the root mean square of what
    differs from the first frame is above `rms`: slow changes end a run as well.
    """
    lengths: list[int] = []
    first: Tensor | None = None
    for frame in frames_tchw:
        now = frame.float()
        if first is not None and _alike(first, now, rms):
            lengths[-1] += 1
        else:
            first = now
            lengths.append(1)
    return torch.tensor(lengths, dtype=torch.int64)


def _alike(a: Tensor, b: Tensor, rms: float) -> bool:
    squared = (a - b).square().mean(0, keepdim=True)[None]
    worst = F.avg_pool2d(squared, BLOCK, ceil_mode=True, count_include_pad=False).max()
    return float(worst) <= rms**2
