"""Arrow schemas of the stored Parquet files, and their bytes from and to the values of `nvpstore.types`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from nvpstore.errors import IntegrityError
from nvpstore.storage.manifest import decode_manifest, encode_manifest
from nvpstore.storage.parquet import (
    EncodedTable,
    check_kind,
    encode_groups,
    footer_of,
    group_position,
    ranges_of,
    read_groups,
    read_index,
    required,
)
from nvpstore.types import (
    ByteRange,
    RouteRecord,
    StoredLatents,
    StoredStage,
    StoredTensor,
    TaskRoutes,
)

__all__ = [
    "SEGMENTS_PER_FILE", "EncodedTable", "decode_latents", "decode_manifest", "decode_route", "decode_routes",
    "decode_stages", "encode_latents", "encode_manifest", "encode_routes", "encode_weights", "footer_of",
    "route_ranges", "segment_files",
]  # fmt: skip

# A footer grows by about 300 bytes a row group and is kept in the manifest; this bounds it.
SEGMENTS_PER_FILE = 64

_TENSORS = pa.schema(
    [
        required("name", pa.string()),
        required("shape", pa.list_(required("element", pa.int32()))),
        required("dtype", pa.string()),
        required("scale", pa.binary()),
        required("encoding", pa.string()),
        required("payload", pa.binary()),
    ]
)
_TENSORS_COMPRESSED = ("scale", "payload")
_LATENTS = pa.schema(
    [required("frame", pa.int64()), required("pts", pa.int64()), required("latent", pa.binary())]
)

_ROUTE_FIELDS = tuple(name for name in RouteRecord.__slots__ if name != "adapter")


def segment_files(segments: int) -> tuple[range, ...]:
    """Which segments share a weights and a latents file: at most SEGMENTS_PER_FILE, consecutive."""
    starts = range(0, segments, SEGMENTS_PER_FILE)
    return tuple(range(start, min(start + SEGMENTS_PER_FILE, segments)) for start in starts)


# ---------------------------------------------------------------- weights


def encode_weights(key: str, stages: Sequence[StoredStage]) -> EncodedTable:
    """One row group a stage, one row a tensor, in the order given: segment by segment, in decode order."""
    segments = [stage.segment for stage in stages]
    if segments != sorted(segments) or len(set(segments)) > SEGMENTS_PER_FILE:
        raise ValueError(
            f"{key}: {len(set(segments))} segments; a file takes up to {SEGMENTS_PER_FILE}, in order"
        )
    return encode_groups(
        key,
        (_tensor_table(stage.tensors) for stage in stages),
        schema=_TENSORS,
        kind="weights",
        index=[
            {"segment": segment, "stages": [stage.stage for stage in own]}
            for segment, own in groupby(stages, key=lambda stage: stage.segment)
        ],
        compressed=_TENSORS_COMPRESSED,
    )


def decode_stages(
    data: bytes, offset: int, footer: bytes, row_groups: Sequence[ByteRange]
) -> list[tuple[StoredTensor, ...]]:
    """The tensors of each row group, out of one fetched range: `data` are the file's bytes from `offset`.

    Raises IntegrityError naming key and offset, ArchiveError for an unknown format version.
    """
    if row_groups:
        check_kind(footer, kind="weights", what=row_groups[0].key)
    return _tensors(data, offset, footer, row_groups)


def _tensors(
    data: bytes, offset: int, footer: bytes, row_groups: Sequence[ByteRange]
) -> list[tuple[StoredTensor, ...]]:
    tables = read_groups(data, offset=offset, footer=footer, row_groups=row_groups)
    return [tuple(_tensor(row) for row in table.to_pylist()) for table in tables]


def _tensor_table(tensors: Sequence[StoredTensor]) -> pa.Table:
    columns = {name: [getattr(tensor, name) for tensor in tensors] for name in _TENSORS.names}
    return pa.table(columns, schema=_TENSORS)


def _tensor(row: dict[str, Any]) -> StoredTensor:
    # By name, here and below: columns and fields that later releases add are passed over.
    known = {name: row[name] for name in _TENSORS.names}
    return StoredTensor(**(known | {"shape": tuple(row["shape"])}))


# ---------------------------------------------------------------- latents


def encode_latents(key: str, latents: Sequence[StoredLatents]) -> EncodedTable:
    """One row group a segment, one row a frame; what a segment's frames share stands in the footer."""
    return encode_groups(
        key,
        (_latents_table(item) for item in latents),
        schema=_LATENTS,
        kind="latents",
        index=[
            {
                "segment": item.segment,
                "shape": list(item.shape),
                "encoding": item.encoding,
                "scale": base64.b64encode(item.scale).decode(),
            }
            for item in latents
        ],
        compressed=("pts", "latent"),
        column_encoding={
            "frame": "DELTA_BINARY_PACKED",
            "pts": "DELTA_BINARY_PACKED",
            # A file's latents are equally long; plain encoding would spend four bytes a frame on saying so.
            "latent": "DELTA_LENGTH_BYTE_ARRAY",
        },
    )


