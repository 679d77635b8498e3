"""Upscaling as others use it: frames of a scene in, frames of `factor` times the size out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nvpstore.errors import UsageError
from nvpstore.upscaling.build import check_factor
from nvpstore.upscaling.net import Upscaler
from nvpstore.upscaling.recurrence import State, fed, finished, stretches
from nvpstore.upscaling.tiles import in_tiles, tile_side
from nvpstore.upscaling.weights import Weights, place, shipped
from nvpstore.video.scenes import THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH, CutDetector

MEMORY_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameUpscaler:
    """Upscales scenes by one factor. Frames come out as they went in, one for one."""

    net: Upscaler
    factor: int
    device: str
    tile: int

    @torch.inference_mode()
    def scene(self, lows_chw: Iterable[Tensor]) -> Iterator[Tensor]:
        """Frames [3, h, w] in 0 … 1, in order from a fresh state → [3, H, W] in 0 … 1 on the same device."""
        state = State()
        residual = partial(_residual, self.net, self.tile)
        home = torch.device("cpu")
        for low in lows_chw:
            home = low.device
            state, done = fed(residual, self.net, state, low[None].float().to(self.device), self.factor)
            yield from (picture[0].clamp(0, 1).to(home) for picture in done)
        for picture in finished(residual, self.net, state):
            yield picture[0].clamp(0, 1).to(home)

    def bytes_of(self, frames_thwc: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        """The same of frames uint8 [h, w, 3] → uint8 [H, W, 3]."""
        lows = (torch.from_numpy(frame).permute(2, 0, 1).float() / 255 for frame in frames_thwc)
        for picture in self.scene(lows):
            yield (picture * 255).round().byte().permute(1, 2, 0).numpy()


def frame_upscaler(
    factor: int,
    *,
    weights: Weights | None = None,
    device: str | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> FrameUpscaler:
    """With the shipped weights where none are given. Raises UsageError for a factor that is not offered."""
    check_factor(factor)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    net = place(weights or shipped(), device)
    tile = tile_side(net.geometry, memory_bytes)
    return FrameUpscaler(net=net, factor=factor, device=device, tile=tile)


def upscale(
    frames_tchw: Tensor, factor: int = 2, *, weights: Weights | None = None, memory_bytes: int = MEMORY_BYTES
) -> Tensor:
    """RGB [t, 3, h, w] in 0 … 1 → [t, 3, factor·h, factor·w] in 0 … 1, float32, on the same device.

    The frames follow one another; scene cuts among them are found. `memory_bytes` bounds what the network
    takes at a time. Raises UsageError for another shape or factor.
    """
    if frames_tchw.ndim != 4 or frames_tchw.shape[1] != 3 or not frames_tchw.is_floating_point():
        raise UsageError(
            f"frames are {frames_tchw.dtype} {tuple(frames_tchw.shape)}: [t, 3, h, w] in 0 … 1 is needed"
        )
    upscaler = frame_upscaler(factor, weights=weights, memory_bytes=memory_bytes)
    t, _, h, w = frames_tchw.shape
    out = torch.empty(t, 3, h * factor, w * factor, device=frames_tchw.device)
    bounds = [0, *_cuts(frames_tchw), t] if t else [0, 0]
    for scene_start, scene_end in pairwise(bounds):
        for part in stretches(scene_start, scene_end, scene_start=scene_start, scene_end=scene_end):
            pictures = upscaler.scene(frames_tchw[part.read_from : part.read_to])
            for frame, picture in enumerate(pictures, start=part.read_from):
                if part.keep_from <= frame < part.keep_to:
                    out[frame] = picture
    return out


def _cuts(frames_tchw: Tensor) -> list[int]:
    detector, cuts = CutDetector(), list[int]()
    for frame in frames_tchw:
        small = F.interpolate(
            frame[None].float(), (THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH), mode="bilinear", antialias=True
        )
        cut = detector.feed((small[0] * 255).round().clamp(0, 255).byte().cpu().numpy())
        cuts += [] if cut is None else [cut]
    return cuts + detector.finish()


@torch.inference_mode()
def _residual(net: Upscaler, tile: int, cells: Tensor) -> Tensor:
    weight = net.stem.weight
    cells = cells.to(weight.dtype)
    if weight.device.type == "cpu":
        cells = cells.contiguous(memory_format=torch.channels_last)
    return in_tiles(net, cells, side=tile).float()
