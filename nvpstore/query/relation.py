"""What a task table looks like as a relation: its columns, by kind, and which of them need computing."""

from __future__ import annotations

import pyarrow as pa

from nvpstore.errors import QueryError
from nvpstore.query.sample import WORK_FIELDS

COMMON_FIELDS = [*WORK_FIELDS, pa.field("route", pa.string()), pa.field("fidelity", pa.float64())]
BOX = pa.struct([(side, pa.float32()) for side in ("x0", "y0", "x1", "y1")])

KIND_FIELDS: dict[str, list[pa.Field]] = {
    "classification": [
        pa.field("rank", pa.int32()),
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),
    ],
    "embedding": [pa.field("embedding", pa.list_(pa.float32()))],
    "detection": [
        pa.field("object", pa.int32()),
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("box", BOX),
    ],
    "segmentation": [
        pa.field("label", pa.string()),
        pa.field("area", pa.float32()),
        pa.field("mask", pa.binary()),
    ],
    "depth": [pa.field("depth", pa.binary()), pa.field("min", pa.float32()), pa.field("max", pa.float32())],
    "action": [
        pa.field("end_ts", pa.float64()),
        pa.field("rank", pa.int32()),
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),
    ],
    "caption": [pa.field("caption", pa.string())],
    "frames": [
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("image", pa.binary()),
    ],
}
# Kinds of which `top` is part of the question.
RANKED = frozenset({"classification", "action"})
# Kinds whose number of rows a frame is known before anything is computed.
FREE_COLUMNS: dict[str, tuple[str, ...]] = {
    "classification": ("rank",),
    "embedding": (),
    "depth": (),
    "action": ("rank",),
    "caption": (),
    "frames": ("width", "height"),
}


def relation_schema(kind: str) -> pa.Schema:
    """The columns of a task table of `kind` ("frames" or a TaskKind), in order."""
    if kind not in KIND_FIELDS:
        raise QueryError(f"task kind {kind!r} has no table; known: {', '.join(KIND_FIELDS)}")
    return pa.schema([*COMMON_FIELDS, *KIND_FIELDS[kind]])


def output_schema(kind: str) -> pa.Schema:
    """What `Operators.rows` returns for `kind`: `frame`, then the kind's columns."""
    return pa.schema([pa.field("frame", pa.int64()), *KIND_FIELDS[kind]])


def must_compute(kind: str, columns: tuple[str, ...]) -> bool:
    """Whether reading `columns` of a table of `kind` needs frames decoded at all."""
    if kind not in FREE_COLUMNS:
        return True  # how many rows a frame has is part of the answer
    known = {*(field.name for field in COMMON_FIELDS), *FREE_COLUMNS[kind]}
    return any(column not in known for column in columns)
