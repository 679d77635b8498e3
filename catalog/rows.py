"""Rows of the index's tables from stored values, and back. Column names are those of schema.sql."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvpstore.catalog.fold import HeldObject
from nvpstore.storage.keys import parse_key
from nvpstore.storage.parquet import footer_of, read_index
from nvpstore.storage.results import read_parts
from nvpstore.storage.tables import route_ranges
from nvpstore.types import (
    ByteRange,
    RouteRecord,
    SavedView,
    SegmentRecord,
    StoredObject,
    TaskRecord,
    VideoMeta,
    VideoRecord,
)

Row = dict[str, Any]

_LATENTS_COLUMNS = ("latents_key", "latents_offset", "latents_bytes", "latents_sha256")
_ROUTE_FIELDS = tuple(name for name in RouteRecord.__slots__ if name != "adapter")


def object_row(owner: str, held: HeldObject) -> Row:
    return {
        "owner": owner,
        "key": held.stored.key,
        "size_bytes": held.stored.size_bytes,
        "sha256": held.stored.sha256,
        "log_number": held.log_number,
        "replaced_at": held.replaced_at,
    }


def held_object(row: Row) -> HeldObject:
    return HeldObject(
        stored=stored_object(row), log_number=row["log_number"], replaced_at=_utc(row["replaced_at"])
    )


def stored_object(row: Row) -> StoredObject:
    return StoredObject(key=row["key"], size_bytes=row["size_bytes"], sha256=row["sha256"])


def task_row(task: TaskRecord, log_number: int) -> Row:
    return {
        "name": task.name,
        "version": task.version,
        "kind": task.kind,
        "cuts": task.cuts,
        "labels": list(task.labels),
        "spec": task.spec,
        "log_number": log_number,
    }


def view_row(view: SavedView) -> Row:
    return {"name": view.name, "sql": view.sql, "saved_at": view.saved_at}


def saved_view(row: Row) -> SavedView:
    return SavedView(name=row["name"], sql=row["sql"], saved_at=row["saved_at"].astimezone(UTC))


def meta_row(meta: VideoMeta) -> Row:
    return {
        "video_id": meta.video_id,
        "name": meta.name,
        "tags": list(meta.tags.items()),
        "recorded_at": meta.recorded_at,
        "hold": meta.hold,
    }


def video_row(video: VideoRecord) -> Row:
    same = (
        "video_id", "attempt", "sha256", "name", "state", "source_uri", "source_bytes", "container",
        "source_codec", "width", "height", "rotation_degrees", "frames",
    )  # fmt: skip
    measured = ("psnr", "psnr_p5", "resize_bound_psnr", "fit_seconds")
    return {
        **{name: getattr(video, name) for name in same},
        **{name: _measured(getattr(video, name)) for name in measured},
        "preset": video.preset or None,
        "time_base_num": video.time_base.numerator,
        "time_base_den": video.time_base.denominator,
        "fps_num": video.average_fps.numerator,
        "fps_den": video.average_fps.denominator,
        "aspect_num": video.pixel_aspect.numerator,
        "aspect_den": video.pixel_aspect.denominator,
        "duration": _seconds(_end_pts(video), video) if video.segments else None,
        "audio_key": video.audio.key if video.audio else None,
        "tags": [],
        "recorded_at": None,
        "hold": False,
    }


def segment_rows(video: VideoRecord) -> Iterator[Row]:
    ends = [int(segment.pts[0]) for segment in video.segments[1:]]
    ends += [_end_pts(video)] if video.segments else []
    for segment, end in zip(video.segments, ends, strict=True):
        first, step, pts = _compact(segment.pts)
        yield {
            "video_id": video.video_id,
            "segment": segment.segment,
            "scene": segment.scene,
            "start_frame": segment.start_frame,
            "frames": segment.frames,
            "start_ts": _seconds(first, video),
            "end_ts": _seconds(end, video),
            "pts_origin": int(video.segments[0].pts[0]),
            "pts_first": first,
            "pts_step": step,
            "pts": pts,
            "psnr": _measured(segment.psnr),
            "frame_psnr": segment.frame_psnr,
            "stored_bytes": segment.stored_bytes,
            "codec": segment.codec or None,
            "architecture": segment.architecture or None,
            **_latents_columns(segment.latents),
        }


def stage_rows(video: VideoRecord) -> Iterator[Row]:
    for segment in video.segments:
        stages = zip(segment.stages, segment.gflops, strict=True)
        for position, ((stage, part), gflops) in enumerate(stages):
            yield {
                "video_id": video.video_id,
                "segment": segment.segment,
                "position": position,
                "stage": stage,
                **range_columns(part),
                "gflops": gflops,
            }


def footer_rows(video_id: str, footers: Mapping[str, bytes]) -> Iterator[Row]:
    return ({"video_id": video_id, "key": key, "footer": footer} for key, footer in footers.items())


def route_rows(key: str, data: bytes) -> list[Row]:
    """The rows of a whole routes object. Its adapters are not decoded."""
    footer = footer_of(data)
    index = read_index(footer, kind="routes", what=key)
    shared = {name: index[name] for name in ("video_id", "task", "version", "attempt")}
    pairs = zip(index["routes"], route_ranges(key, data), strict=True)
    return [
        {
            **shared,
            "position": position,
            **{name: fields[name] for name in _ROUTE_FIELDS},
            **(range_columns(part) if part else {}),
        }
        for position, (fields, part) in enumerate(pairs)
    ]


def result_rows(key: str, footer: bytes) -> list[Row]:
    """The rows of a results object, from its verified footer."""
    (task, parts), parsed = read_parts(footer, key), parse_key(key)
    named = {name: getattr(parsed, name) for name in ("video_id", "version", "result")}
    return [
        {
            **named,
            "task": task,
            "segment": part.segment,
            "route": part.route,
            "starts": part.covered.starts.tolist(),
            "stops": part.covered.stops.tolist(),
            "frames": part.covered.frames,
            "rows": part.rows,
            **(range_columns(part.row_group) if part.row_group else {"key": key}),
        }
        for part in parts
    ]


def segment_record(row: Row, stages: Sequence[Row]) -> SegmentRecord:
    """The value behind a row of `store.segments` and its rows of `store.stages`, in decode order."""
    pts = row["pts"]
    if pts is None:
        pts = row["pts_first"] + row["pts_step"] * np.arange(row["frames"], dtype=np.int64)
    return SegmentRecord(
        segment=row["segment"],
        scene=row["scene"],
        start_frame=row["start_frame"],
        pts=np.asarray(pts, dtype=np.int64),
        psnr=math.nan if row["psnr"] is None else row["psnr"],
        frame_psnr=np.asarray(row["frame_psnr"], dtype=np.float32),
        codec=row["codec"] or "",
        architecture=row["architecture"] or "",
        stages=tuple((stage["stage"], byte_range(stage)) for stage in stages),
        gflops=tuple(stage["gflops"] for stage in stages),
        latents=_latents(row),
    )


def _latents_columns(part: ByteRange | None) -> Row:
    if part is None:
        return dict.fromkeys(_LATENTS_COLUMNS)
    return dict(zip(_LATENTS_COLUMNS, (part.key, part.offset, part.size_bytes, part.sha256), strict=True))


def _latents(row: Row) -> ByteRange | None:
    if row["latents_key"] is None:
        return None
    key, offset, size_bytes, sha256 = (row[name] for name in _LATENTS_COLUMNS)
    return ByteRange(key=key, offset=offset, size_bytes=size_bytes, sha256=sha256)


def range_columns(part: ByteRange) -> Row:
    return {"key": part.key, "offset": part.offset, "size_bytes": part.size_bytes, "sha256": part.sha256}


def byte_range(row: Row) -> ByteRange:
    return ByteRange(key=row["key"], offset=row["offset"], size_bytes=row["size_bytes"], sha256=row["sha256"])


def _utc(moment: datetime | None) -> datetime | None:
    return moment and moment.astimezone(UTC)


def _compact(pts: NDArray[np.int64]) -> tuple[int, int | None, list[int] | None]:
    """First pts and step where the step is constant; else the first pts, no step, and all of them."""
    steps = np.diff(pts)
    if np.all(steps == steps[:1]):
        return int(pts[0]), int(steps[0]) if len(steps) else 0, None
    return int(pts[0]), None, pts.tolist()


def _end_pts(video: VideoRecord) -> int:
    """Where the last frame ends: it is taken to last as long as the one before it, or as the average."""
    last = video.segments[-1].pts
    if len(last) > 1:
        return int(2 * last[-1] - last[-2])
    average = 1 / (video.average_fps * video.time_base) if video.average_fps > 0 else Fraction(0)
    return int(last[-1]) + max(1, round(average))


def _seconds(pts: int, video: VideoRecord) -> float:
    return float((pts - int(video.segments[0].pts[0])) * video.time_base)


def _measured(value: float) -> float | None:
    # SQL's word for "not measured"; NaN would sort above everything.
    return None if math.isnan(value) else value
