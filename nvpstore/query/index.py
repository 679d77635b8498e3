"""What planning reads of the index: tasks, and for the segments in scope their stages and routes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary

import duckdb
import pyarrow as pa

from nvpstore.query.names import CATALOG_VIEWS
from nvpstore.query.places import Places
from nvpstore.query.routes import Route
from nvpstore.query.rows_at import BySegment, RowsAt
from nvpstore.storage.keys import STABILIZERS_PREFIX, parse_key
from nvpstore.types import RGB_STAGE, ByteRange, StoredObject, TaskRecord

Key = tuple[str, int]  # (video_id, segment)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFacts:
    """A segment's stages in decode order with bytes and GFLOPs (of one frame) up to each; its video's size.

    No stages: the video is registered but not fitted. `source_bytes` is the original file's size.
    """

    stages: tuple[str, ...]
    prefix_bytes: tuple[int, ...]
    gflops: tuple[float, ...]
    latents_bytes: int
    width: int
    height: int
    has_source: bool
    source_bytes: int

    def prefix(self, stage: str) -> int:
        """Bytes of all stages up to and including `stage`."""
        return self.prefix_bytes[self.stages.index(stage)]

    def decode_gflops(self, stage: str) -> float:
        return self.gflops[self.stages.index(stage)]

    @property
    def full_bytes(self) -> int:
        """What a decode to pixels fetches."""
        return (self.prefix_bytes[-1] if self.prefix_bytes else 0) + self.latents_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """What planning asks of an index as a whole, whatever the query is.

    `tasks` newest first; how many `frames` and `segments` there are; by public view its `columns`;
    `stabilizers` by name and version.
    """

    tasks: tuple[TaskRecord, ...]
    frames: int
    segments: int
    columns: Mapping[str, frozenset[str]]
    stabilizers: Mapping[tuple[str, str], StoredObject] = field(default_factory=dict)


_WHOLES: WeakKeyDictionary[object, Whole] = WeakKeyDictionary()
_ASKING = threading.Lock()


def whole_of(snapshot: object, con: duckdb.DuckDBPyConnection) -> Whole:
    """`load_whole` of a snapshot to which `con` belongs, read once: it never changes."""
    with _ASKING:
        known = _WHOLES.get(snapshot)
    if known is None:
        known = load_whole(con)
        with _ASKING:
            _WHOLES[snapshot] = known
    return known


def load_whole(con: duckdb.DuckDBPyConnection) -> Whole:
    ((frames, segments),) = con.execute(
        "SELECT coalesce(sum(frames), 0)::BIGINT, count(*) FROM idx.store.segments"
    ).fetchall()
    return Whole(
        tasks=tuple(load_tasks(con)),
        frames=frames,
        segments=segments,
        columns=columns_of(con, CATALOG_VIEWS),
        stabilizers=load_stabilizers(con),
    )


def columns_of(con: duckdb.DuckDBPyConnection, tables: Iterable[str]) -> dict[str, frozenset[str]]:
    """The column names, in lower case, of tables and views that `con` knows."""
    return {name: frozenset(column.lower() for column in con.table(name).columns) for name in tables}


def load_tasks(con: duckdb.DuckDBPyConnection) -> list[TaskRecord]:
    """All registered task versions, newest first."""
    rows = con.execute(
        "SELECT name, version, kind, cuts, labels, spec FROM idx.store.tasks"
        " ORDER BY log_number DESC, version"
    ).fetchall()
    return [
        TaskRecord(
            name=name, version=version, kind=kind, cuts=cuts, labels=tuple(labels or ()), spec=spec or ""
        )
        for name, version, kind, cuts, labels, spec in rows
    ]


def load_stabilizers(con: duckdb.DuckDBPyConnection) -> dict[tuple[str, str], StoredObject]:
    """Those in force, by the name and version that they are of."""
    rows = con.execute(
        "SELECT key, size_bytes, sha256 FROM idx.store.objects WHERE owner = '' AND replaced_at IS NULL"
        " AND starts_with(key, ?)",
        [STABILIZERS_PREFIX],
    ).fetchall()
    found = [StoredObject(key=key, size_bytes=size, sha256=digest) for key, size, digest in rows]
    parsed = [parse_key(obj.key) for obj in found]
    return {(key.name, key.version): obj for key, obj in zip(parsed, found, strict=True)}


class Stored:
    """What is stored of the segments at `places` (at most `SMALL`), and by which routes `task` (None:
    `frames`) is answered on each. Objects are made as they are asked for."""

    def __init__(self, places: Places, task: TaskRecord | None, *, timing: pa.Table, rows: RowsAt) -> None:
        """`timing` are `timing_rows` of `places`."""
        self._places, self._task, self._timing, self._read = places, task, timing, rows
        self._facts: dict[Key, SegmentFacts] = {}

    @cached_property
    def _videos(self) -> list[dict[str, Any]]:
        names = ["width", "height", "has_source", "source_bytes", "latents_bytes"]
        return list(self._timing.select(names).to_pylist())

    @cached_property
    def _stages(self) -> BySegment:
        return BySegment(self._places, self._read.stages)

    @cached_property
    def _routes(self) -> BySegment | None:
        return None if self._read.routes is None else BySegment(self._places, self._read.routes)

    def facts(self, key: Key) -> SegmentFacts:
        """Raises KeyError for a segment that is not here."""
        known = self._facts.get(key)
        if known is None:
            row = self._places.row(key)
            known = self._facts[key] = _facts(self._videos[row], self._stages.at(row))
        return known

    def routes(self, key: Key) -> list[Route]:
        """All routes on a segment, in no order. Raises KeyError for a segment that is not here."""
        facts = self.facts(key)
        if self._task is None or self._routes is None:
            return _frame_routes(key, facts)
        found = [
            _route(key, row, facts)
            for row in self._routes.at(self._places.row(key))
            if row["route"] == "source" or all(stage in facts.stages for stage in row["stages"] or ())
        ]
        # Any task can be asked of the original, also before routes of it were measured.
        if facts.has_source and not any(route.route == "source" for route in found):
            found.append(_source_route(key, facts))
        return found


def _facts(video: dict[str, Any], stages: list[dict[str, Any]]) -> SegmentFacts:
    ordered = sorted(stages, key=itemgetter("position"))
    return SegmentFacts(
        stages=tuple(stage["stage"] for stage in ordered),
        prefix_bytes=tuple(accumulate(stage["size_bytes"] for stage in ordered)),
        gflops=tuple(stage["gflops"] for stage in ordered),
        **video,
    )


def _route(key: Key, row: dict[str, Any], facts: SegmentFacts) -> Route:
    stages = tuple(sorted(row["stages"] or (), key=facts.stages.index)) if row["route"] != "source" else ()
    adapter = None
    if row["key"] is not None:
        adapter = ByteRange(
            key=row["key"], offset=row["offset"], size_bytes=row["size_bytes"], sha256=row["sha256"]
        )
    stage = stages[-1] if stages else ""
    return Route(
        video_id=key[0],
        segment=key[1],
        route=row["route"],
        stages=stages,
        stage=stage,
        cut=row["cut"] or "",
        scope=row["scope"] or "",
        fidelity=row["fidelity"],
        gflops=row["gflops"],
        decode_gflops=facts.decode_gflops(stage) if stage else 0.0,
        bytes=row["bytes"],
        prefix_bytes=facts.prefix(stage) if stage else 0,
        latents_bytes=facts.latents_bytes if stage else 0,
        adapter=adapter,
    )


def _source_route(key: tuple[str, int], facts: SegmentFacts) -> Route:
    return Route(video_id=key[0], segment=key[1], route="source", bytes=facts.source_bytes)


def _frame_routes(key: tuple[str, int], facts: SegmentFacts) -> list[Route]:
    """People's frames: decoded pixels where the segment is fitted, the original's where it is kept."""
    routes = []
    if RGB_STAGE in facts.stages:
        routes.append(
            Route(
                video_id=key[0],
                segment=key[1],
                route="pixel",
                stages=(RGB_STAGE,),
                stage=RGB_STAGE,
                gflops=facts.decode_gflops(RGB_STAGE),
                decode_gflops=facts.decode_gflops(RGB_STAGE),
                bytes=facts.full_bytes,
                prefix_bytes=facts.prefix(RGB_STAGE),
                latents_bytes=facts.latents_bytes,
            )
        )
    return [*routes, _source_route(key, facts)] if facts.has_source else routes
