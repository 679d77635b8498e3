"""Frames upscaled as they are read: the same pictures for queries, exports and clips.

A scene's frames are read as people see them, whole stretches at a time: what a picture is never depends on
which others were asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from nvpstore.errors import UsageError
from nvpstore.query.operators.pixels import DecodedPixels, SourcePixels
from nvpstore.types import RGB_STAGE, FrameBatch, SegmentRecord

if TYPE_CHECKING:
    from nvpstore.upscaling.playback import Playback, Scene
    from nvpstore.upscaling.upscaler import FrameUpscaler

READ_FRAMES = 8  # decoded at once

PixelsOf = Callable[[SegmentRecord], Callable[[NDArray[np.int64]], Mapping[str, object]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneReader:
    """Frames of one scene's segments, uint8 [h, w, 3], each segment fetched when its first frame is due."""

    records: tuple[SegmentRecord, ...]
    pixels_of: PixelsOf

    def __call__(self, first: int, end: int) -> Iterator[NDArray[np.uint8]]:
        """Frames [first, end) of the video."""
        for record in self.records:
            low, high = max(first, record.start_frame), min(end, record.start_frame + record.frames)
            if low >= high:
                continue
            decode = self.pixels_of(record)
            for part in np.split(np.arange(low, high), range(READ_FRAMES, high - low, READ_FRAMES)):
                pixels = decode(part)[RGB_STAGE]
                assert isinstance(pixels, DecodedPixels | SourcePixels), "the rgb stage gives pixels"
                yield from pixels.for_people().permute(0, 2, 3, 1).contiguous().cpu().numpy()


class Upscaling:
    """Upscalers by factor, made when the first frame needs one, and the stretches that are being played."""

    def __init__(self, *, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._made: dict[int, FrameUpscaler] = {}
        self._playback: Playback | None = None
        self._lock = threading.Lock()

    def pixels(
        self,
        records: tuple[SegmentRecord, ...],
        pixels_of: PixelsOf,
        frames: NDArray[np.int64],
        *,
        key: object,
        factor: int,
    ) -> SourcePixels:
        """`frames` [t], ascending, of one scene, upscaled. `key` names the video as it is stored."""
        upscaler, playback = self._ready(factor)
        scene = _scene(records, pixels_of, key=(key, factor))
        pictures = np.stack(list(playback.pictures(upscaler, scene, frames)))
        return SourcePixels(rgb=torch.from_numpy(pictures).permute(0, 3, 1, 2))

    def batches(
        self,
        records: tuple[SegmentRecord, ...],
        pixels_of: PixelsOf,
        *,
        wanted: NDArray[np.int64],
        factor: int,
        batch_frames: int,
    ) -> Iterator[FrameBatch]:
        """Frames `wanted` of one video, which follow one another, scene after scene."""
        from nvpstore.upscaling.playback import play

        upscaler, _ = self._ready(factor)
        if not len(wanted):
            return
        first, end = int(wanted[0]), int(wanted[-1]) + 1
        pts = np.concatenate([record.pts for record in records])
        origin = records[0].start_frame
        for _, scenes in groupby(records, key=lambda record: record.scene):
            scene = _scene(tuple(scenes), pixels_of, key=None)
            at, stop = max(first, scene.start), min(end, scene.end)
            pictures: list[NDArray[np.uint8]] = []
            for picture in play(upscaler, scene, at, stop) if at < stop else ():
                pictures.append(picture)
                if len(pictures) == batch_frames or at + len(pictures) == stop:
                    span = slice(at - origin, at - origin + len(pictures))
                    yield FrameBatch(first_frame=at, rgb_thwc=np.stack(pictures), pts=pts[span])
                    at, pictures = at + len(pictures), []

    def _ready(self, factor: int) -> tuple[FrameUpscaler, Playback]:
        # The extra `upscale` may be absent, and takes a while to import.
        try:
            from nvpstore.upscaling.playback import Playback
            from nvpstore.upscaling.upscaler import frame_upscaler
        except ImportError as cause:
            raise UsageError(f"upscaling needs {cause.name}: pip install 'nvpstore[upscale]'") from cause

        with self._lock:
            if factor not in self._made:
                self._made[factor] = frame_upscaler(factor, memory_bytes=self._memory_bytes)
            self._playback = self._playback or Playback()
            return self._made[factor], self._playback


def scene_of(records: tuple[SegmentRecord, ...], segment: int) -> tuple[SegmentRecord, ...]:
    """The segments of the scene that `segment` is part of."""
    scene = next(record.scene for record in records if record.segment == segment)
    return tuple(record for record in records if record.scene == scene)


def _scene(records: tuple[SegmentRecord, ...], pixels_of: PixelsOf, *, key: object) -> Scene:
    from nvpstore.upscaling.playback import Scene

    start = records[0].start_frame
    return Scene(
        key=(key, start),
        start=start,
        end=records[-1].start_frame + records[-1].frames,
        read=SceneReader(records=records, pixels_of=pixels_of),
    )
