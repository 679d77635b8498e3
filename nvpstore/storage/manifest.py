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
from nvpstore.storage.parquet import encode_groups, footer_of, read_index, required
from nvpstore.types import SLIMMEST_PIXEL, ByteRange, SegmentRecord, StoredObject, VideoRecord

_PART = pa.struct(
    [
        required("part", pa.string()),
        required("key", pa.string()),
        required("offset", pa.int64()),
        required("size_bytes", pa.int64()),
        required("sha256", pa.binary(32)),
    ]
)
_FOOTER = pa.struct([required("key", pa.string()), required("footer", pa.binary())])
_SCHEMA = pa.schema(
    [
        required("segment", pa.int32()),
        required("scene", pa.int32()),
        required("start_frame", pa.int64()),
        required("pts", pa.list_(required("element", pa.int64()))),
        required("psnr", pa.float64()),
        required("frame_psnr", pa.list_(required("element", pa.float32()))),
        required("codec", pa.string()),
        required("architecture", pa.string()),
        required("gflops", pa.list_(required("element", pa.float64()))),
        required("parts", pa.list_(required("element", _PART))),
        # All of a video's footers, in its first segment's row.
        required("footers", pa.list_(required("element", _FOOTER))),
    ]
)
# Keys, codecs, architectures and what follows from these repeat from row to row.
_DICTIONARY = [
    "codec",
    "architecture",
    "gflops.list.element",
    "parts.list.element.part",
    "parts.list.element.key",
]
_DELTA = [
    "segment", "scene", "start_frame", "pts.list.element", "parts.list.element.offset",
    "parts.list.element.size_bytes",
]  # fmt: skip
_COMPRESSED = [
    "pts.list.element", "frame_psnr.list.element", "architecture", "gflops.list.element",
    "parts.list.element.part", "parts.list.element.key", "parts.list.element.sha256",
    "footers.list.element.key", "footers.list.element.footer",
]  # fmt: skip

_SCALARS = (
    "video_id", "attempt", "sha256", "name", "source_uri", "source_bytes", "container", "source_codec",
    "width", "height", "rotation_degrees", "preset", "state",
)  # fmt: skip
_FLOATS = ("psnr", "psnr_p5", "resize_bound_psnr", "fit_seconds")
_FRACTIONS = ("time_base", "average_fps")
_MOST_TERM = 2**31  # FFmpeg's fractions are of 32 bits
_AUDIO = ("key", "size_bytes", "sha256")


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
        compressed=_COMPRESSED,
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
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise IntegrityError(f"a manifest is malformed: {error!r}") from error


def _video_fields(video: VideoRecord) -> dict[str, Any]:
    audio = video.audio
    return {
        **{name: getattr(video, name) for name in _SCALARS},
        **{name: _plain(getattr(video, name)) for name in _FLOATS},
        **{name: str(getattr(video, name)) for name in _FRACTIONS},
        "pixel_aspect": str(video.pixel_aspect),
        "audio": {name: getattr(audio, name) for name in _AUDIO} if audio else None,
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
        pixel_aspect=_aspect(fields),
        segments=tuple(_segment(row, *pair) for row, pair in zip(rows, arrays, strict=True)),
        footers={item["key"]: item["footer"] for item in footers},
        audio=StoredObject(**{name: audio[name] for name in _AUDIO}) if audio else None,
    )


def _aspect(fields: dict[str, Any]) -> Fraction:
    """Earlier releases took all pixels to be square."""
    aspect = Fraction(fields.get("pixel_aspect", "1"))
    if not SLIMMEST_PIXEL <= aspect <= 1 / SLIMMEST_PIXEL or aspect.denominator > _MOST_TERM:
        raise ValueError(f"a pixel aspect of {aspect}")
    return aspect


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
        "gflops": list(segment.gflops),
        "parts": [_part_row(*part) for part in segment.parts],
        "footers": [],
    }


def _segment(row: dict[str, Any], pts: NDArray[np.int64], frame_psnr: NDArray[np.float32]) -> SegmentRecord:
    parts = {item["part"]: _range(item) for item in row["parts"]}
    latents = parts.pop("latents") if parts else None
    return SegmentRecord(
        segment=row["segment"],
        scene=row["scene"],
        start_frame=row["start_frame"],
        pts=pts,
        psnr=row["psnr"],
        frame_psnr=frame_psnr,
        codec=row["codec"],
        architecture=row["architecture"],
        stages=tuple(parts.items()),
        gflops=tuple(row["gflops"]),
        latents=latents,
    )


def _part_row(name: str, part: ByteRange) -> dict[str, Any]:
    return {
        "part": name,
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
