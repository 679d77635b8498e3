"""A frame in parts, where the whole would not fit in memory: no seams, since nothing depends on the tile."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nvpstore.upscaling.build import WINDOW, Geometry
from nvpstore.upscaling.net import Upscaler

HALO_CELLS = 32  # beyond a tile's edge: further away nothing changes it by more than a thousandth
FEATURES_HELD = 12  # tensors of the first level's width that live at once, at the most


def cell_bytes(geometry: Geometry) -> int:
    """What a forward pass takes a cell, about: its window twice, and the first level's features."""
    return 4 * (2 * WINDOW * geometry.picture_channels + FEATURES_HELD * geometry.widths[0])


def tile_side(geometry: Geometry, memory_bytes: int) -> int:
    """Cells of a tile's side without its halo, so that both fit into `memory_bytes`; at least the halo's
    width, below which tiles would be nearly all halo.
    """
    step, halo = geometry.alignment, _halo(geometry)
    side = int((memory_bytes / cell_bytes(geometry)) ** 0.5) - 2 * halo
    return max(halo, side // step * step)


@torch.inference_mode()
def in_tiles(net: Upscaler, cells: Tensor, *, side: int) -> Tensor:
    """What `net` makes of cells [1, c, h, w], tile by tile; the same as of the whole."""
    h, w = cells.shape[-2:]
    if h <= side and w <= side:
        made: Tensor = net(cells)
        return made
    p, halo = net.geometry.patch, _halo(net.geometry)
    whole = cells.new_empty(1, 3, h * p, w * p)
    for top, bottom, above, below in _spans(h, side, halo):
        for left, right, before, after in _spans(w, side, halo):
            part = net(cells[:, :, above:below, before:after])
            y, x = (top - above) * p, (left - before) * p
            height, width = (bottom - top) * p, (right - left) * p
            target = whole[:, :, top * p : bottom * p, left * p : right * p]
            target.copy_(part[:, :, y : y + height, x : x + width])
    return whole


def _halo(geometry: Geometry) -> int:
    return -(-HALO_CELLS // geometry.alignment) * geometry.alignment


def _spans(length: int, side: int, halo: int) -> Iterator[tuple[int, int, int, int]]:
    """(start, end, start with halo, end with halo) of each tile along one axis."""
    for start in range(0, length, side):
        end = min(start + side, length)
        yield start, end, max(0, start - halo), min(length, end + halo)
