"""What planning reads of the index: tasks, and for the segments in scope their stages and routes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import duckdb
import pyarrow as pa

from nvpstore.query.names import CATALOG_VIEWS
from nvpstore.query.routes import Route
from nvpstore.query.sample import videos_filter
from nvpstore.types import RGB_STAGE, ByteRange, TaskRecord

_KEYS = "__nvp_keys"


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

    `tasks` newest first; how many `frames` and `segments` there are; by public view its `columns`.
    """

    tasks: tuple[TaskRecord, ...]
    frames: int
    segments: int
    columns: Mapping[str, frozenset[str]]


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


def segment_facts(
    con: duckdb.DuckDBPyConnection, keys: Iterable[tuple[str, int]]
) -> dict[tuple[str, int], SegmentFacts]:
    """Facts of the segments `keys` (video_id, segment), in their order."""
    rows = _for_keys(
        con,
        keys,
        """
        SELECT k.video_id, k.segment, any_value(v.width), any_value(v.height),
               any_value(v.source_uri) IS NOT NULL, coalesce(any_value(v.source_bytes), 0),
               coalesce(any_value(s.latents_bytes), 0),
               list(g.stage ORDER BY g.position) FILTER (g.stage IS NOT NULL),
               list(g.size_bytes ORDER BY g.position) FILTER (g.stage IS NOT NULL),
               list(g.gflops ORDER BY g.position) FILTER (g.stage IS NOT NULL)
        FROM {keys} k JOIN (FROM idx.store.videos{among}) v USING (video_id)
        JOIN (FROM idx.store.segments{among}) s ON s.video_id = k.video_id AND s.segment = k.segment
        LEFT JOIN (FROM idx.store.stages{among}) g ON g.video_id = k.video_id AND g.segment = k.segment
        GROUP BY k.video_id, k.segment ORDER BY k.video_id, k.segment
        """,
    )
    return {(row[0], row[1]): _facts(row) for row in rows}


def _facts(row: tuple[Any, ...]) -> SegmentFacts:
    sizes: list[int] = row[8] or []
    prefix: list[int] = []
    for size in sizes:
        prefix.append(size + (prefix[-1] if prefix else 0))
    return SegmentFacts(
        stages=tuple(row[7] or ()),
        prefix_bytes=tuple(prefix),
        gflops=tuple(row[9] or ()),
        latents_bytes=row[6],
        width=row[2],
        height=row[3],
        has_source=row[4],
        source_bytes=row[5],
    )


def route_candidates(
    con: duckdb.DuckDBPyConnection,
    task: TaskRecord | None,
    facts: Mapping[tuple[str, int], SegmentFacts],
) -> dict[tuple[str, int], list[Route]]:
    """The routes of `task` (None: of `frames`) on every segment of `facts`, in the same order."""
    found: dict[tuple[str, int], list[Route]] = {key: [] for key in facts}
    if task is None:
        for key, fact in facts.items():
            found[key] = _frame_routes(key, fact)
        return found
    sql = """
        SELECT r.video_id, r.segment, r.route, r.stages, r.cut, r.scope, r.fidelity, r.gflops, r.bytes,
               r.key, r."offset", r.size_bytes, r.sha256
        FROM (FROM idx.store.routes{among}) r JOIN {keys} k USING (video_id, segment)
        WHERE r.task = ? AND r.version = ?
        """
    for row in _for_keys(con, facts, sql, [task.name, task.version]):
        key = (row[0], row[1])
        if row[2] == "source" or all(stage in facts[key].stages for stage in row[3] or ()):
            found[key].append(_route(row, facts[key]))
    for key, fact in facts.items():
        # Any task can be asked of the original, also before routes of it were measured.
        if fact.has_source and not any(route.route == "source" for route in found[key]):
            found[key].append(_source_route(key, fact))
    return found


def _route(row: tuple[Any, ...], facts: SegmentFacts) -> Route:
    stages = tuple(sorted(row[3] or (), key=facts.stages.index)) if row[2] != "source" else ()
    adapter = None
    if row[9] is not None:
        adapter = ByteRange(key=row[9], offset=row[10], size_bytes=row[11], sha256=row[12])
    stage = stages[-1] if stages else ""
    return Route(
        video_id=row[0],
        segment=row[1],
        route=row[2],
        stages=stages,
        stage=stage,
        cut=row[4] or "",
        scope=row[5] or "",
        fidelity=row[6],
        gflops=row[7],
        decode_gflops=facts.decode_gflops(stage) if stage else 0.0,
        bytes=row[8] or 0,
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


def _for_keys(
    con: duckdb.DuckDBPyConnection,
    keys: Iterable[tuple[str, int]],
    sql: str,
    parameters: list[Any] | None = None,
) -> list[tuple[Any, ...]]:
    """Runs `sql` with `{keys}` standing for a table of (video_id, segment) and `{among}` for their videos."""
    pairs = list(keys)
    table = pa.table(
        {
            "video_id": pa.array([video_id for video_id, _ in pairs], pa.string()),
            "segment": pa.array([segment for _, segment in pairs], pa.int32()),
        }
    )
    con.register(_KEYS, table)
    try:
        among = videos_filter(table["video_id"].unique())
        return con.execute(sql.format(keys=_KEYS, among=among), parameters or []).fetchall()
    finally:
        con.unregister(_KEYS)
