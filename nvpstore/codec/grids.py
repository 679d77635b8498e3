"""Stage features laid onto a backbone's grid: all of an adapter's geometry, none of its channels.

What a task's preprocessing does with a picture (resize, crop, letterbox) is, to features, only a choice of
the region of the picture that the grid covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A rectangle in fractions of a picture's sides. It may reach outside (a letterbox's bars)."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0

    def __post_init__(self) -> None:
        if not (self.left < self.right and self.top < self.bottom):
            raise ValueError(f"{self}: left < right and top < bottom are needed")

    @property
    def reaches_outside(self) -> bool:
        return min(self.left, self.top) < -EDGE or max(self.right, self.bottom) > 1 + EDGE

    def within(self, width: float, height: float) -> Region:
        """The same region in fractions of a larger picture, of which this one is the top left part."""
        return Region(
            left=self.left * width,
            top=self.top * height,
            right=self.right * width,
            bottom=self.bottom * height,
        )


EDGE = 1e-6  # fractions this close to a side are that side
WHOLE = Region()
MOTION_PICTURES = 4  # so many times what changes from one to the next: about as large as what is there


def on_grid(
    taps: Tensor, grid: tuple[int, ...], *, region: Region = WHOLE, frames: int = 1, motion: bool = False
) -> Tensor:
    """One stage's outputs [u·t, c, h, w] → [u, c, *grid], bilinear; with `motion` [u, 2c, *grid].

    A unit is `frames` (t) pictures. `grid` is (height, width) for units of one picture, else (times,
    height, width): linear in time, first and last picture at the grid's ends. Outside of the picture its
    border repeats. Motion is how each channel changes from the picture before to the one after.
    """
    placed = _sampled(taps, grid[-2], grid[-1], region)
    if len(grid) == 2:
        return placed
    # (U·T)xCxHxW -> UxTxCxHxW -> UxCxTxHxW
    clips = placed.unflatten(0, (-1, frames)).transpose(1, 2)
    if motion:
        clips = torch.cat([clips, _motion(clips)], dim=1)
    return clips if grid[0] == frames else _in_time(clips, grid[0])


def moving(grids: Sequence[tuple[int, ...]]) -> tuple[bool, ...]:
    """Which of a cut's grids are laid out with motion: of its volumes those that are finest in time."""
    finest = max((grid[0] for grid in grids if len(grid) > 2), default=0)
    return tuple(len(grid) > 2 and grid[0] == finest for grid in grids)


def outside(grid: tuple[int, ...], region: Region) -> Tensor:
    """1 where a grid's cell lies outside of the picture, [1, *grid]."""
    ys, xs = _centres(grid[-2], region.top, region.bottom), _centres(grid[-1], region.left, region.right)
    out = _beyond(ys)[:, None] | _beyond(xs)[None, :]
    return out.float().expand(1, *grid)


def _beyond(places: Tensor) -> Tensor:
    """Places in fractions of a side that lie outside; the edge itself does not, however it was rounded."""
    return (places < -EDGE) | (places > 1 + EDGE)


def _sampled(taps: Tensor, height: int, width: int, region: Region) -> Tensor:
    if region == WHOLE:
        return F.interpolate(taps, (height, width), mode="bilinear", align_corners=False)
    ys = 2 * _centres(height, region.top, region.bottom).to(taps) - 1
    xs = 2 * _centres(width, region.left, region.right).to(taps) - 1
    grid = torch.stack(torch.broadcast_tensors(xs[None, :], ys[:, None]), dim=-1)
    places = grid.expand(len(taps), -1, -1, -1)
    return F.grid_sample(taps, places, mode="bilinear", padding_mode="border", align_corners=False)


def _centres(count: int, first: float, last: float) -> Tensor:
    """Where `count` cells of [first, last] have their centres."""
    return first + (last - first) * (torch.arange(count) + 0.5) / count


def _motion(clips: Tensor) -> Tensor:
    """What a channel [u, c, t, h, w] would change by in MOTION_PICTURES, going on as it does."""
    last = clips.shape[2] - 1
    at = torch.arange(last + 1, device=clips.device)
    after, before = (at + 1).clamp_max(last), (at - 1).clamp_min(0)
    pace = MOTION_PICTURES / (after - before).clamp_min(1).to(clips.dtype)[:, None, None]
    return (clips[:, :, after] - clips[:, :, before]) * pace


def _in_time(clips: Tensor, times: int) -> Tensor:
    at = torch.linspace(0, clips.shape[2] - 1, times, device=clips.device)
    before = at.floor().long()
    after = (before + 1).clamp_max(clips.shape[2] - 1)
    share = (at - before).to(clips.dtype)[:, None, None]
    return torch.lerp(clips[:, :, before], clips[:, :, after], share)
