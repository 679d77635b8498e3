"""The steps of a plan, carried out segment by segment through `Operators`, which holds the tensors.

Each query runs on its own thread; `scheduler` joins what equal steps of several have in common.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nvpstore.errors import CodecError, NvpError
from nvpstore.query.answers import Answers
from nvpstore.query.chunks import BATCH_FRAMES
from nvpstore.query.contract import Batch, Operators, RouteHandle, SegmentHandle
from nvpstore.query.flights import Taken
from nvpstore.query.limits import Limits
from nvpstore.query.measured import Measured
from nvpstore.query.plan import Group, Key, Plan, Skipped, Snapshot, Step, iterate_steps
from nvpstore.query.progress import OnProgress, Progress
from nvpstore.query.read_ahead import PlanStep, steps_ahead
from nvpstore.query.relation import relation_schema
from nvpstore.query.resident import Resident
from nvpstore.query.routes import Route
from nvpstore.query.rows import free_rows
from nvpstore.query.scheduler import Cancelled
from nvpstore.query.segment_work import SegmentWork
from nvpstore.query.sharing import Sharing
from nvpstore.query.spill import Relation, Rows
from nvpstore.types import ByteRange

__all__ = ["BATCH_FRAMES", "Batch", "Operators", "Orders", "RouteHandle", "Runner", "SegmentHandle"]

Enough = Callable[[Mapping[str, pa.Table]], bool]  # given each step's rows once, by relation


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a caller says of a run besides its plan."""

    cancel: threading.Event
    limits: Limits
    batch_frames: int = BATCH_FRAMES
    on_progress: OnProgress | None = None

    def check(self) -> None:
        """Raises Cancelled where the run was stopped."""
        if self.cancel.is_set():
            raise Cancelled("the query was cancelled")


