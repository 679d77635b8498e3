"""From SQL text to a Result: parse → scope → plan → rules → run → rows → DuckDB finishes the SQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace

import duckdb
import pyarrow as pa

from nvpstore.errors import NvpError, QueryError, QueryTimeout
from nvpstore.query.allotment import ALLOTMENT, FLOOR_BYTES, Share
from nvpstore.query.asking import Asking, Here, in_batches, no_rows
from nvpstore.query.bound import check_binds
from nvpstore.query.early import enough_rows_of
from nvpstore.query.explain import plan_table
from nvpstore.query.index import Whole, whole_of
from nvpstore.query.limits import Limits
from nvpstore.query.measured import TOTALS, Measured
from nvpstore.query.parse import Mode, PlanFormat, Query, binder_error, parse
from nvpstore.query.plan import Plan, Skipped, build_plan
from nvpstore.query.request import Request
from nvpstore.query.result import Result
from nvpstore.query.rules import improve
from nvpstore.query.safety import Locked
from nvpstore.query.scheduler import SCHEDULER
from nvpstore.query.serving import ChildLimits
from nvpstore.query.spill import Relation, Rows
from nvpstore.query.steps import Operators, Orders, Runner
from nvpstore.query.tables import given_tables, register_tables
from nvpstore.query.texts import with_texts
from nvpstore.query.views import load_views

_POLL_SECONDS = 0.05
STREAM_ROWS = 8192


def execute(request: Request) -> Result:
    """Answers a request.

    Raises QueryError, RouteError, and the step's own error where a step fails; QueryError after
    `settings.query_seconds` or once `cancel` is set.
    """
    with planned(request) as asked:
        return _run(asked) if asked.query.mode == "rows" else _explained(asked)


class Stream(Iterator[pa.RecordBatch]):
    """The rows of a query in batches, as they are computed, and what is said of them. Begins with the first
    batch; close it, and nothing more is decoded.

    `plan` is None before the first batch. `warnings` and `skipped` may grow until the last one.
    """

    def __init__(self, request: Request) -> None:
        self.plan: Plan | None = None
        self._warnings: list[str] = []
        self._skipped: Sequence[Skipped] = ()
        self._batches = self._stream(request)

    def __next__(self) -> pa.RecordBatch:
        return next(self._batches)

    def close(self) -> None:
        self._batches.close()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines about conditions that cannot hold, and about stored answers."""
        return tuple(self._warnings)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Segments that `on_error := 'skip'` left out so far."""
        return tuple(self._skipped)

    def _stream(self, request: Request) -> Generator[pa.RecordBatch, None, None]:
        with planned(request) as asked:
            self.plan, self._skipped = asked.plan, asked.plan.skipped
            self._warnings += asked.query.warnings
            if asked.query.mode != "rows":
                yield from in_batches(_explained(asked).arrow(), STREAM_ROWS)
                return
            with runner_of(asked, self._warnings) as runner:
                self._skipped = runner.skipped
                streams = asked.plan.streams and asked.plan.steps.num_rows
                yield from (_by_step if streams else _at_the_end)(asked, runner)


def execute_stream(request: Request) -> Stream:
    """The rows of a request in batches, with the errors of `execute`; at least one batch, maybe empty.

    Rows of a query that filters and projects one task table come as each segment is done, in its order, and
    no more is kept; others come once all segments are done.
    """
    return Stream(request)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A query ready to run on its own connection, with its share of the memory."""

    request: Request
    asking: Asking
    query: Query
    plan: Plan
    orders: Orders
    share: Share

    def finish(self, relations: Mapping[str, Relation]) -> pa.Table:
        """What the plan's SQL gives on these rows."""
        with self._given(relations):
            return self.asking.rows(self.plan.sql)

    def finish_in_batches(self, relations: Mapping[str, Relation]) -> Iterator[pa.RecordBatch]:
        """The same in batches; at least one, maybe empty."""
        with self._given(relations):
            yield from self.asking.batches(self.plan.sql, STREAM_ROWS)

    @contextmanager
    def _given(self, relations: Mapping[str, Relation]) -> Iterator[None]:
        for name, rows in relations.items():
            self.asking.register(name, rows)
        try:
            yield
        except duckdb.InterruptException:
            raise
        except duckdb.Error as cause:
            raise binder_error(cause, self.query.tree) from cause


def _orders(request: Request) -> Orders:
    return Orders(
        cancel=threading.Event() if request.cancel is None else request.cancel,
        limits=Limits(memory_bytes=request.settings.memory_bytes),
        batch_frames=request.batch_frames,
        on_progress=request.on_progress,
    )


@contextmanager
def planned(request: Request) -> Iterator[Asked]:
    """The query planned on a locked connection that is its own while the block runs; its deadline runs."""
    orders, settings = _orders(request), request.settings
    given = given_tables(request.tables)
    seconds = settings.query_seconds if request.seconds is None else request.seconds
    with (
        request.snapshot.lend(Locked(memory_mib=FLOOR_BYTES >> 20, threads=settings.threads)) as con,
        SCHEDULER.query(),
        ALLOTMENT.share(orders.limits, con) as share,
        _deadline(con, orders.cancel, seconds),
    ):
        index = whole_of(request.snapshot, con)
        query = _parsed(request, con, index, given)
        register_tables(con, given)
        with _asking(request, con, orders, seconds) as asking:
            for name, table in given.items() if request.children is not None else ():
                asking.register(name, table)
            check_binds(asking, query, list(index.tasks))
            query = with_texts(
                query, index.tasks, lambda task, texts: _operators(request).embed_texts(task, texts)
            )
            number = request.snapshot.number
            plan = build_plan(query, con=con, index=index, snapshot_number=number, asking=asking)
            yield Asked(
                request=request, asking=asking, query=query, plan=improve(plan), orders=orders, share=share
            )