def decode_latents(data: bytes, offset: int, footer: bytes, row_group: ByteRange) -> StoredLatents:
    """One segment's latents, out of a fetched range: `data` are the file's bytes from `offset`.

    Raises IntegrityError naming key and offset, ArchiveError for an unknown format version.
    """
    index = read_index(footer, kind="latents", what=row_group.key)
    shared = index[group_position(footer, row_group)]
    (table,) = read_groups(data, offset=offset, footer=footer, row_groups=(row_group,))
    return StoredLatents(
        segment=shared["segment"],
        frames=table["frame"].to_numpy(),
        pts=table["pts"].to_numpy(),
        shape=tuple(shared["shape"]),
        encoding=shared["encoding"],
        scale=base64.b64decode(shared["scale"]),
        payload=_byte_rows(table["latent"].combine_chunks(), row_group),
    )


def _latents_table(item: StoredLatents) -> pa.Table:
    frames, width = item.payload.shape
    offsets = np.arange(frames + 1, dtype=np.int32) * width
    payload = np.ascontiguousarray(item.payload, dtype=np.uint8)
    latent = pa.Array.from_buffers(pa.binary(), frames, [None, pa.py_buffer(offsets), pa.py_buffer(payload)])
    return pa.table([pa.array(item.frames), pa.array(item.pts), latent], schema=_LATENTS)


def _byte_rows(column: Any, row_group: ByteRange) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A binary column of equally long values as uint8 [rows, bytes]."""
    _, offsets_buffer, values_buffer = column.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[column.offset : column.offset + len(column) + 1]
    widths = np.unique(np.diff(offsets))
    if len(widths) != 1:
        raise IntegrityError(f"{row_group.key} at offset {row_group.offset}: latents differ in length")
    values = np.frombuffer(values_buffer or b"", np.uint8)[offsets[0] : offsets[-1]]
    return values.reshape(len(column), int(widths[0]))


# ---------------------------------------------------------------- routes


def encode_routes(key: str, routes: TaskRoutes) -> EncodedTable:
    """One row group an adapter, one row a tensor; everything else about the routes is in the footer.

    Equal adapters (of video scope, say) are stored once. A group's size does not depend on the routes'
    figures, so that a writer can encode, fill in `bytes` from the sizes, and encode again.
    """
    adapters = _distinct_adapters(routes)
    return encode_groups(
        key,
        (_tensor_table(adapter) for adapter in adapters),
        schema=_TENSORS,
        kind="routes",
        index={
            "video_id": routes.video_id,
            "task": routes.task,
            "version": routes.version,
            "attempt": routes.attempt,
            "routes": [_route_fields(route, adapters) for route in routes.routes],
        },
        compressed=_TENSORS_COMPRESSED,
    )


def decode_routes(data: bytes) -> TaskRoutes:
    """All routes of a whole file, adapters included. The bytes must have been verified by the caller."""
    index, groups = _routes_index(data), ranges_of("routes", data)
    adapters = _tensors(data, 0, footer_of(data), groups)
    return TaskRoutes(
        video_id=index["video_id"],
        task=index["task"],
        version=index["version"],
        attempt=index["attempt"],
        routes=tuple(_route(fields, adapters) for fields in index["routes"]),
    )


def route_ranges(key: str, data: bytes) -> tuple[ByteRange | None, ...]:
    """For each route of a whole file, in order, the row group of its adapter; None where it has none."""
    groups = ranges_of(key, data)
    positions = [fields["group"] for fields in _routes_index(data)["routes"]]
    return tuple(None if position is None else groups[position] for position in positions)


def decode_route(data: bytes, footer: bytes, row_group: ByteRange) -> tuple[StoredTensor, ...]:
    """One route's adapter, out of `data` = exactly the bytes of its row group.

    Raises IntegrityError naming key and offset, ArchiveError for an unknown format version.
    """
    check_kind(footer, kind="routes", what=row_group.key)
    return _tensors(data, row_group.offset, footer, (row_group,))[0]


def _routes_index(data: bytes) -> dict[str, Any]:
    index: dict[str, Any] = read_index(footer_of(data), kind="routes", what="a routes file")
    return index


def _distinct_adapters(routes: TaskRoutes) -> list[tuple[StoredTensor, ...]]:
    return list(dict.fromkeys(route.adapter for route in routes.routes if route.adapter))


def _route_fields(route: RouteRecord, adapters: list[tuple[StoredTensor, ...]]) -> dict[str, Any]:
    fields = {name: getattr(route, name) for name in _ROUTE_FIELDS}
    group = adapters.index(route.adapter) if route.adapter else None
    return fields | {"stages": list(route.stages), "group": group}


def _route(fields: dict[str, Any], adapters: Sequence[tuple[StoredTensor, ...]]) -> RouteRecord:
    group = fields["group"]
    adapter = () if group is None else adapters[group]
    known = {name: fields[name] for name in _ROUTE_FIELDS}
    return RouteRecord(**(known | {"stages": tuple(fields["stages"]), "adapter": adapter}))
