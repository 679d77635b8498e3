"""A query's plan: for each task table its frames and their routes, and the decodes that serve them.

Pure: reads the index, touches no tensor, imports no torch. Per-segment steps exist only as table rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nvpstore.errors import RouteError
from nvpstore.query.asking import Asking, Connect
from nvpstore.query.candidates import choose_rows, frame_candidates, task_candidates
from nvpstore.query.clips import Clip
from nvpstore.query.columns import read_columns
from nvpstore.query.details import Details, FactsBySegment
from nvpstore.query.early_stop import enough_rows
from nvpstore.query.index import Key, SegmentFacts, Stored, Whole, columns_of
from nvpstore.query.options import TableOptions
from nvpstore.query.parse import FRAMES, Query, TaskTable
from nvpstore.query.places import Places
from nvpstore.query.relation import relation_schema
from nvpstore.query.routes import describe_unmet
from nvpstore.query.rows_at import read_rows
from nvpstore.query.safety import Locked
from nvpstore.query.sample import SMALL, Scoped, scoped_segments, timing_rows
from nvpstore.query.scans import Chosen, Scan, Skipped, top_of
from nvpstore.query.scope import find_scopes
from nvpstore.query.versions import by_clips, resolve_stabilizer, resolve_task
from nvpstore.types import RGB_STAGE, TaskRecord

_NAMED = 5  # segments in an error's message


class Snapshot(Protocol):
    """One log number of an archive. `catalog` implements it."""

    @property
    def number(self) -> int: ...

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A fresh in-memory connection: the index attached read-only as `idx`, the views unqualified."""

    def lend(self, terms: Locked) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """The same for as long as the block runs, prepared as `terms` say; it may have been used before."""

    def elsewhere(self) -> Connect:
        """What gives a connection as `connect` does when it is called in another process; can be pickled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One decode (or read of the source) of a segment, and the scans, by position, that it serves."""

    video_id: str
    segment: int
    source: bool
    scans: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Frames of a step that the same scans read: int64 [t], ascending. Empty `taps`: the source's pixels.

    With `clip`, these are the first ones of clips.
    """

    scans: tuple[int, ...]
    frames: NDArray[np.int64]
    taps: tuple[str, ...]
    stage: str
    clip: Clip | None = None

    @property
    def pictures(self) -> int:
        """How many pictures have to be decoded."""
        return len(self.frames) * (1 if self.clip is None else self.clip.frames)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """What `run` carries out. `relations` are all that `sql` reads; those without a scan stay empty.

    `steps` has a row a decode: video_id, segment, source, scans. The first of them may be enough: once they
    have given `sql` `stop_after` rows, or `stop_once` (a query over the same relations) a row. None: all are.
    `streams`: what `sql` gives on each step's rows, put together, is its result.
    """

    scans: tuple[Scan, ...]
    steps: pa.Table
    relations: Mapping[str, pa.Schema]
    sql: str
    snapshot_number: int
    total_frames: int = 0
    total_segments: int = 0
    skipped: tuple[Skipped, ...] = ()
    stop_after: int | None = None
    stop_once: str | None = None
    streams: bool = False

    @property
    def segments(self) -> Mapping[Key, SegmentFacts]:
        """What is stored of each segment of each scan."""
        return FactsBySegment(tuple((scan.details, scan.scoped.places) for scan in self.scans))


STEP_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.dictionary(pa.int32(), pa.string())),
        pa.field("segment", pa.int32()),
        pa.field("source", pa.bool_()),
        pa.field("scans", pa.list_(pa.int32())),
    ]
)


# ---------------------------------------------------------------- building


def build_plan(
    query: Query,
    *,
    con: duckdb.DuckDBPyConnection,
    index: Whole,
    snapshot_number: int,
    asking: Asking | None = None,
) -> Plan:
    """The naive plan of `query`: a scan a task table and a decode a scan and segment; `rules` improve it.

    `index` is what `con` reads; the query's own conditions are evaluated by `asking` (default: on `con`).
    Raises QueryError (unknown version, `top` beyond the labels) and RouteError.
    """
    records = {table.relation: resolve_task(table, index.tasks) for table in query.tables}
    schemas = {name: relation_schema(FRAMES if t is None else t.kind) for name, t in records.items()}
    columns = {name: frozenset(schema.names) for name, schema in schemas.items()}
    columns |= {**index.columns, **columns_of(con, query.given)}
    scopes = find_scopes(query, columns)
    scans = []
    for table in (by_clips(table, records[table.relation]) for table in query.tables):
        scoped = scoped_segments(con, scopes[table.relation], table.options, asking=asking)
        used = read_columns(table.columns, schemas[table.relation].names)
        scan = _scan(table, records[table.relation], used, scoped=scoped, con=con)
        steady = resolve_stabilizer(table, scan.task, index.stabilizers)
        scans.append(replace(scan, stabilizer=steady))
    enough = enough_rows(query, columns)
    return Plan(
        scans=tuple(scans),
        steps=naive_steps(scans),
        relations=schemas,
        sql=query.sql,
        snapshot_number=snapshot_number,
        total_frames=index.frames,
        total_segments=index.segments,
        skipped=tuple(skip for scan in scans for skip in scan.skipped),
        stop_after=enough.rows,
        stop_once=enough.once,
        streams=enough.streams,
    )


def _scan(
    table: TaskTable,
    task: TaskRecord | None,
    columns: tuple[str, ...],
    *,
    scoped: Scoped,
    con: duckdb.DuckDBPyConnection,
) -> Scan:
    options = table.options
    near = read_rows(con, task, scoped.places) if len(scoped) <= SMALL else None
    found = frame_candidates(con, scoped, near) if task is None else task_candidates(con, task, scoped, near)
    rows = choose_rows(found, len(scoped), min_fidelity=options.min_fidelity, only=options.route)
    unmet = np.flatnonzero(rows < 0)
    if len(unmet) and options.on_error == "error":
        raise _unmet(table, _skipped(con, table, task, scoped.places, unmet[:_NAMED]), len(unmet))
    skipped = _skipped(con, table, task, scoped.places, unmet)
    rows, scoped = rows[rows >= 0], scoped.only(np.flatnonzero(rows >= 0))
    return Scan(
        relations=(table.relation,),
        task=task,
        options=options,
        columns=columns,
        scoped=scoped,
        chosen=Chosen(
            kinds=found.kinds,
            kind=found.kind[rows].astype(np.int64),
            fidelity=found.fidelity[rows],
            gflops=found.gflops[rows],
        ),
        details=Details(con, task, options, scoped, near),
        skipped=tuple(skipped),
    )


def _skipped(
    con: duckdb.DuckDBPyConnection,
    table: TaskTable,
    task: TaskRecord | None,
    places: Places,
    rows: NDArray[np.int64],
) -> list[Skipped]:
    """Why the segments at `rows` have no route as asked."""
    skipped = []
    for start in range(0, len(rows), SMALL):
        some = places.only(rows[start : start + SMALL])
        timing = timing_rows(con, some, TableOptions())
        stored = Stored(some, task, timing=timing, rows=read_rows(con, task, some))
        for key in some:
            reason = describe_unmet(stored.routes(key), table.options)
            skipped.append(Skipped(video_id=key[0], segment=key[1], table=table.shown, reason=reason))
    return skipped


def _unmet(table: TaskTable, first: Sequence[Skipped], count: int) -> RouteError:
    named = [f"video {s.video_id} segment {s.segment} ({s.reason})" for s in first]
    more = f" and {count - len(first)} more" if count > len(first) else ""
    return RouteError(
        f"{table.where}: no route of {table.shown} meets what is asked on {', '.join(named)}{more};"
        " on_error := 'skip' leaves such segments out"
    )


# ---------------------------------------------------------------- steps


def naive_steps(scans: Sequence[Scan]) -> pa.Table:
    """A decode a scan and segment, in order of video and segment."""
    some = [(index, scan) for index, scan in enumerate(scans) if scan.computes and scan.segments]
    if not some:
        return STEP_SCHEMA.empty_table()
    videos = pc.unique(pa.chunked_array([scan.scoped.places.videos for _, scan in some]))
    videos = videos.take(pc.sort_indices(videos))
    codes = [
        pc.index_in(scan.scoped.places.videos, value_set=videos).to_numpy()[scan.scoped.places.code]
        for _, scan in some
    ]
    code = np.concatenate(codes)
    segment = np.concatenate([scan.scoped.places.segment for _, scan in some])
    source = np.concatenate([scan.chosen.from_source for _, scan in some])
    index = np.repeat([index for index, _ in some], [scan.segments for _, scan in some]).astype(np.int32)
    if len(some) > 1:
        order = np.lexsort((index, source, segment, code))
        code, segment, source, index = code[order], segment[order], source[order], index[order]
    one_each = pa.array(np.arange(len(index) + 1, dtype=np.int32))
    columns = [
        pa.DictionaryArray.from_arrays(pa.array(code, pa.int32()), videos),
        pa.array(segment, pa.int32()),
        pa.array(source, pa.bool_()),
        pa.ListArray.from_arrays(one_each, pa.array(index)),
    ]
    return pa.table(columns, schema=STEP_SCHEMA)


def iterate_steps(plan: Plan) -> Iterator[tuple[Step, list[Group]]]:
    """Each step with its frames, grouped by the scans that read them: no frame is in two groups that are
    sampled alike."""
    for batch in plan.steps.to_batches(max_chunksize=1024):
        for step in steps_of(batch):
            yield step, groups_of(plan, step)


def steps_of(rows: pa.RecordBatch | pa.Table) -> Iterator[Step]:
    """Rows of a plan's steps as objects."""
    for row in rows.to_pylist():
        yield Step(
            video_id=row["video_id"],
            segment=row["segment"],
            source=row["source"],
            scans=tuple(row["scans"]),
        )


