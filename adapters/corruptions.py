"""What happens to video on its way: noise, lost patches, compression, weather; the same for the same seed.

Pictures are float [t, 3, h, w] in 0 … 1. Strengths are those of the stabilization paper (NeurIPS 2025, arXiv
2512.03014) where it gives them. Rain, snow and fog move from frame to frame as they do outside; all others
are drawn anew for each frame.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

Corruption = Callable[[Tensor, Generator], Tensor]

NOISE_STD = 0.1
PATCH = 8  # pixels
PATCH_SHARE = 0.1
JPEG_QUALITY = 10
SALT_SHARE = PEPPER_SHARE = 0.05
ELASTIC_PIXELS, ELASTIC_SMOOTH = 4.0, 8  # how far, and over how many pixels alike
DROP_SHARE = 0.1
STREAKS, STREAK_LENGTH, STREAK_SPEED, STREAK_LIGHT = 0.0025, 0.09, 0.16, 0.55  # a pixel; of the height
FLAKES, FLAKE_SPEED, FLAKE_RADII = 240, 0.025, (1.2, 3.2)  # a square; of the height; pixels of 256 lines
FOG_LIGHT, FOG_DENSITY, FOG_SPEED = 0.85, (0.35, 0.75), 0.01


def noise(x: Tensor, chance: Generator) -> Tensor:
    """Gaussian, of standard deviation NOISE_STD."""
    return (x + NOISE_STD * _normal(x.shape, chance)).clamp(0, 1)


def patch_drop(x: Tensor, chance: Generator) -> Tensor:
    """PATCH_SHARE of the squares of PATCH pixels are black."""
    rows, columns = (math.ceil(side / PATCH) for side in x.shape[2:])
    kept = torch.rand(len(x), 1, rows, columns, generator=chance) >= PATCH_SHARE
    mask = kept.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    return x * mask[:, :, : x.shape[2], : x.shape[3]]


def jpeg(x: Tensor, chance: Generator) -> Tensor:
    """Each frame a JPEG of its own, of JPEG_QUALITY."""
    return torch.stack([_jpeg(frame) for frame in x])


def salt_and_pepper(x: Tensor, chance: Generator) -> Tensor:
    """Single pixels white or black."""
    drawn = torch.rand(len(x), 1, *x.shape[2:], generator=chance)
    salted = torch.where(drawn < SALT_SHARE, 1.0, x)
    return torch.where(drawn > 1 - PEPPER_SHARE, 0.0, salted)


def elastic(x: Tensor, chance: Generator) -> Tensor:
    """Every frame bent by a smooth field of its own."""
    height, width = x.shape[2:]
    coarse = [max(2, math.ceil(side / ELASTIC_SMOOTH)) for side in (height, width)]
    field = F.interpolate(_normal((len(x), 2, *coarse), chance), (height, width), mode="bicubic")
    # Pixels to −1 … 1 of grid_sample.
    field = field * ELASTIC_PIXELS / 2 * torch.tensor([2 / width, 2 / height]).view(1, 2, 1, 1)
    straight = F.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3), list(x.shape), align_corners=False)
    bent = straight + field.permute(0, 2, 3, 1)
    return F.grid_sample(x, bent, padding_mode="reflection", align_corners=False).clamp(0, 1)


def frame_drop(x: Tensor, chance: Generator) -> Tensor:
    """DROP_SHARE of the frames are black."""
    return x * (torch.rand(len(x), 1, 1, 1, generator=chance) >= DROP_SHARE)


def rain(x: Tensor, chance: Generator) -> Tensor:
    """Bright streaks that fall a little askew, over a slightly greyer picture."""
    height, width = x.shape[2:]
    count = max(1, round(STREAKS * height * width))
    top, left, tempo = torch.rand(3, count, generator=chance)
    slant = 0.15
    frames = []
    for t in range(len(x)):
        y = (top + t * STREAK_SPEED * (0.8 + 0.4 * tempo)) % (1 + STREAK_LENGTH)
        layer = torch.zeros(height, width)
        for along in torch.linspace(0, STREAK_LENGTH, max(2, round(STREAK_LENGTH * height))):
            row = ((y - along) * height).long()
            column = ((left - slant * along) % 1 * width).long()
            inside = (row >= 0) & (row < height)
            layer[row[inside], column[inside]] = 1.0
        soft = F.avg_pool2d(layer[None, None], 3, stride=1, padding=1)[0, 0] * 1.5
        light = STREAK_LIGHT * torch.maximum(soft, layer * 0.6).clamp(0, 1)
        frames.append(light)
    light_t1hw = torch.stack(frames)[:, None]
    grey = 0.92 * x + 0.08 * 0.6
    return (grey * (1 - light_t1hw) + light_t1hw).clamp(0, 1)


def snow(x: Tensor, chance: Generator) -> Tensor:
    """Flakes of several sizes, the large ones faster, swaying as they fall."""
    height, width = x.shape[2:]
    count = max(1, round(FLAKES * width / height))
    top, left, size, phase = torch.rand(4, count, generator=chance)
    radius = (FLAKE_RADII[0] + (FLAKE_RADII[1] - FLAKE_RADII[0]) * size) * height / 256
    frames = []
    for t in range(len(x)):
        y = (top + t * FLAKE_SPEED * (0.6 + size)) % 1.1 - 0.05
        side = (left + 0.02 * torch.sin(0.4 * t + 6.28 * phase)) % 1
        frames.append(_discs(y * height, side * width, radius.clamp_min(0.8), height, width))
    light = torch.stack(frames)[:, None] * 0.9
    return (x * (1 - light) + light).clamp(0, 1)


def fog(x: Tensor, chance: Generator) -> Tensor:
    """A drifting, uneven veil."""
    height, width = x.shape[2:]
    low, high = FOG_DENSITY
    cloud = torch.rand(1, 1, 4, 8, generator=chance)
    veil = F.interpolate(cloud, (height, 2 * width), mode="bicubic", align_corners=False).clamp(0, 1)
    density = low + (high - low) * veil[0, 0]
    shifts = [round(t * FOG_SPEED * width) % width for t in range(len(x))]
    moving = torch.stack([density[:, s : s + width] for s in shifts])[:, None]
    return x * (1 - moving) + FOG_LIGHT * moving


CORRUPTIONS: Mapping[str, Corruption] = {
    "noise": noise,
    "patch_drop": patch_drop,
    "jpeg": jpeg,
    "salt_and_pepper": salt_and_pepper,
    "elastic": elastic,
    "frame_drop": frame_drop,
    "rain": rain,
    "snow": snow,
    "fog": fog,
}


def corrupted(x: Tensor, name: str, *, seed: int) -> Tensor:
    """Frames [t, 3, h, w] in 0 … 1 → the same corrupted, on the CPU."""
    return CORRUPTIONS[name](x.cpu(), torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- parts


def _normal(shape: torch.Size | tuple[int, ...], chance: Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=chance)


def _jpeg(frame: Tensor) -> Tensor:
    rgb = (frame.permute(1, 2, 0) * 255).round().byte().numpy()
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=JPEG_QUALITY)
    back = np.asarray(Image.open(file).convert("RGB"))
    return torch.from_numpy(back.copy()).permute(2, 0, 1).float() / 255


def _discs(y: Tensor, x: Tensor, radius: Tensor, height: int, width: int) -> Tensor:
    """Soft discs at (y, x) pixels: the lightest at each pixel, 0 … 1 [height, width]."""
    light = torch.zeros(height * width)
    reach = int(radius.max().ceil()) + 1
    offsets = torch.arange(-reach, reach + 1)
    for dy in offsets:
        for dx in offsets:
            row, column = (y.floor() + dy).long(), (x.floor() + dx).long()
            away = ((row - y) ** 2 + (column - x) ** 2).sqrt()
            value = (radius - away + 0.5).clamp(0, 1)
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width) & (value > 0)
            at = row[inside] * width + column[inside]
            light.scatter_reduce_(0, at, value[inside], "amax")
    return light.view(height, width)
