"""Decoded frames of a server's video, as PNG over the wire."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import closing
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from nvpstore.client.streams import RemoteStream
from nvpstore.client.transport import Transport
from nvpstore.errors import ServiceError, UsageError
from nvpstore.types import FrameBatch

_COLUMNS = "frame, ts, image"


def frames(
    transport: Transport,
    video: Mapping[str, Any],
    *,
    start: float | None,
    end: float | None,
    batch_frames: int,
    stabilize: bool = False,
    upscale: int = 1,
) -> Iterator[FrameBatch]:
    """Frames of `video` (its details) with start ≤ ts < end, in order. Close it, and the server stops."""
    if batch_frames < 1:
        raise UsageError(f"batches of {batch_frames} frames: at least 1 is needed")
    time_base, origin = Fraction(video["time_base"]), int(video["pts_origin"])
    bounds = {"ts >= $start": start, "ts < $end": end}
    where = "".join(f" AND {condition}" for condition, value in bounds.items() if value is not None)
    params = {"id": video["video_id"], "start": start, "end": end}
    given = {name: value for name, value in params.items() if value is not None}
    # Not ordered by SQL: so rows come as the server decodes them, in order.
    asked = ", stabilize := true" if stabilize else ""
    asked += f", upscale := {upscale:d}" if upscale != 1 else ""
    query = f"SELECT {_COLUMNS} FROM frames(format := 'png'{asked}) WHERE video_id = $id{where}"
    with closing(RemoteStream(transport, query, params=given)) as batches:
        for rows in batches:
            for offset in range(0, rows.num_rows, batch_frames):
                yield _frames_of(rows.slice(offset, batch_frames), time_base, origin)


def _frames_of(rows: pa.RecordBatch, time_base: Fraction, origin: int) -> FrameBatch:
    numbers = rows.column("frame").to_numpy()
    if not np.array_equal(numbers, np.arange(numbers[0], numbers[0] + len(numbers))):
        raise ServiceError(f"the server sent frames out of order: {numbers[0]} to {numbers[-1]}")
    ticks = rows.column("ts").to_numpy() / float(time_base)
    pictures = [_rgb_hwc(picture.as_buffer()) for picture in rows.column("image")]
    return FrameBatch(
        first_frame=int(numbers[0]),
        rgb_thwc=np.stack(pictures),
        pts=origin + np.rint(ticks).astype(np.int64),
    )


def _rgb_hwc(png: pa.Buffer) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError) as cause:
        raise ServiceError(f"the server sent a picture that is no PNG: {cause}") from cause