def _parsed(
    request: Request, con: duckdb.DuckDBPyConnection, index: Whole, given: Mapping[str, pa.Table]
) -> Query:
    query = parse(
        request.sql,
        {task.name for task in index.tasks},
        params=request.params,
        tables=given.keys(),
        views=request.views,
        saved=load_views(con, request.snapshot),
        con=con,
    )
    return query if request.explain is None else _as_explain(query, request.explain)


@contextmanager
def _asking(
    request: Request, con: duckdb.DuckDBPyConnection, orders: Orders, seconds: float | None
) -> Iterator[Asking]:
    """Where the caller's SQL runs: on `con`, or in a child."""
    if request.children is None:
        yield Here(con)
        return
    limits = ChildLimits(
        memory_bytes=orders.limits.duckdb_bytes, threads=request.settings.threads, seconds=seconds
    )
    connect = request.snapshot.elsewhere()
    with request.children.lend(connect, limits=limits, stop=orders.cancel) as child:
        yield child


def _as_explain(query: Query, plan_format: PlanFormat) -> Query:
    mode: Mode = "explain" if query.mode == "rows" else query.mode
    return replace(query, mode=mode, plan_format=plan_format)


_MAKING = threading.Lock()


def _operators(request: Request) -> Operators:
    # One query at a time makes what steps run on, so that those after it share it.
    with _MAKING:
        return request.operators_factory()


@contextmanager
def runner_of(asked: Asked, warnings: list[str]) -> Iterator[Runner]:
    """Who carries out the query; `warnings` gets what is said of stored answers."""
    request = asked.request
    answers = request.answers
    with (
        Rows(limit=lambda: asked.share.rows_bytes) as rows,
        nullcontext() if answers is None else answers.answering(asked.plan, warnings) as stored,
    ):
        measured = Measured()
        try:
            yield Runner(
                asked.plan,
                lambda: _operators(request),
                snapshot=request.snapshot,
                measured=measured,
                orders=asked.orders,
                rows=rows,
                answers=stored,
            )
        finally:
            TOTALS.add(measured)


def _explained(asked: Asked) -> Result:
    """What EXPLAIN of a query answers; with ANALYZE the query runs."""
    plan, plan_format, answers = asked.plan, asked.query.plan_format, asked.request.answers
    left = None if answers is None else answers.left(plan, asked.orders.check)
    if asked.query.mode == "explain":
        table = plan_table(plan, plan_format, left=left)
        return Result(table=table, plan=plan, left=left, warnings=asked.query.warnings)
    result = _run(asked)
    # The figures of a large plan can only be read while its query runs.
    return Result(
        table=plan_table(plan, plan_format, result.measured, left),
        plan=plan,
        left=left,
        measured=result.measured,
        skipped=result.skipped,
        warnings=result.warnings,
    )


def _run(asked: Asked) -> Result:
    warnings = list(asked.query.warnings)
    with runner_of(asked, warnings) as runner:
        measured = runner.measured
        runner.run(enough_rows_of(asked.asking, asked.query, asked.plan))
        with measured.timed("duckdb"):
            table = asked.finish(runner.relations())
    return Result(
        table=table,
        plan=asked.plan,
        measured=measured,
        skipped=tuple(runner.skipped),
        warnings=tuple(warnings),
    )


def _by_step(asked: Asked, runner: Runner) -> Iterator[pa.RecordBatch]:
    """What each step's rows give, as it is done; first of all a batch of no rows that tells the columns."""
    yield no_rows(asked.finish(runner.relations()).schema)
    with closing(runner.tables()) as steps:
        for tables in steps:
            if tables:
                batches = asked.finish_in_batches(runner.by_relation(tables))
                yield from (batch for batch in batches if batch.num_rows)


def _at_the_end(asked: Asked, runner: Runner) -> Iterator[pa.RecordBatch]:
    """What the rows of all steps give."""
    runner.run(enough_rows_of(asked.asking, asked.query, asked.plan))
    yield from asked.finish_in_batches(runner.relations())


@contextmanager
def _deadline(con: duckdb.DuckDBPyConnection, stop: threading.Event, seconds: float | None) -> Iterator[None]:
    """Stops DuckDB and the steps after `seconds`, and DuckDB too once `stop` is set by somebody else."""
    done, late = threading.Event(), threading.Event()
    end = None if seconds is None else time.monotonic() + seconds

    def watch() -> None:
        while not done.wait(_POLL_SECONDS):
            if end is not None and time.monotonic() > end:
                late.set()
                stop.set()
            if stop.is_set():
                con.interrupt()  # again and again: between two statements it is forgotten

    watcher = threading.Thread(target=watch, name="query-deadline", daemon=True)
    watcher.start()
    try:
        yield
    except (NvpError, duckdb.InterruptException) as cause:
        if late.is_set():
            raise QueryTimeout(f"the query was stopped after {seconds} s (NVP_QUERY_TIMEOUT)") from cause
        if stop.is_set() or isinstance(cause, duckdb.InterruptException):
            raise QueryError("the query was cancelled") from cause
        raise
    finally:
        done.set()
        watcher.join()
