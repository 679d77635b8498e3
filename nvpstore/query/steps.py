"""The steps of a plan, carried out segment by segment through `Operators`, which holds the tensors.

One query runs here from start to end; a scheduler for several would interleave `Runner.step` calls.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nvpstore.errors import CodecError, NvpError, QueryError
from nvpstore.query.measured import Measured
from nvpstore.query.plan import Group, Plan, Scan, Skipped, Snapshot, Step, deepest
from nvpstore.query.read_ahead import Fetching, steps_ahead
from nvpstore.query.relation import relation_schema
from nvpstore.query.routes import Route
from nvpstore.query.rows import attach, free_rows
from nvpstore.storage.ranges import Traffic
from nvpstore.types import RGB_STAGE, ByteRange

BATCH_FRAMES = 32


class SegmentHandle(Protocol):
    """A segment's weights and latents: their bytes as indexed, and what it took to have them here."""

    @property
    def prefix_bytes(self) -> int: ...
    @property
    def latents_bytes(self) -> int: ...
    @property
    def traffic(self) -> Traffic: ...


class RouteHandle(Protocol):
    """A route ready for use, its adapter loaded where it has one."""

    @property
    def route_bytes(self) -> int: ...
    @property
    def traffic(self) -> Traffic: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Frames of one segment on their way through a step: `frames` int64 [t], `ts` float64 [t] in seconds."""

    video_id: str
    segment: int
    frames: NDArray[np.int64]
    ts: NDArray[np.float64]


class Operators(Fetching, Protocol):
    """The tensor side of a query. Values between its methods are opaque to the planner and the runner;
    `snapshot` is the one that the query was given.

    Failures are `NvpError`s; anything else is a bug and ends the query whatever `on_error` says.
    """

    def fetch(self, snapshot: Any, video_id: str, segment: int, stage: str) -> SegmentHandle:
        """The stages up to and including `stage` and the latents, verified: one request each."""

    def load(self, snapshot: Any, route: Route, scan: Scan) -> RouteHandle:
        """The route's adapter (`route.adapter`, None for pixel and source routes) and the task's tail."""

    def decode(self, handle: Any, frames: NDArray[np.int64], taps: tuple[str, ...]) -> Mapping[str, Any]:
        """Features of the video's `frames` [t] at each of `taps`, decoded once to the deepest."""

    def source(self, snapshot: Any, video_id: str, frames: NDArray[np.int64]) -> Mapping[str, Any]:
        """`{"rgb": the original's pixels}` of `frames` [t], decoded from the source file."""

    def adapt(self, features: Mapping[str, Any], route: Any) -> Any:
        """The tapped features through the micro adapter: the tensors of the route's cut."""

    def tail(self, route: Any, features: Any) -> Any:
        """The rest of the backbone; the whole of it, preprocessing included, for pixels."""

    def rows(self, scan: Scan, outputs: Any, batch: Batch) -> pa.Table:
        """`outputs` as rows: `relation.output_schema(scan.kind)`, `frame` ascending and of `batch.frames`.

        Columns outside `scan.columns` may be missing. For `frames`, `outputs` are pixels.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The rows of every relation, and the segments that were left out."""

    rows: Mapping[str, pa.Table]
    skipped: tuple[Skipped, ...]


def run_plan(
    plan: Plan,
    operators: Operators | None,
    *,
    snapshot: Snapshot,
    measured: Measured,
    cancel: threading.Event,
    batch_frames: int = BATCH_FRAMES,
) -> Outcome:
    """Carries out `plan`. `operators` may be None where no scan computes anything.

    Raises the step's own error type, naming table, video, segment and stage, with the cause chained;
    QueryError where `cancel` was set.
    """
    runner = Runner(
        plan, operators, snapshot=snapshot, measured=measured, cancel=cancel, batch_frames=batch_frames
    )
    with closing(steps_ahead(plan, operators, snapshot)) as steps:
        for step, groups in steps:
            runner.step(step, groups)
    return runner.outcome()


