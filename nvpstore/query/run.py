"""From SQL text to a Result: parse → scope → plan → rules → run → rows → DuckDB finishes the SQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from nvpstore.errors import NvpError, QueryError
from nvpstore.query.allotment import ALLOTMENT, FLOOR_BYTES, Share
from nvpstore.query.bound import check_binds
from nvpstore.query.early import enough_rows_of
from nvpstore.query.explain import plan_table
from nvpstore.query.index import whole_of
from nvpstore.query.limits import Limits
from nvpstore.query.measured import TOTALS, Measured
from nvpstore.query.parse import Query, binder_error, parse
from nvpstore.query.plan import Plan, build_plan
from nvpstore.query.request import Request
from nvpstore.query.result import Result
from nvpstore.query.rules import improve
from nvpstore.query.safety import Locked
from nvpstore.query.scheduler import SCHEDULER
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
    with _planned(request) as asked:
        query, plan, left = asked.query, asked.plan, None
        if query.mode != "rows" and request.answers is not None:
            left = request.answers.left(plan, asked.orders.check)
        if query.mode == "explain":
            table = plan_table(plan, query.plan_format, left=left)
            return Result(table=table, plan=plan, left=left, warnings=query.warnings)
        result = _run(asked)
        if query.mode != "analyze":
            return result
        # The figures of a large plan can only be read while its query runs.
        return Result(
            table=plan_table(plan, query.plan_format, result.measured, left),
            plan=plan,
            left=left,
            measured=result.measured,
            skipped=result.skipped,
            warnings=result.warnings,
        )


def execute_stream(request: Request) -> Generator[pa.RecordBatch, None, None]:
    """The rows of a SELECT in batches, with the errors of `execute`; at least one, maybe empty.

    Rows of a query that filters and projects one task table come as each segment is done, in its order, and
    no more is kept; others come once all are there. Close it, and nothing more is decoded.
    """
    with _planned(request) as asked:
        if asked.query.mode != "rows":
            raise QueryError("EXPLAIN has no rows to stream")
        if asked.plan.streams and asked.plan.steps.num_rows:
            yield from _streamed(asked)
        else:
            table = _run(asked).arrow()
            yield from _batches(table) or _no_rows(table.schema)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A query ready to run on its own connection, with its share of the memory."""

    request: Request
    con: duckdb.DuckDBPyConnection
    query: Query
    plan: Plan
    orders: Orders
    share: Share

    def finish(self, relations: Mapping[str, Relation]) -> pa.Table:
        """The plan's SQL on these rows."""
        for name, rows in relations.items():
            self.con.register(name, rows)
        try:
            return self.con.sql(self.plan.sql).to_arrow_table()
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
def _planned(request: Request) -> Iterator[_Asked]:
    """The query planned on a locked connection that is its own while the block runs; its deadline runs."""
    orders, settings = _orders(request), request.settings
    given = given_tables(request.tables)
    with (
        request.snapshot.lend(Locked(memory_mib=FLOOR_BYTES >> 20, threads=settings.threads)) as con,
        SCHEDULER.query(),
        ALLOTMENT.share(orders.limits, con) as share,
        _deadline(con, orders.cancel, settings.query_seconds),
    ):
        index = whole_of(request.snapshot, con)
        names = {task.name for task in index.tasks}
        query = parse(
            request.sql,
            names,
            params=request.params,
            tables=given.keys(),
            views=request.views,
            saved=load_views(con, request.snapshot),
        )
        register_tables(con, given)
        check_binds(con, query, list(index.tasks))
        query = with_texts(
            query, index.tasks, lambda task, texts: _operators(request).embed_texts(task, texts)
        )
        plan = build_plan(query, con=con, index=index, snapshot_number=request.snapshot.number)
        yield _Asked(request=request, con=con, query=query, plan=improve(plan), orders=orders, share=share)


_MAKING = threading.Lock()


def _operators(request: Request) -> Operators:
    # One query at a time makes what steps run on, so that those after it share it.
    with _MAKING:
        return request.operators_factory()


@contextmanager
def _runner(asked: _Asked, warnings: list[str]) -> Iterator[Runner]:
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


def _run(asked: _Asked) -> Result:
    warnings = list(asked.query.warnings)
    with _runner(asked, warnings) as runner:
        measured = runner.measured
        runner.run(enough_rows_of(asked.con, asked.query, asked.plan))
        with measured.timed("duckdb"):
            table = asked.finish(runner.relations())
    return Result(
        table=table,
        plan=asked.plan,
        measured=measured,
        skipped=tuple(runner.skipped),
        warnings=tuple(warnings),
    )


def _streamed(asked: _Asked) -> Iterator[pa.RecordBatch]:
    with _runner(asked, warnings=[]) as runner:
        schema = asked.finish(runner.relations()).schema  # of no rows yet
        yield from _no_rows(schema)
        with closing(runner.tables()) as steps:
            for tables in steps:
                if tables:
                    yield from _batches(asked.finish(runner.by_relation(tables)))


def _batches(table: pa.Table) -> list[pa.RecordBatch]:
    return list(table.to_batches(max_chunksize=STREAM_ROWS))


def _no_rows(schema: pa.Schema) -> list[pa.RecordBatch]:
    """One batch that tells the columns."""
    return [pa.RecordBatch.from_pylist([], schema=schema)]


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
            raise QueryError(f"the query was stopped after {seconds} s (NVP_QUERY_TIMEOUT)") from cause
        if stop.is_set() or isinstance(cause, duckdb.InterruptException):
            raise QueryError("the query was cancelled") from cause
        raise
    finally:
        done.set()
        watcher.join()
