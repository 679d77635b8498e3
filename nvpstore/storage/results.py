"""Materialised answers as objects: rows of a task on frames of a video, and which frames they cover.

A file holds parts, each the answers of one route on one segment. The footer says which frames a part covers
(also those without a row: nothing was found there) and the digest of its row group; the object's key holds
the footer's own digest. So an index needs no more than the footer, and a reader no more than the row groups
of the segments in question, both verified.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nvpstore.errors import IntegrityError
from nvpstore.storage.contract import ObjectStore
from nvpstore.storage.keys import parse_key, result_key
from nvpstore.storage.parquet import encode_groups, read_groups, read_index
from nvpstore.types import ByteRange, StoredObject

_KIND = "results"
_GROUP = ("offset", "size_bytes", "sha256")
_TAIL_BYTES = 64 << 10  # fetched at once: nearly every footer fits


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Disjoint, ascending runs of frames that do not touch: [starts[i], stops[i]), int64 [n] each."""

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]

    @property
    def frames(self) -> int:
        return int((self.stops - self.starts).sum())

    def holds(self, frames: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of `frames` [t] lie inside, bool [t]."""
        if not len(self.starts):
            return np.zeros(len(frames), dtype=np.bool_)
        place = np.searchsorted(self.starts, frames, side="right") - 1
        found: NDArray[np.bool_] = (place >= 0) & (frames < self.stops[place])
        return found

    def listed(self) -> NDArray[np.int64]:
        """All frames, ascending."""
        lengths = self.stops - self.starts
        ends = np.cumsum(lengths)
        within = np.arange(self.frames) - np.repeat(ends - lengths, lengths)
        frames: NDArray[np.int64] = np.repeat(self.starts, lengths) + within
        return frames


def intervals(frames: NDArray[np.int64]) -> Intervals:
    """The runs of `frames` [t], in any order, repeated or not."""
    unique = np.unique(frames).astype(np.int64)
    breaks = np.flatnonzero(np.diff(unique) != 1) + 1
    first, last = np.concatenate([[0], breaks]), np.append(breaks, len(unique)) - 1
    if not len(unique):
        return Intervals(starts=unique, stops=unique)
    return Intervals(starts=unique[first], stops=unique[last] + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPart:
    """Answers of one route (a digest says which) on one segment.

    `rows` have `frame` (int64, ascending) and the columns of the task's kind, none of them null; all their
    frames are `covered`.
    """

    segment: int
    route: str
    covered: Intervals
    rows: pa.Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What one results object holds: parts of one video, task version and `result`, all of one schema.

    `result` is a digest of what else the rows depend on.
    """

    video_id: str
    task: str
    version: str
    result: str
    parts: tuple[AnswerPart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartPlace:
    """A part as the footer describes it. `row_group` is None where the frames covered have no rows."""

    segment: int
    route: str
    covered: Intervals
    rows: int
    row_group: ByteRange | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedResults:
    """A finished results object under its key."""

    key: str
    data: bytes


def encode_results(answers: Answers, attempt: str) -> EncodedResults:
    """One row group a part that has rows. Raises ValueError for no parts, nulls, or parts of two schemas."""
    if not answers.parts:
        raise ValueError("a results object needs at least one part")
    schema = pa.schema([field.with_nullable(False) for field in answers.parts[0].rows.schema])

    def index(groups: Sequence[ByteRange]) -> dict[str, Any]:
        places = iter(enumerate(groups))
        parts = [_part_fields(part, next(places) if part.rows.num_rows else None) for part in answers.parts]
        named = {name: getattr(answers, name) for name in ("video_id", "task", "version", "result")}
        return {**named, "attempt": attempt, "parts": parts}

    encoded = encode_groups(
        _KIND,
        (_required_rows(part.rows, schema) for part in answers.parts if part.rows.num_rows),
        schema=schema,
        kind=_KIND,
        index=index,
        compressed=[path for field in schema for path in _leaves(field)],
        dictionary=[field.name for field in schema if pa.types.is_string(field.type)],
    )
    footer = hashlib.sha256(encoded.footer).hexdigest()
    key = result_key(answers.video_id, answers.version, answers.result, attempt, footer)
    return EncodedResults(key=key, data=encoded.data)


def fetch_footer(store: ObjectStore, obj: StoredObject) -> bytes:
    """The footer of a results object, verified, without its rows. Raises IntegrityError, ObjectMissing."""
    tail = _tail(store, obj, _TAIL_BYTES)
    size_bytes = int.from_bytes(tail[-8:-4], "little") + 8
    if size_bytes > len(tail):
        tail = _tail(store, obj, size_bytes)
    footer = tail[-size_bytes:]
    found, committed = hashlib.sha256(footer).hexdigest(), parse_key(obj.key).footer
    if found != committed:
        raise IntegrityError(
            f"the footer of {obj.key} has SHA-256 {found[:12]}…; {committed[:12]}… was committed"
        )
    return footer


def read_parts(footer: bytes, key: str) -> tuple[str, tuple[PartPlace, ...]]:
    """The task's name and all parts that a verified footer describes. Raises IntegrityError, ArchiveError."""
    index, parsed = read_index(footer, kind=_KIND, what=key), parse_key(key)
    try:
        named = (index["video_id"], index["version"], index["result"])
        if named != (parsed.video_id, parsed.version, parsed.result):
            raise IntegrityError(f"{key} holds answers {named}")
        return str(index["task"]), tuple(_place(fields, key) for fields in index["parts"])
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{key} is malformed: {error!r}") from error


def decode_rows(data: bytes, footer: bytes, row_group: ByteRange) -> pa.Table:
    """A part's rows, out of `data` = exactly the bytes of its row group. Raises IntegrityError."""
    (table,) = read_groups(data, offset=row_group.offset, footer=footer, row_groups=(row_group,))
    return table


def _tail(store: ObjectStore, obj: StoredObject, size_bytes: int) -> bytes:
    size_bytes = min(size_bytes, obj.size_bytes)
    if size_bytes < 12:
        raise IntegrityError(f"{obj.key} is too short to be a Parquet file")
    return store.get_range(obj.key, obj.size_bytes - size_bytes, size_bytes)


# ---------------------------------------------------------------- the index in the footer


def _part_fields(part: AnswerPart, place: tuple[int, ByteRange] | None) -> dict[str, Any]:
    group = None
    if place is not None:
        group = {name: getattr(place[1], name) for name in _GROUP}
    return {
        "segment": part.segment,
        "route": part.route,
        "frames": _gaps(part.covered),
        "rows": part.rows.num_rows,
        "group": group,
    }


def _place(fields: dict[str, Any], key: str) -> PartPlace:
    group = fields["group"]
    return PartPlace(
        segment=int(fields["segment"]),
        route=str(fields["route"]),
        covered=_from_gaps(fields["frames"]),
        rows=int(fields["rows"]),
        row_group=ByteRange(key=key, **{name: group[name] for name in _GROUP}) if group else None,
    )


def _gaps(covered: Intervals) -> list[int]:
    """Frames left out, frames covered, and so on by turns: sampled frames make short numbers."""
    bounds = np.stack([covered.starts, covered.stops], axis=1).reshape(-1)
    return [int(step) for step in np.diff(bounds, prepend=0)]


def _from_gaps(gaps: Sequence[int]) -> Intervals:
    bounds = np.cumsum(np.array(gaps, dtype=np.int64))
    if len(bounds) % 2 or (len(bounds) and min(gaps[1:]) < 1) or (len(bounds) and gaps[0] < 0):
        raise ValueError(f"{len(gaps)} steps are no frames")
    return Intervals(starts=bounds[0::2], stops=bounds[1::2])


def _required_rows(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    nulls = [field.name for field, column in zip(schema, rows.columns, strict=True) if column.null_count]
    if nulls or rows.schema.names != schema.names:
        raise ValueError(f"rows with columns {rows.schema.names}, nulls in {nulls}")
    return pa.Table.from_arrays(rows.columns, schema=schema)


def _leaves(field: pa.Field) -> list[str]:
    """A column's paths in Parquet."""
    if pa.types.is_struct(field.type):
        return [f"{field.name}.{path}" for inner in field.type for path in _leaves(inner)]
    if pa.types.is_list(field.type):
        return [f"{field.name}.list.{path}" for path in _leaves(pa.field("element", field.type.value_type))]
    return [field.name]
