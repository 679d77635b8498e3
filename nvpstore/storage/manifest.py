"""The manifest: everything that a reader needs to know about a stored video before it fetches bytes."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nvpstore.errors import IntegrityError
from nvpstore.storage.parquet import encode_groups, footer_of, read_index
from nvpstore.types import ByteRange, SegmentRecord, StoredObject, VideoRecord

_RANGE = [
    ("key", pa.string()),
    ("offset", pa.int64()),
    ("size_bytes", pa.int64()),
    ("sha256", pa.binary(32)),
]
_SCHEMA = pa.schema(
    [
        ("segment", pa.int32()),
        ("scene", pa.int32()),
        ("start_frame", pa.int64()),
        ("pts", pa.list_(pa.int64())),
        ("psnr", pa.float64()),
        ("frame_psnr", pa.list_(pa.float32())),
        ("codec", pa.string()),
        ("architecture", pa.string()),
        ("stages", pa.list_(pa.struct([("stage", pa.string()), *_RANGE]))),
        ("gflops", pa.list_(pa.float64())),
        ("latents", pa.struct(_RANGE)),
        # All of a video's footers, in its first segment's row.
        ("footers", pa.list_(pa.struct([("key", pa.string()), ("footer", pa.binary())]))),
    ]
)
# Keys, codecs and architectures repeat from row to row.
_DICTIONARY = ["codec", "architecture", "stages.list.element.stage", "stages.list.element.key", "latents.key"]
_DELTA = ["segment", "scene", "start_frame", "pts.list.element"]

_SCALARS = (
    "video_id", "attempt", "sha256", "name", "source_uri", "source_bytes", "container", "source_codec",
    "width", "height", "rotation_degrees", "preset", "state",
)  # fmt: skip
_FLOATS = ("psnr", "psnr_p5", "resize_bound_psnr", "fit_seconds")
_FRACTIONS = ("time_base", "average_fps")


def encode_manifest(video: VideoRecord) -> bytes:
    """One row a segment; the video's own fields are JSON in the footer."""
    if video.footers and not video.segments:
        raise ValueError(f"video {video.video_id} has footers but no segments")
    rows = [_row(segment) for segment in video.segments]
    if rows:
        rows[0]["footers"] = [{"key": key, "footer": video.footers[key]} for key in sorted(video.footers)]
    encoded = encode_groups(
        "manifest",
        [pa.Table.from_pylist(rows, schema=_SCHEMA)] if rows else [],
        schema=_SCHEMA,
        kind="manifest",
        index=_video_fields(video),
        column_encoding=dict.fromkeys(_DELTA, "DELTA_BINARY_PACKED"),
        dictionary=_DICTIONARY,
    )
    return encoded.data


def decode_manifest(data: bytes) -> VideoRecord:
    """The bytes must have been verified by the caller.

    Raises ArchiveError for an unknown format version, IntegrityError for anything malformed.
    """
    fields = read_index(footer_of(data), kind="manifest", what="a manifest")
    try:
        table = pq.read_table(pa.BufferReader(data), use_threads=False)
        return _video(fields, table)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"a manifest is malformed: {error!r}") from error


def _video_fields(video: VideoRecord) -> dict[str, Any]:
    audio = video.audio
    return {
        **{name: getattr(video, name) for name in _SCALARS},
        **{name: _plain(getattr(video, name)) for name in _FLOATS},
        **{name: str(getattr(video, name)) for name in _FRACTIONS},
        "audio": [audio.key, audio.size_bytes, audio.sha256] if audio else None,
    }


def _video(fields: dict[str, Any], table: pa.Table) -> VideoRecord:
    audio = fields["audio"]
    arrays = zip(_slices(table["pts"]), _slices(table["frame_psnr"]), strict=True)
    rows = table.drop_columns(["pts", "frame_psnr"]).to_pylist()
    footers = rows[0]["footers"] if rows else []
    scalars: dict[str, Any] = {name: fields[name] for name in _SCALARS}
    scalars |= {name: float(fields[name]) for name in _FLOATS}
    scalars |= {name: Fraction(fields[name]) for name in _FRACTIONS}
    return VideoRecord(
        **scalars,
        segments=tuple(_segment(row, *pair) for row, pair in zip(rows, arrays, strict=True)),
        footers={item["key"]: item["footer"] for item in footers},
        audio=StoredObject(key=audio[0], size_bytes=audio[1], sha256=audio[2]) if audio else None,
    )


def _row(segment: SegmentRecord) -> dict[str, Any]:
    return {
        "segment": segment.segment,
        "scene": segment.scene,
        "start_frame": segment.start_frame,
        "pts": segment.pts,
        "psnr": segment.psnr,
        "frame_psnr": segment.frame_psnr,
        "codec": segment.codec,
        "architecture": segment.architecture,
        "stages": [{"stage": stage, **_range_row(part)} for stage, part in segment.stages],
        "gflops": list(segment.gflops),
        "latents": _range_row(segment.latents),
        "footers": [],
    }


def _segment(row: dict[str, Any], pts: NDArray[np.int64], frame_psnr: NDArray[np.float32]) -> SegmentRecord:
    return SegmentRecord(
        segment=row["segment"],
        scene=row["scene"],
        start_frame=row["start_frame"],
        pts=pts,
        psnr=row["psnr"],
        frame_psnr=frame_psnr,
        codec=row["codec"],
        architecture=row["architecture"],
        stages=tuple((item["stage"], _range(item)) for item in row["stages"]),
        gflops=tuple(row["gflops"]),
        latents=_range(row["latents"]),
    )


def _range_row(part: ByteRange) -> dict[str, Any]:
    return {
        "key": part.key,
        "offset": part.offset,
        "size_bytes": part.size_bytes,
        "sha256": bytes.fromhex(part.sha256),
    }


def _range(row: dict[str, Any]) -> ByteRange:
    return ByteRange(
        key=row["key"], offset=row["offset"], size_bytes=row["size_bytes"], sha256=row["sha256"].hex()
    )


def _slices(column: Any) -> list[NDArray[Any]]:
    """A list column as one array a row, without a Python number for each frame."""
    lists = column.combine_chunks()
    values, offsets = lists.values.to_numpy(zero_copy_only=False), lists.offsets.to_numpy()
    return [values[start:end] for start, end in pairwise(offsets)]


def _plain(value: float) -> float | str:
    # JSON has no infinities, and a perfect reconstruction has an infinite PSNR.
    return value if math.isfinite(value) else str(value)
