"""A query's plan: for each task table its frames and their routes, and the decodes that serve them.

Pure: reads the index, touches no tensor, imports no torch. Per-segment steps exist only as table rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nvpstore.errors import QueryError, RouteError
from nvpstore.query.columns import read_columns
from nvpstore.query.index import SegmentFacts, route_candidates, segment_facts
from nvpstore.query.options import TableOptions, suggestion
from nvpstore.query.parse import CATALOG_VIEWS, FRAMES, Query, TaskTable
from nvpstore.query.relation import must_compute, relation_schema
from nvpstore.query.routes import Route, choose, describe_unmet
from nvpstore.query.sample import scoped_frames
from nvpstore.query.scope import find_scopes
from nvpstore.types import RGB_STAGE, TaskRecord

Key = tuple[str, int]  # (video_id, segment)


class Snapshot(Protocol):
    """One log number of an archive. `catalog` implements it."""

    @property
    def number(self) -> int: ...

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A fresh in-memory connection: the index attached read-only as `idx`, the views unqualified."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A segment that `on_error := 'skip'` left out, and why."""

    video_id: str
    segment: int
    table: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """The rows of one task (None: of `frames`) that a query needs, computed once for all `relations`.

    `work` has a row a frame: video_id, segment, frame, ts, wall_ts; by video and frame. `routes[(video_id,
    segment)]` answers it there. `columns` are those that are read.
    """

    relations: tuple[str, ...]
    task: TaskRecord | None
    options: TableOptions
    columns: tuple[str, ...]
    work: pa.Table
    routes: Mapping[Key, Route]
    skipped: tuple[Skipped, ...] = ()

    @property
    def kind(self) -> str:
        return FRAMES if self.task is None else self.task.kind

    @property
    def name(self) -> str:
        return FRAMES if self.task is None else f"{self.task.name}@{self.task.version[:4]}…"

    @property
    def computes(self) -> bool:
        """Whether anything must be decoded: not where only frames, times and ranks are read."""
        return must_compute(self.kind, self.columns)

    def frames_by_segment(self) -> dict[Key, tuple[int, int]]:
        """The rows [start, stop) of `work` of every segment."""
        return segment_runs(self.work)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One decode (or read of the source) of a segment, and the scans, by position, that it serves."""

    video_id: str
    segment: int
    source: bool
    scans: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Frames of a step that the same scans read: int64 [t], ascending. Empty `taps`: the source's pixels."""

    scans: tuple[int, ...]
    frames: NDArray[np.int64]
    taps: tuple[str, ...]
    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `run` carries out. `relations` are all that `sql` reads; those without a scan stay empty.

    `steps` has a row a decode: video_id, segment, source, scans.
    """

    scans: tuple[Scan, ...]
    steps: pa.Table
    relations: Mapping[str, pa.Schema]
    sql: str
    snapshot_number: int
    segments: Mapping[Key, SegmentFacts] = field(default_factory=dict)
    total_frames: int = 0
    total_segments: int = 0
    skipped: tuple[Skipped, ...] = ()


STEP_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string()),
        pa.field("segment", pa.int32()),
        pa.field("source", pa.bool_()),
        pa.field("scans", pa.list_(pa.int32())),
    ]
)


# ---------------------------------------------------------------- building


def build_plan(
    query: Query, *, con: duckdb.DuckDBPyConnection, tasks: Sequence[TaskRecord], snapshot_number: int
) -> Plan:
    """The naive plan of `query`: a scan a task table and a decode a scan and segment; `rules` improve it.

    `tasks` are newest first. Raises QueryError (unknown version, `top` beyond the labels) and RouteError.
    """
    records = {table.relation: resolve_task(table, tasks) for table in query.tables}
    schemas = {name: relation_schema(FRAMES if t is None else t.kind) for name, t in records.items()}
    columns = {name: frozenset(schema.names) for name, schema in schemas.items()} | view_columns(con)
    scopes = find_scopes(query, columns)
    scans: list[Scan] = []
    segments: dict[Key, SegmentFacts] = {}
    for table in query.tables:
        work = scoped_frames(con, scopes[table.relation], table.options)
        keys = list(segment_runs(work))
        facts = segment_facts(con, keys)
        segments |= facts
        used = read_columns(table.columns, schemas[table.relation].names)
        scans.append(_scan(table, records[table.relation], used, work=work, con=con, facts=facts))
    ((total_frames, total_segments),) = con.execute(
        "SELECT coalesce(sum(frames), 0)::BIGINT, count(*) FROM idx.store.segments"
    ).fetchall()
    return Plan(
        scans=tuple(scans),
        steps=naive_steps(scans),
        relations=schemas,
        sql=query.sql,
        snapshot_number=snapshot_number,
        segments=segments,
        total_frames=total_frames,
        total_segments=total_segments,
        skipped=tuple(skip for scan in scans for skip in scan.skipped),
    )


def resolve_task(table: TaskTable, tasks: Sequence[TaskRecord]) -> TaskRecord | None:
    """The record that a task table means, newest first; None for `frames`."""
    if table.task == FRAMES:
        return None
    versions = [task for task in tasks if task.name == table.task]
    matches = [task for task in versions if task.version.startswith(table.version)]
    if not matches:
        known = [f"{task.name}@{task.version[:8]}" for task in versions]
        raise QueryError(f'{table.where}: unknown table "{table.shown}"{suggestion(table.shown, known)}')
    if table.version and len(matches) > 1:
        raise QueryError(f'{table.where}: "{table.shown}" means {len(matches)} versions: give more digits')
    task, top = matches[0], table.options.top
    if task.labels and top > len(task.labels) and table.options != TableOptions():
        raise QueryError(f"{table.where}: top := {top}: {task.name} has {len(task.labels)} labels")
    return task


def top_of(scan: Scan) -> int:
    """How many labels a frame of a classification scan has: `top`, or all where there are fewer."""
    labels = len(scan.task.labels) if scan.task is not None else 0
    return min(scan.options.top, labels) if labels else scan.options.top


def view_columns(con: duckdb.DuckDBPyConnection) -> dict[str, frozenset[str]]:
    """The column names of the public views."""
    return {view: frozenset(con.table(view).columns) for view in CATALOG_VIEWS}


def _scan(
    table: TaskTable,
    task: TaskRecord | None,
    columns: tuple[str, ...],
    *,
    work: pa.Table,
    con: duckdb.DuckDBPyConnection,
    facts: Mapping[Key, SegmentFacts],
) -> Scan:
    candidates = route_candidates(con, task, facts)
    routes, skipped = {}, []
    for (video_id, segment), options in candidates.items():
        best = choose(options, table.options)
        if best is not None:
            routes[(video_id, segment)] = best
            continue
        reason = describe_unmet(options, table.options)
        skipped.append(Skipped(video_id=video_id, segment=segment, table=table.shown, reason=reason))
    if skipped and table.options.on_error == "error":
        raise _unmet(table, skipped)
    return Scan(
        relations=(table.relation,),
        task=task,
        options=table.options,
        columns=columns,
        work=without(work, {(skip.video_id, skip.segment) for skip in skipped}),
        routes=routes,
        skipped=tuple(skipped),
    )


def _unmet(table: TaskTable, skipped: Sequence[Skipped]) -> RouteError:
    named = [f"video {s.video_id} segment {s.segment} ({s.reason})" for s in skipped[:5]]
    more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    return RouteError(
        f"{table.where}: no route of {table.shown} meets what is asked on {', '.join(named)}{more};"
        " on_error := 'skip' leaves such segments out"
    )


# ---------------------------------------------------------------- work by segment


def segment_runs(work: pa.Table) -> dict[Key, tuple[int, int]]:
    """Rows [start, stop) of every (video_id, segment) of a table ordered by them."""
    if work.num_rows == 0:
        return {}
    videos = work["video_id"].combine_chunks().dictionary_encode()
    codes, segments = videos.indices.to_numpy(), work["segment"].to_numpy()
    changed = (np.diff(codes) != 0) | (np.diff(segments) != 0)
    starts = np.concatenate([[0], np.flatnonzero(changed) + 1])
    stops = np.append(starts[1:], work.num_rows)
    names = videos.dictionary.to_pylist()
    return {
        (names[codes[start]], int(segments[start])): (int(start), int(stop))
        for start, stop in zip(starts, stops, strict=True)
    }


def without(work: pa.Table, keys: set[Key]) -> pa.Table:
    """`work` less the rows of these segments."""
    if not keys:
        return work
    keep = np.ones(work.num_rows, dtype=np.bool_)
    for key, (start, stop) in segment_runs(work).items():
        keep[start:stop] = key not in keys
    return work.filter(pa.array(keep))


# ---------------------------------------------------------------- steps


def naive_steps(scans: Sequence[Scan]) -> pa.Table:
    """A decode a scan and segment, in order of video and segment."""
    rows = [
        {
            "video_id": key[0],
            "segment": key[1],
            "source": scan.routes[key].route == "source",
            "scans": [index],
        }
        for index, scan in enumerate(scans)
        if scan.computes
        for key in scan.frames_by_segment()
    ]
    rows.sort(key=lambda row: (row["video_id"], row["segment"], row["source"], row["scans"]))
    return pa.Table.from_pylist(rows, schema=STEP_SCHEMA)


def iterate_steps(plan: Plan) -> Iterator[tuple[Step, list[Group]]]:
    """Each step with its frames, grouped by the scans that read them: no frame is in two groups."""
    runs = [scan.frames_by_segment() for scan in plan.scans]
    frames = [scan.work["frame"].to_numpy() for scan in plan.scans]
    for batch in plan.steps.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            step = Step(
                video_id=row["video_id"],
                segment=row["segment"],
                source=row["source"],
                scans=tuple(row["scans"]),
            )
            key = (step.video_id, step.segment)
            mine = {index: frames[index][slice(*runs[index][key])] for index in step.scans}
            yield step, _groups(plan, step, mine)


def _groups(plan: Plan, step: Step, frames: Mapping[int, NDArray[np.int64]]) -> list[Group]:
    union = np.unique(np.concatenate(list(frames.values())))
    readers = np.stack([np.isin(union, frames[index], assume_unique=True) for index in step.scans])
    masks, members = np.unique(readers, axis=1, return_inverse=True)
    return [
        _group(plan, step, tuple(np.array(step.scans)[masks[:, g]].tolist()), union[members == g])
        for g in range(masks.shape[1])
    ]


def _group(plan: Plan, step: Step, scans: tuple[int, ...], frames: NDArray[np.int64]) -> Group:
    if step.source:
        return Group(scans=scans, frames=frames, taps=(), stage="")
    key = (step.video_id, step.segment)
    wanted = {stage for index in scans for stage in plan.scans[index].routes[key].stages}
    taps = tuple(stage for stage in plan.segments[key].stages if stage in wanted)
    return Group(scans=scans, frames=frames, taps=taps, stage=taps[-1] if taps else RGB_STAGE)


def deepest(plan: Plan, key: Key, groups: Sequence[Group]) -> str:
    """The stage up to which a step's weights are fetched."""
    order = plan.segments[key].stages
    return max((group.stage for group in groups), key=order.index)
