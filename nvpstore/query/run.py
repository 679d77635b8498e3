"""From SQL text to a Result: parse → scope → plan → rules → run → rows → DuckDB finishes the SQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from nvpstore.config import Settings
from nvpstore.errors import NvpError, QueryError
from nvpstore.query.explain import explain_text
from nvpstore.query.index import load_tasks
from nvpstore.query.measured import Measured
from nvpstore.query.parse import Params, Query, binder_error, parse
from nvpstore.query.plan import Plan, Snapshot, build_plan, resolve_task
from nvpstore.query.relation import relation_schema
from nvpstore.query.result import Result
from nvpstore.query.rules import improve
from nvpstore.query.safety import lock_down
from nvpstore.query.steps import BATCH_FRAMES, Operators, run_plan
from nvpstore.types import TaskRecord

_POLL_SECONDS = 0.05


def execute(
    sql: str,
    *,
    snapshot: Snapshot,
    operators_factory: Callable[[], Operators],
    settings: Settings,
    params: Params | None = None,
    cancel: threading.Event | None = None,
    batch_frames: int = BATCH_FRAMES,
) -> Result:
    """Answers one read-only SELECT (or EXPLAIN [ANALYZE] of one) on `snapshot`.

    `operators_factory` is called only where frames must be decoded. Raises QueryError, RouteError, and the
    step's own error where a step fails; QueryError after `settings.query_seconds` or once `cancel` is set.
    """
    stop = threading.Event() if cancel is None else cancel
    con = snapshot.connect()
    try:
        lock_down(con, memory_limit=f"{settings.memory_bytes // 2**20}MiB", threads=settings.threads)
        with _deadline(con, stop, settings.query_seconds):
            query, plan = _plan(con, sql, snapshot=snapshot, params=params)
            if query.mode == "explain":
                return Result(table=_text_table(explain_text(plan)), plan=plan)
            result = _run(
                con, query, plan, operators_factory, snapshot=snapshot, cancel=stop, batch_frames=batch_frames
            )
    finally:
        con.close()
    if query.mode == "analyze":
        text = explain_text(plan, result.measured)
        return Result(table=_text_table(text), plan=plan, measured=result.measured, skipped=result.skipped)
    return result


def _plan(
    con: duckdb.DuckDBPyConnection, sql: str, *, snapshot: Snapshot, params: Params | None
) -> tuple[Query, Plan]:
    tasks = load_tasks(con)
    query = parse(sql, {task.name for task in tasks}, params=params)
    check_binds(con, query, tasks)
    plan = build_plan(query, con=con, tasks=tasks, snapshot_number=snapshot.number)
    return query, improve(plan)


def check_binds(con: duckdb.DuckDBPyConnection, query: Query, tasks: list[TaskRecord]) -> None:
    """Lets DuckDB bind the query on empty relations: unknown names and wrong types fail before any work."""
    for table in query.tables:
        task = resolve_task(table, tasks)
        con.register(table.relation, relation_schema("frames" if task is None else task.kind).empty_table())
    try:
        con.execute(f"EXPLAIN {query.sql}").fetchall()
    except duckdb.Error as cause:
        raise binder_error(cause, query.tree) from cause
    finally:
        for table in query.tables:
            con.unregister(table.relation)


def _run(
    con: duckdb.DuckDBPyConnection,
    query: Query,
    plan: Plan,
    operators_factory: Callable[[], Operators],
    *,
    snapshot: Snapshot,
    cancel: threading.Event,
    batch_frames: int,
) -> Result:
    measured = Measured()
    operators = operators_factory() if plan.steps.num_rows else None
    outcome = run_plan(
        plan, operators, snapshot=snapshot, measured=measured, cancel=cancel, batch_frames=batch_frames
    )
    for relation, rows in outcome.rows.items():
        con.register(relation, rows)
    try:
        with measured.timed("duckdb"):
            table = con.sql(plan.sql).to_arrow_table()
    except duckdb.InterruptException:
        raise
    except duckdb.Error as cause:
        raise binder_error(cause, query.tree) from cause
    return Result(table=table, plan=plan, measured=measured, skipped=outcome.skipped)


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


def _text_table(text: str) -> pa.Table:
    return pa.table({"plan": text.splitlines()})
