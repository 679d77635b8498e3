"""Sharp clips to learn from: windows of videos, and a camera that moves over photographs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from nvpstore.errors import SourceError, UsageError
from nvpstore.video.source import read_frames, scan

LONGEST_SIDE = 960  # of what is kept of a video: half of full HD is sharper than full HD
VIDEO_BYTES = 300 << 20  # of a video's frames that are held
SMALLER = (1.0, 0.75, 0.5)  # sizes that a picture is learned from
FASTEST = 4.0  # pixels a frame that a camera over a photograph moves
ZOOM = 0.01  # a frame
TURN = 0.01  # radians a frame
IN_FRONT = 0.3  # of the clips of photographs have another one moving in front of it
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


RgbFrames = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]  # [t, h, w, 3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Frames that follow one another, [t, 3, side, side] in 0 … 1, nothing of them made up; and the same as a
    fitted network shows them, where there is one."""

    sharp: Tensor
    decoded: Tensor | None = None


class Footage(Protocol):
    """Something to draw clips from."""

    def clip(self, frames: int, side: int, chance: torch.Generator) -> Clip:
        """`frames` frames of `side` × `side`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """A scene's frames, and what its fitted network shows of them."""

    rgb_thwc: RgbFrames
    decoded_thwc: RgbFrames | None = None

    def clip(self, frames: int, side: int, chance: torch.Generator) -> Clip:
        t, height, width, _ = self.rgb_thwc.shape
        share = max(_pick(SMALLER, chance), side / min(height, width))
        cut = min(round(side / share), height, width)
        start, top, left = (_below(n, chance) for n in (t - frames + 1, height - cut + 1, width - cut + 1))
        both = []
        for rgb_thwc in (self.rgb_thwc, self.decoded_thwc):
            if rgb_thwc is not None:
                some = rgb_thwc[start : start + frames, top : top + cut, left : left + cut]
                clip = torch.from_numpy(np.ascontiguousarray(some)).permute(0, 3, 1, 2).float() / 255
                both.append(F.interpolate(clip, (side, side), mode="bicubic", antialias=True).clamp(0, 1))
        sharp, *decoded = _turned(torch.cat(both), chance).split(frames)
        return Clip(sharp=sharp, decoded=decoded[0] if decoded else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Photographs:
    """Pictures [3, h, w] in 0 … 1."""

    pictures: tuple[Tensor, ...]

    def clip(self, frames: int, side: int, chance: torch.Generator) -> Clip:
        clip = self._moving(frames, side, chance)
        if float(torch.rand((), generator=chance)) < IN_FRONT:
            other = self._moving(frames, side, chance)
            clip = torch.lerp(clip, other, _passing(frames, side, chance))
        return Clip(sharp=_turned(clip.clamp(0, 1), chance))

    def _moving(self, frames: int, side: int, chance: torch.Generator) -> Tensor:
        picture = self.pictures[_below(len(self.pictures), chance)]
        share = max(_pick(SMALLER, chance), 1.25 * side / min(picture.shape[1:]))
        size = [max(side, round(n * share)) for n in picture.shape[1:]]
        reach = min(min(size), side + round(2 * FASTEST * frames) + 8)
        part = _window(picture, side=round(reach / share), chance=chance)
        part = F.interpolate(part[None], (reach, reach), mode="bicubic", antialias=True)
        return _camera(part, frames, side, chance)


def _camera(picture: Tensor, frames: int, side: int, chance: torch.Generator) -> Tensor:
    """Views [frames, 3, side, side] of [1, 3, n, n]: an even move, turn and zoom, starting anywhere."""
    n = picture.shape[-1]
    draws = 2 * torch.rand(6, generator=chance) - 1
    speed = draws[:2] * min(FASTEST, (n - side) / (2 * frames)) * 2 / n
    at = torch.arange(frames) - (frames - 1) / 2
    angle, zoom = TURN * draws[4] * at, (1 + ZOOM * draws[5]) ** at * side / n
    windows = torch.zeros(frames, 2, 3)
    windows[:, 0, 0], windows[:, 0, 1] = zoom * angle.cos(), -zoom * angle.sin()
    windows[:, 1, 0], windows[:, 1, 1] = zoom * angle.sin(), zoom * angle.cos()
    windows[:, :, 2] = at[:, None] * speed
    grid = F.affine_grid(windows, [frames, 3, side, side], align_corners=False)
    views = picture.expand(frames, -1, -1, -1)
    return F.grid_sample(views, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def _passing(frames: int, side: int, chance: torch.Generator) -> Tensor:
    """Where something in front is, [frames, 1, side, side]: an ellipse on its way, its edge a pixel soft."""
    x, y, across, down, dx, dy = torch.rand(6, generator=chance).tolist()
    places = torch.arange(side)
    masks = []
    for t in range(frames):
        u = (places - side * x - 2 * FASTEST * (dx - 0.5) * t) / (side * (0.1 + 0.2 * across))
        v = (places - side * y - 2 * FASTEST * (dy - 0.5) * t) / (side * (0.1 + 0.2 * down))
        radius = (u[None] ** 2 + v[:, None] ** 2).sqrt()
        masks.append(torch.sigmoid((1 - radius) * side * 0.2))
    return torch.stack(masks)[:, None]


def _window(picture: Tensor, *, side: int, chance: torch.Generator) -> Tensor:
    height, width = picture.shape[1:]
    side = min(side, height, width)
    top, left = _below(height - side + 1, chance), _below(width - side + 1, chance)
    return picture[:, top : top + side, left : left + side]


def _turned(clip: Tensor, chance: torch.Generator) -> Tensor:
    flips = torch.rand(3, generator=chance) < 0.5
    axes = [axis for axis, used in zip((2, 3), flips.tolist(), strict=False) if used]
    clip = clip.flip(axes) if axes else clip
    return clip.transpose(2, 3) if flips[2] else clip


def _below(n: int, chance: torch.Generator) -> int:
    return int(torch.randint(max(n, 1), (), generator=chance))


def _pick(values: Sequence[float], chance: torch.Generator) -> float:
    return values[_below(len(values), chance)]


# ---------------------------------------------------------------- files


Decoding = Callable[[], Iterable[RgbFrames]]  # batches of a fitted video's frames, from its first on


def load_footage(
    paths: Iterable[Path], *, frames: int, side: int, decodings: Mapping[Path, Decoding] | None = None
) -> list[Footage]:
    """Videos' scenes and photographs among files and folders; what is too short or too small is left out.

    `decodings`: of those of the files that are fitted. Raises UsageError where nothing is left, SourceError
    for a file that is named and cannot be read.
    """
    found: list[Footage] = []
    pictures: list[Tensor] = []
    for path, named in _files(paths):
        if path.suffix.lower() in SUFFIXES:
            picture = _photograph(path)
            pictures += [picture] if min(picture.shape[1:]) >= 1.5 * side else []
            continue
        try:
            found += _scenes(path, frames=frames, side=side, decoding=(decodings or {}).get(path))
        except SourceError:
            if named:  # a folder may hold other things
                raise
    if pictures:
        found.append(Photographs(pictures=tuple(pictures)))
    if not found:
        raise UsageError(f"no footage of at least {frames} frames and {side} pixels; name files or folders")
    return found


def _files(paths: Iterable[Path]) -> Iterable[tuple[Path, bool]]:
    """Each file, and whether it was named itself."""
    for path in paths:
        if path.is_dir():
            yield from ((file, False) for file in sorted(path.rglob("*")) if file.is_file())
        else:
            yield path, True


def _photograph(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            rgb = np.array(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as cause:
        raise SourceError(f"{path}: cannot be read as a picture: {cause}") from cause
    return torch.from_numpy(rgb).permute(2, 0, 1).float() / 255


def _scenes(path: Path, *, frames: int, side: int, decoding: Decoding | None) -> list[Footage]:
    """Each scene of a video that is long enough, at most LONGEST_SIDE wide or high."""
    listed = scan(str(path), max_segment_frames=1 << 30)
    share = min(1.0, LONGEST_SIDE / max(listed.info.width, listed.info.height))
    size = (round(listed.info.height * share), round(listed.info.width * share))
    if min(size) < side:
        return []
    room = VIDEO_BYTES // ((1 if decoding is None else 2) * 3 * size[0] * size[1])
    decoded = None if decoding is None else _first(decoding(), room, size)
    scenes: list[Footage] = []
    for span in listed.segments:
        start, end = span.start_frame, min(span.start_frame + span.frames, room)
        if end - start >= frames:
            batches = read_frames(str(path), start_frame=start, end_frame=end, scan=listed)
            sharp = np.concatenate([_at_size(batch.rgb_thwc, size) for batch in batches])
            shown = None if decoded is None or len(decoded) < end else decoded[start:end]
            scenes.append(Video(rgb_thwc=sharp, decoded_thwc=shown))
    return scenes


def _first(batches: Iterable[RgbFrames], frames: int, size: tuple[int, int]) -> RgbFrames:
    """At most so many frames of them."""
    parts: list[RgbFrames] = []
    for rgb_thwc in batches:
        parts.append(_at_size(rgb_thwc, size)[: frames - sum(map(len, parts))])
        if sum(map(len, parts)) >= frames:
            break
    return np.concatenate(parts)


def _at_size(rgb_thwc: RgbFrames, size: tuple[int, int]) -> RgbFrames:
    if rgb_thwc.shape[1:3] == size:
        return rgb_thwc
    pictures = torch.from_numpy(rgb_thwc).permute(0, 3, 1, 2).float()
    small = F.interpolate(pictures, size, mode="bicubic", antialias=True).round().clamp(0, 255)
    return np.ascontiguousarray(small.byte().permute(0, 2, 3, 1).numpy())