def groups_of(plan: Plan, step: Step) -> list[Group]:
    """The frames of `step`, grouped by the scans that read them; clips of equal length and stride apart.

    A scan with a stabilizer has a group of its own, in which it meets its frames in their order.
    """
    alike: dict[tuple[Clip | None, int | None], list[int]] = {}
    for index in step.scans:
        scan = plan.scans[index]
        alone = None if scan.stabilizer is None else index
        alike.setdefault((scan.options.clip, alone), []).append(index)
    return [group for scans in alike.values() for group in _alike_groups(plan, step, scans)]


def _alike_groups(plan: Plan, step: Step, scans: Sequence[int]) -> Iterator[Group]:
    key = (step.video_id, step.segment)
    frames = {index: plan.scans[index].work_of(key)["frame"].to_numpy() for index in scans}
    union = np.unique(np.concatenate(list(frames.values())))
    readers = np.stack([np.isin(union, frames[index], assume_unique=True) for index in scans])
    masks, members = np.unique(readers, axis=1, return_inverse=True)
    for g in range(masks.shape[1]):
        yield _group(plan, step, tuple(np.array(scans)[masks[:, g]].tolist()), union[members == g])


def _group(plan: Plan, step: Step, scans: tuple[int, ...], frames: NDArray[np.int64]) -> Group:
    clip = plan.scans[scans[0]].options.clip
    if step.source:
        return Group(scans=scans, frames=frames, taps=(), stage="", clip=clip)
    key = (step.video_id, step.segment)
    wanted = {stage for index in scans for stage in plan.scans[index].routes[key].stages}
    taps = tuple(stage for stage in plan.segments[key].stages if stage in wanted)
    return Group(scans=scans, frames=frames, taps=taps, stage=taps[-1] if taps else RGB_STAGE, clip=clip)


def deepest(plan: Plan, key: Key, groups: Sequence[Group]) -> str:
    """The stage up to which a step's weights are fetched."""
    order = plan.segments[key].stages
    return max((group.stage for group in groups), key=order.index)


__all__ = [
    "STEP_SCHEMA",
    "Chosen",
    "Group",
    "Key",
    "Plan",
    "Scan",
    "Skipped",
    "Snapshot",
    "Step",
    "build_plan",
    "deepest",
    "groups_of",
    "iterate_steps",
    "naive_steps",
    "resolve_task",
    "steps_of",
    "top_of",
]
