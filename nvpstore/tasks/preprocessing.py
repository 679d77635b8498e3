"""From a video's pictures to a backbone's input, and which region of a picture that input shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nvpstore.codec.grids import WHOLE, Region

Fit = Literal["stretch", "crop", "letterbox"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """RGB pictures brought to `height` × `width` (antialiased), then (x − mean) / std.

    `fit`: "stretch" the whole picture; "crop" the middle, after the picture was scaled until it covers
    `height` × `width` enlarged by 1 / `crop_share`; "letterbox" the whole picture at its own aspect in the
    middle, bars of `mean` around it. `mean` and `std` are per channel, in units of 8-bit RGB (0 … 255).
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit = "stretch"
    crop_share: float = 1.0
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ValueError(f"input of {self.height}×{self.width}: both sides must be at least 1")
        if self.fit not in ("stretch", "crop", "letterbox"):
            raise ValueError(f"fit {self.fit!r}: stretch, crop and letterbox are allowed")
        if not 0 < self.crop_share <= 1:
            raise ValueError(f"crop share {self.crop_share}: above 0, at most 1")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"interpolation {self.interpolation!r}: bilinear and bicubic are allowed")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std}: all above 0")

    def region(self, height: int, width: int) -> Region:
        """The region of a picture of this size that the input shows; outside of it for a letterbox's bars."""
        if self.fit == "stretch":
            return WHOLE
        scale = self._scale(height, width)
        across, down = self.width / (width * scale), self.height / (height * scale)
        return Region(
            left=(1 - across) / 2, top=(1 - down) / 2, right=(1 + across) / 2, bottom=(1 + down) / 2
        )

    def apply(self, rgb_tchw: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
        """RGB [t, 3, h, w], uint8 or float in 0 … 255 → backbone input [t, 3, height, width].

        `size` is the video's (height, width) where the pictures have been stretched to another.
        """
        x = self._resized(rgb_tchw.float(), size or (rgb_tchw.shape[2], rgb_tchw.shape[3]))
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (self.mean, self.std))
        x = (x - mean) / std
        return self._placed(x).contiguous(memory_format=torch.channels_last)

    def _scale(self, height: int, width: int) -> float:
        ratios = self.height / height, self.width / width
        return max(ratios) / self.crop_share if self.fit == "crop" else min(ratios)

    def _resized(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        wanted = (self.height, self.width)
        if self.fit != "stretch":
            scale = self._scale(*size)
            height, width = (max(1, round(side * scale)) for side in size)
            keep = max if self.fit == "crop" else min  # rounding must not open a gap, or run over
            wanted = (keep(height, self.height), keep(width, self.width))
        return F.interpolate(x, wanted, mode=self.interpolation, antialias=True)

    def _placed(self, x: Tensor) -> Tensor:
        """Normalised pictures cut to the middle, or with bars of 0 around them."""
        height, width = x.shape[2:]
        if (height, width) == (self.height, self.width):
            return x
        if self.fit == "crop":
            top, left = (height - self.height) // 2, (width - self.width) // 2
            return x[:, :, top : top + self.height, left : left + self.width]
        down, across = self.height - height, self.width - width
        return F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