class Runner:
    """Carries out steps one after another; keeps rows, drops everything else after its last reader."""

    def __init__(
        self,
        plan: Plan,
        make_operators: Callable[[], Operators],
        *,
        snapshot: Snapshot,
        measured: Measured,
        orders: Orders,
        rows: Rows,
        answers: Answers | None = None,
    ) -> None:
        """`make_operators` is called once a frame must be computed: not for those that `answers` has."""
        self.plan, self.snapshot, self.measured = plan, snapshot, measured
        self.limits, self.batch_frames = orders.limits, orders.batch_frames
        self.skipped: list[Skipped] = list(plan.skipped)
        self._make_operators = make_operators
        self._operators: Operators | None = None
        self._answers = answers
        self._orders = orders
        self._rows = rows
        self.resident = Resident(orders.limits.batch_bytes)
        self._progress = Progress(frames_to_answer(plan), orders.on_progress)
        self._has_free_rows = False
        self._read_sources: set[str] = set()
        self._read_adapters: set[ByteRange] = set()

    def run(self, enough: Enough | None = None) -> None:
        """All steps, or as many as give rows that are `enough`.

        Raises the step's own error type, naming table, video, segment and stage, with the cause chained;
        Cancelled where the query was stopped.
        """
        if enough is not None and enough({}):
            return
        with closing(self.tables()) as steps:
            for tables in steps:
                for index, table in tables.items():
                    self._rows.add(index, table)
                if enough is not None and enough(self.by_relation(tables)):
                    return

    def tables(self) -> Generator[dict[int, pa.Table], None, None]:
        """Rows by scan of each step, as it is done, or some of them earlier where they are large.

        Close it, and nothing more begins.
        """
        with closing(self._unanswered()) as unanswered, closing(self._begun(unanswered)) as steps:
            for step, groups in steps:
                self.check()
                yield from self._step(step, groups)
                key = (step.video_id, step.segment)
                frames = sum(self.plan.scans[index].work_of(key).num_rows for index in step.scans)
                self._progress.step(step.video_id, frames)

    def _unanswered(self) -> Generator[PlanStep, None, None]:
        """All steps, with those frames whose rows are not stored."""
        if self._answers is None:
            yield from iterate_steps(self.plan)
            return
        with closing(self._answers.steps()) as steps:
            yield from steps

    def _begun(self, steps: Iterator[PlanStep]) -> Generator[PlanStep, None, None]:
        """`steps`; from the first on that must be computed, what the next ones fetch is on its way."""
        for item in steps:
            if item[1]:
                self._operators = self._make_operators()
                self._operators.sharing.limit(self.limits.kept_bytes)
                rest = steps_ahead(self.plan, self._operators, self.snapshot, chain([item], steps))
                with closing(rest):
                    yield from rest
                return
            yield item

    def _step(self, step: Step, groups: list[Group]) -> Iterator[dict[int, pa.Table]]:
        """Fetches and decodes one segment once and takes every scan's rows from it."""
        stored: dict[int, pa.Table] = {}
        if self._answers is not None:
            stored = self._answers.take(step)
            self.measured.answered_frames = self._answers.tally.frames
        computed = {index for group in groups for index in group.scans}
        done = {index: table for index, table in stored.items() if index not in computed}
        if not computed:
            yield done
            return
        work = SegmentWork(self, replace(step, scans=tuple(sorted(computed))), groups, held=stored)
        with closing(work.run()) as parts:
            for part in parts:
                for index, tables in part.items():
                    done[index] = _by_frame([stored[index], *tables] if index in stored else tables)
                yield done
                done = {}

    def keep(self, index: int, key: Key, frames: NDArray[np.int64], outputs: pa.Table) -> None:
        """Scan `index` has computed `outputs` for `frames` [t] of a segment: nobody needs to again."""
        if self._answers is not None:
            self._answers.add(index, key, frames, outputs)

    def by_relation(self, tables: Mapping[int, pa.Table]) -> dict[str, pa.Table]:
        """Rows by scan as rows by relation."""
        return {name: table for index, table in tables.items() for name in self.plan.scans[index].relations}

    def relations(self) -> dict[str, Relation]:
        """Every relation that the plan's SQL reads, with the rows so far."""
        self._add_free_rows()
        rows: dict[str, Relation] = {}
        for index, scan in enumerate(self.plan.scans):
            table = self._rows.relation(index, relation_schema(scan.kind))
            rows |= dict.fromkeys(scan.relations, table)
        for name, schema in self.plan.relations.items():
            rows.setdefault(name, schema.empty_table())
        return rows

    def _add_free_rows(self) -> None:
        """Once: those that nothing is computed for."""
        if self._has_free_rows:
            return
        self._has_free_rows = True
        for index, scan in enumerate(self.plan.scans):
            for table in free_rows(self.plan, scan) if not scan.computes else ():
                self.check()
                self._rows.add(index, table)

    # What one segment's work needs of the run.

    @property
    def operators(self) -> Operators:
        assert self._operators is not None, "a plan with steps needs operators"
        return self._operators

    @property
    def sharing(self) -> Sharing:
        return self.operators.sharing

    def check(self) -> None:
        self._orders.check()

    def note_source(self, step: Step) -> None:
        if step.video_id not in self._read_sources:
            self._read_sources.add(step.video_id)
            self.measured.source_bytes += self.plan.segments[(step.video_id, step.segment)].source_bytes

    def note_route(self, route: Route, taken: Taken) -> None:
        if taken.made:
            self.measured.traffic += taken.value.traffic
        # An adapter of video or archive scope is one row group however many segments use it.
        if route.adapter is not None and route.adapter not in self._read_adapters:
            self._read_adapters.add(route.adapter)
            self.measured.route_bytes += taken.value.route_bytes

    def fail(self, step: Step, scans: set[int], doing: str, cause: Exception) -> None:
        """Notes the segment as skipped for `scans`, or raises where one of them does not allow that."""
        asked = [self.plan.scans[index] for index in sorted(scans)]
        names = ", ".join(scan.name for scan in asked)
        message = f"{names}, video {step.video_id} segment {step.segment}, {doing}: {cause}"
        if not isinstance(cause, NvpError):
            raise CodecError(message) from cause
        if any(scan.options.on_error == "error" for scan in asked):
            raise type(cause)(message) from cause
        for scan in asked:
            self.skipped.append(
                Skipped(
                    video_id=step.video_id, segment=step.segment, table=scan.name, reason=f"{doing}: {cause}"
                )
            )


def _by_frame(tables: Sequence[pa.Table]) -> pa.Table:
    """Rows of one segment, each table's in order, in order."""
    table = pa.concat_tables(tables)
    frames = table["frame"].to_numpy()
    if (frames[1:] >= frames[:-1]).all():
        return table
    return table.take(pa.array(np.argsort(frames, kind="stable")))


def frames_to_answer(plan: Plan) -> int:
    """Frames of all steps, counted once a scan that reads them."""
    return sum(scan.frames for scan in plan.scans if scan.computes)
