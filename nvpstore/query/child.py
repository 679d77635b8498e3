"""DuckDB's part of a query in a process of its own, which the system ends at its limits.

Some of DuckDB's functions look neither at interrupts nor at its memory limit: `repeat('x', 4000000000)`.
A service that answers strangers runs their SQL here; what may be said in it is checked before, by `parse`.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import duckdb
import pyarrow as pa

from nvpstore.catalog.files import IndexFile, OpenIndex
from nvpstore.errors import QueryError
from nvpstore.query.safety import lock_down

Connect = Callable[[], duckdb.DuckDBPyConnection]
_START_SECONDS = 60.0  # a new interpreter and its imports, on a busy machine
_POLL_SECONDS = 0.05
_SPARE_BYTES = 512 * 2**20  # thread stacks and arenas, most of it never touched


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a child may take: bytes beyond its imports and inputs, threads ≥ 1, seconds > 0 of running."""

    memory_bytes: int
    threads: int
    seconds: float

    def __post_init__(self) -> None:
        if self.memory_bytes < 1 or self.threads < 1 or not self.seconds > 0:
            raise ValueError(f"limits must be positive: {self}")


def run_in_child(
    sql: str,
    *,
    connect: Connect,
    relations: Mapping[str, pa.Table],
    limits: Limits,
    cancel: threading.Event | None = None,
) -> pa.Table:
    """Runs the checked `sql` of a plan with `relations` registered, in a fresh process; returns its rows.

    `connect` gives the connection to run on; it is pickled, and called in the child (`index_connection` for
    a catalog's snapshot). Raises QueryError: what DuckDB says, or which limit was reached; the child is gone
    then.
    """
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, connect, limits), name="nvp-query", daemon=True)
    process.start()
    theirs.close()
    try:
        _await(mine, process, limits, until=time.monotonic() + _START_SECONDS, cancel=cancel)
        _hand_over(mine, sql, relations)
        reply = _await(mine, process, limits, until=time.monotonic() + limits.seconds, cancel=cancel)
    finally:
        mine.close()
        process.kill()  # whatever happened, nothing of it stays
        process.join()
    with pa.ipc.open_stream(reply) as reader:
        return reader.read_all()


def index_connection(file: IndexFile) -> duckdb.DuckDBPyConnection:
    """A connection as `Snapshot.connect` gives it, in another process: `partial(index_connection, file)`."""
    try:
        return OpenIndex(file).connect()
    except OSError as cause:
        raise QueryError(f"the index {file.path.name} is gone: an erasure replaced it; ask again") from cause


# ---------------------------------------------------------------- the parent's side


def _hand_over(pipe: Connection, sql: str, relations: Mapping[str, pa.Table]) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `_await` says why it died
        pipe.send((sql, list(relations)))
        for table in relations.values():
            pipe.send_bytes(_as_stream(table))


def _await(
    pipe: Connection,
    process: BaseProcess,
    limits: Limits,
    *,
    until: float,
    cancel: threading.Event | None,
) -> bytes:
    """The child's next message. Raises QueryError with its error, or why there is none."""
    while not pipe.poll(_POLL_SECONDS):
        if cancel is not None and cancel.is_set():
            raise QueryError("the query was cancelled")
        if time.monotonic() > until:
            raise QueryError(f"the query was stopped after {limits.seconds} s (NVP_QUERY_TIMEOUT)")
    try:
        message = pipe.recv_bytes()
    except (EOFError, ConnectionResetError):
        process.join(_START_SECONDS)
        raise _death(process.exitcode, limits) from None
    if message[:1] == b"!":
        raise QueryError(message[1:].decode())
    return message[1:]


def _death(exit_code: int | None, limits: Limits) -> QueryError:
    if exit_code == -signal.SIGXCPU:
        return QueryError(f"the query was stopped after {limits.seconds} s (NVP_QUERY_TIMEOUT)")
    return QueryError(
        f"the query was stopped: its process ended ({exit_code}), most likely for want of memory"
        f" ({limits.memory_bytes // 2**20} MiB allowed)"
    )


# ---------------------------------------------------------------- the child's side


def _serve(pipe: Connection, connect: Connect, limits: Limits) -> None:
    try:
        # No credentials and no folders of the parent's, whatever a query finds to read.
        os.environ.clear()
        con = connect()
        memory = f"{max(limits.memory_bytes // 2**20, 1)}MiB"
        lock_down(con, memory_limit=memory, threads=limits.threads)
        pipe.send_bytes(b".")
        sql, names = pipe.recv()
        for name in names:
            con.register(name, pa.ipc.open_stream(pipe.recv_bytes()).read_all())
        _limit(limits)
        rows = con.sql(sql).to_arrow_table()
        pipe.send_bytes(b"." + _as_stream(rows))
    except MemoryError:
        pipe.send_bytes(b"!the query needs more memory than it is allowed")
    except Exception as cause:
        pipe.send_bytes(b"!" + (str(cause).splitlines() or [type(cause).__name__])[0].encode())


def _limit(limits: Limits) -> None:
    """From here on the system itself refuses memory and ends the process."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    address_bytes = used + limits.memory_bytes + _SPARE_BYTES
    spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    seconds = math.ceil(spent + limits.seconds * limits.threads) + 1
    for kind, value in (
        (resource.RLIMIT_AS, address_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _as_stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())