class Runner:
    """Carries out steps one after another; keeps rows, drops everything else after its last reader."""

    def __init__(
        self,
        plan: Plan,
        operators: Operators | None,
        *,
        snapshot: Snapshot,
        measured: Measured,
        cancel: threading.Event,
        batch_frames: int,
    ) -> None:
        self._plan = plan
        self._operators = operators
        self.snapshot = snapshot
        self._measured = measured
        self._cancel = cancel
        self._batch_frames = batch_frames
        self._runs = [scan.frames_by_segment() for scan in plan.scans]
        self._rows: list[list[pa.Table]] = [[] for _ in plan.scans]
        self._skipped: list[Skipped] = list(plan.skipped)
        self._read_sources: set[str] = set()
        self._read_adapters: set[ByteRange] = set()

    def step(self, step: Step, groups: list[Group]) -> None:
        """Fetches and decodes one segment once and takes every scan's rows from it."""
        work = _SegmentWork(self, step, groups)
        work.run()
        for index, tables in work.rows.items():
            table = pa.concat_tables(tables)
            if len(groups) > 1:
                order = np.argsort(table["frame"].to_numpy(), kind="stable")
                table = table.take(pa.array(order))
            self._rows[index].append(table)

    def outcome(self) -> Outcome:
        rows: dict[str, pa.Table] = {}
        for index, scan in enumerate(self._plan.scans):
            tables = self._rows[index] if scan.computes else [free_rows(self._plan, scan)]
            table = pa.concat_tables([relation_schema(scan.kind).empty_table(), *tables])
            rows |= dict.fromkeys(scan.relations, table)
        for name, schema in self._plan.relations.items():
            rows.setdefault(name, schema.empty_table())
        return Outcome(rows=rows, skipped=tuple(self._skipped))

    # What one segment's work needs of the run.

    @property
    def plan(self) -> Plan:
        return self._plan

    @property
    def measured(self) -> Measured:
        return self._measured

    @property
    def operators(self) -> Operators:
        assert self._operators is not None, "a plan with steps needs operators"
        return self._operators

    def check_cancelled(self) -> None:
        if self._cancel.is_set():
            raise QueryError("the query was cancelled")

    def chunks(self, frames: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        for start in range(0, len(frames), self._batch_frames):
            yield frames[start : start + self._batch_frames]

    def work_of(self, index: int, step: Step) -> pa.Table:
        start, stop = self._runs[index][(step.video_id, step.segment)]
        return self._plan.scans[index].work.slice(start, stop - start)

    def note_source(self, step: Step) -> None:
        if step.video_id not in self._read_sources:
            self._read_sources.add(step.video_id)
            self._measured.source_bytes += self._plan.segments[(step.video_id, step.segment)].source_bytes

    def note_route(self, route: Route, handle: RouteHandle) -> None:
        self._measured.traffic += handle.traffic
        # An adapter of video or archive scope is one row group however many segments use it.
        if route.adapter is not None and route.adapter not in self._read_adapters:
            self._read_adapters.add(route.adapter)
            self._measured.route_bytes += handle.route_bytes

    def fail(self, step: Step, scans: set[int], doing: str, cause: Exception) -> None:
        """Notes the segment as skipped for `scans`, or raises where one of them does not allow that."""
        asked = [self._plan.scans[index] for index in sorted(scans)]
        names = ", ".join(scan.name for scan in asked)
        message = f"{names}, video {step.video_id} segment {step.segment}, {doing}: {cause}"
        if not isinstance(cause, NvpError):
            raise CodecError(message) from cause
        if any(scan.options.on_error == "error" for scan in asked):
            raise type(cause)(message) from cause
        for scan in asked:
            self._skipped.append(
                Skipped(
                    video_id=step.video_id, segment=step.segment, table=scan.name, reason=f"{doing}: {cause}"
                )
            )


class _SegmentWork:
    """One step in flight: its handle, its routes, and the rows so far of each scan still alive."""

    def __init__(self, runner: Runner, step: Step, groups: list[Group]) -> None:
        self._runner = runner
        self._step = step
        self._groups = groups
        self._alive = set(step.scans)
        self._routes: dict[int, RouteHandle] = {}
        self._work = {index: runner.work_of(index, step) for index in step.scans}
        self.rows: dict[int, list[pa.Table]] = {index: [] for index in step.scans}

    def run(self) -> None:
        self._runner.check_cancelled()
        handle = None if self._step.source else self._fetch()
        self._load_routes()
        for group in self._groups:
            for frames in self._runner.chunks(group.frames):
                self._runner.check_cancelled()
                if not self._alive & set(group.scans):
                    break
                self._batch(handle, group, frames)
        self.rows = {index: tables for index, tables in self.rows.items() if index in self._alive and tables}

    def _fetch(self) -> SegmentHandle | None:
        key, measured = (self._step.video_id, self._step.segment), self._runner.measured
        stage = deepest(self._runner.plan, key, self._groups)
        try:
            with measured.timed("fetch"):
                handle = self._runner.operators.fetch(self._runner.snapshot, *key, stage)
        except Exception as cause:
            self._fail(set(self._alive), f"fetching stages up to {stage}", cause)
            return None
        measured.fetches += 1
        measured.prefix_bytes += handle.prefix_bytes
        measured.latents_bytes += handle.latents_bytes
        measured.traffic += handle.traffic
        return handle

    def _load_routes(self) -> None:
        for index in sorted(self._alive):
            scan = self._runner.plan.scans[index]
            if scan.task is None:
                continue
            route = scan.routes[(self._step.video_id, self._step.segment)]
            try:
                with self._runner.measured.timed("fetch"):
                    self._routes[index] = self._runner.operators.load(self._runner.snapshot, route, scan)
            except Exception as cause:
                self._fail({index}, f"loading the {route.route} route", cause)
                continue
            self._runner.note_route(route, self._routes[index])

    def _batch(self, handle: SegmentHandle | None, group: Group, frames: NDArray[np.int64]) -> None:
        features = self._decode(handle, group, frames)
        if features is None:
            return
        for index in group.scans:
            if index not in self._alive:
                continue
            try:
                self.rows[index].append(self._scan_rows(index, features, frames))
            except Exception as cause:
                self._fail({index}, "answering", cause)

    def _decode(
        self, handle: SegmentHandle | None, group: Group, frames: NDArray[np.int64]
    ) -> Mapping[str, Any] | None:
        measured, operators = self._runner.measured, self._runner.operators
        readers = set(group.scans) & self._alive
        try:
            if handle is None:
                with measured.timed("source"):
                    features = operators.source(self._runner.snapshot, self._step.video_id, frames)
                self._runner.note_source(self._step)
            else:
                with measured.timed("decode"):
                    features = operators.decode(handle, frames, group.taps)
        except Exception as cause:
            what = f"decoding to stage {group.stage}" if group.stage else "reading the source"
            self._fail(readers, what, cause)
            return None
        measured.decoded(group.stage, frames=len(frames), readers=len(readers))
        return features

    def _scan_rows(self, index: int, features: Mapping[str, Any], frames: NDArray[np.int64]) -> pa.Table:
        runner, scan = self._runner, self._runner.plan.scans[index]
        route = scan.routes[(self._step.video_id, self._step.segment)]
        outputs: Any = None
        if route.route == "adapter":
            with runner.measured.timed("adapt"):
                tapped = {stage: features[stage] for stage in route.stages}
                outputs = runner.operators.adapt(tapped, self._routes[index])
        else:
            outputs = features[RGB_STAGE]
        if scan.task is not None:
            with runner.measured.timed("tail"):
                outputs = runner.operators.tail(self._routes[index], outputs)
        places = np.searchsorted(self._work[index]["frame"].to_numpy(), frames)
        work = self._work[index].take(pa.array(places))
        batch = Batch(video_id=route.video_id, segment=route.segment, frames=frames, ts=work["ts"].to_numpy())
        with runner.measured.timed("rows"):
            return attach(scan, work, route, runner.operators.rows(scan, outputs, batch))

    def _fail(self, scans: set[int], doing: str, cause: Exception) -> None:
        self._alive -= scans
        self._runner.fail(self._step, scans, doing, cause)
