"""Pictures written while a net trains: what it is given, what it makes of that, and what it should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nvpstore.upscaling.batches import ClipBatch
from nvpstore.upscaling.net import Upscaler
from nvpstore.upscaling.recurrence import softened, upscale_clip
from nvpstore.upscaling.teacher import fold_time


@torch.no_grad()
def write_sample(net: Upscaler, batch: ClipBatch, path: Path) -> None:
    """The last frame of each clip: bicubic, upscaled, sharp from left to right, one clip a row."""
    shown = fold_time(net) if net.timed else net
    made = upscale_clip(shown, batch.lows, batch.steps, batch.factor)[-1]
    columns = torch.cat([softened(batch.lows[-1], batch.factor), made, batch.sharp[-1]], 3)
    rows = torch.cat(list(columns.float().clamp(0, 1)), 1)
    rgb_hwc = (rows * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(rgb_hwc)).save(path)
