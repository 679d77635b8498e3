"""A child's side: DuckDB for one query at a time in a process of its own, asked through a pipe until it ends.

A request is a pickled tuple, its first item the name of a method of `_Desk`; rows that go with it follow as
an Arrow stream. What comes back begins with one of the bytes below. The parent trusts nothing of it: it is
read as Arrow or JSON, never unpickled.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import duckdb
import pyarrow as pa

from nvpstore.errors import QueryError
from nvpstore.query.allotment import FLOOR_BYTES
from nvpstore.query.asking import Connect
from nvpstore.query.safety import lock_down
from nvpstore.query.spill import row_files

DONE, ROWS, FAILED = b".", b"+", b"!"
IDLE_SECONDS = 60.0  # an index that nobody asks is let go of: an erasure must be able to remove it
MESSAGE_BYTES = 1 << 20  # of rows at once, but for a row that is larger
MOST_ROW_BYTES = 64 << 20
MOST_MESSAGE_BYTES = MOST_ROW_BYTES + (1 << 20)
_SPILL = "2GiB"  # of each child, on disk
_CHUNK_ROWS = 2048  # as many as DuckDB computes at once
_MOST_QUERIES = 256  # of one process: what a library leaks does not add up for ever
_MOST_GROWTH_BYTES = 128 << 20  # of a process that serves again
_MOST_TEXT = 4000
_SPARE_BYTES = 512 << 20  # thread stacks and arenas, most of it never touched


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildLimits:
    """What a child may take: bytes beyond its imports and inputs, threads ≥ 1, seconds > 0 of running (None:
    as long as its parent waits)."""

    memory_bytes: int
    threads: int
    seconds: float | None

    def __post_init__(self) -> None:
        if self.memory_bytes < 1 or self.threads < 1 or not (self.seconds is None or self.seconds > 0):
            raise ValueError(f"limits must be positive: {self}")


def opening(connect: Connect, *, threads: int) -> bytes:
    """What a child opens before it is asked: equal for equal indexes."""
    return pickle.dumps((connect, threads))


def serve(pipe: Connection, folder: Path) -> None:
    """Answers until the pipe ends, or until nobody has begun a query for a while. Spills into `folder`."""
    # No credentials and no folders of the parent's, whatever a query finds to read.
    os.environ.clear()
    desk = _Desk(pipe, folder)
    while desk.begun or not desk.opened or pipe.poll(IDLE_SECONDS):
        try:
            word, *arguments = pipe.recv()
        except EOFError:
            return
        if word == "prepare":
            desk.prepare(*arguments)
        else:
            desk.answer(word, arguments)


class _Desk:
    def __init__(self, pipe: Connection, folder: Path) -> None:
        self.opened = b""
        self.begun = False
        self._pipe, self._folder = pipe, folder
        self._index: duckdb.DuckDBPyConnection | None = None
        self._cursor: duckdb.DuckDBPyConnection | None = None  # a query's own: nothing of it stays
        self._inputs: dict[str, int] = {}  # bytes that the rows of each registered name may take
        self._granted_bytes = 0
        self._served = 0
        self._first_bytes = 0  # of memory, when the first query began

    def answer(self, word: str, arguments: Sequence[object]) -> None:
        """Do what is asked, and say that it is done or what went wrong."""
        try:
            said = getattr(self, word)(*arguments)
        except (BrokenPipeError, ConnectionResetError):
            raise  # nobody listens any more
        except MemoryError:
            self._fail("MemoryError", "the query needs more memory than it is allowed")
        except Exception as cause:
            self._fail(type(cause).__name__, str(cause))
        else:
            self._pipe.send_bytes(DONE + json.dumps(said).encode())

    def _fail(self, kind: str, text: str) -> None:
        said = {"type": kind, "text": text[:_MOST_TEXT]}
        self._pipe.send_bytes(FAILED + json.dumps(said).encode())

    @property
    def con(self) -> duckdb.DuckDBPyConnection:
        assert self._cursor is not None, "begun before anything is asked"
        return self._cursor

    def prepare(self, what: bytes) -> None:
        """Open an index ahead. Nothing is answered: what goes wrong goes wrong again with the query."""
        with contextlib.suppress(Exception):
            self._open(what)

    def _open(self, what: bytes) -> None:
        """Connect to an index, as `opening` says; nothing where that is done."""
        if what == self.opened:
            return
        if self._index is not None:
            self._index.close()
        connect, threads = pickle.loads(what)
        self._index = connect()
        lock_down(
            self._index,
            memory_limit=f"{FLOOR_BYTES >> 10}KiB",
            threads=threads,
            temp_folder=self._folder,
            temp_limit=_SPILL,
            changeable=("memory_limit",),
        )
        self.opened = what

    # ------------------------------------------------------------ what may be asked

    def begin(self, what: bytes, limits: ChildLimits) -> int:
        """A query begins, on the index that `what` opens; returns the process's number.

        From here on the system itself enforces limits.
        """
        self._open(what)
        assert self._index is not None, "opened"
        self.begun = True
        self._served += 1
        self._first_bytes = self._first_bytes or _memory_bytes()
        self._cursor = self._index.cursor()
        self.con.execute(f"SET memory_limit = '{limits.memory_bytes >> 10}KiB'")
        _limit_memory(limits.memory_bytes + _SPARE_BYTES)
        if limits.seconds is not None:
            _limit_time(limits.seconds * limits.threads)
        return os.getpid()

    def rest(self) -> bool:
        """The query is over; whether this process can serve another one as if it had served none."""
        self.con.close()
        self._cursor, self.begun = None, False
        self._inputs, self._granted_bytes = {}, 0
        assert self._index is not None, "opened"
        self._index.execute(f"SET memory_limit = '{FLOOR_BYTES >> 10}KiB'")
        spilled = self._folder.exists() and any(self._folder.iterdir())
        grown = _memory_bytes() - self._first_bytes > _MOST_GROWTH_BYTES
        return not spilled and not grown and self._served < _MOST_QUERIES

    def register(self, name: str, size_bytes: int) -> None:
        """The rows follow."""
        self._inputs[name] = 2 * size_bytes  # as they arrive, and as they are
        # For the most that there ever is at once: what rows of before took is there to be used again.
        needed = sum(self._inputs.values())
        _limit_memory(max(0, needed - self._granted_bytes), more=True)
        self._granted_bytes = max(needed, self._granted_bytes)
        self.con.register(name, pa.ipc.open_stream(self._pipe.recv_bytes()).read_all())

    def register_files(self, name: str, paths: list[str], batch_rows: int) -> None:
        self.con.register(name, row_files(paths, batch_rows=batch_rows))

    def unregister(self, name: str) -> None:
        self.con.unregister(name)
        self._inputs.pop(name, None)

    def check(self, sql: str) -> None:
        self.con.execute(f"EXPLAIN {sql}").fetchall()

    def batches(self, sql: str, rows: int) -> None:
        """Rows go out as they are computed; the columns first."""
        reader = self.con.sql(sql).to_arrow_reader(min(rows, _CHUNK_ROWS))
        self._send(reader.schema, [])
        for batch in reader:
            for part in parts(batch, most_rows=rows):
                self._send(reader.schema, [part])

    def _send(self, schema: pa.Schema, batches: list[pa.RecordBatch]) -> None:
        # A stream each: what a dictionary holds goes with the rows that refer to it.
        sink = pa.BufferOutputStream()
        sink.write(ROWS)
        with pa.ipc.new_stream(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        self._pipe.send_bytes(memoryview(sink.getvalue()))


def parts(batch: pa.RecordBatch, *, most_rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of a batch in parts of about MESSAGE_BYTES. Raises QueryError for a row that is too large."""
    if batch.num_rows == 0:
        return
    if batch.nbytes <= MESSAGE_BYTES and batch.num_rows <= most_rows:
        yield batch
        return
    if batch.num_rows == 1:
        if batch.nbytes > MOST_ROW_BYTES:
            raise QueryError(f"a row of {batch.nbytes} bytes: at most {MOST_ROW_BYTES} are allowed")
        yield batch
        return
    half = batch.num_rows // 2
    yield from parts(batch.slice(0, half), most_rows=most_rows)
    yield from parts(batch.slice(half), most_rows=most_rows)


# ---------------------------------------------------------------- limits of the system


def _memory_bytes() -> int:
    """Of address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _limit_memory(size_bytes: int, *, more: bool = False) -> None:
    """At most `size_bytes` beyond what the process has now; `more` beyond what it was allowed before."""
    allowed, hard = resource.getrlimit(resource.RLIMIT_AS)
    if not more:
        allowed = _memory_bytes()
    elif allowed == resource.RLIM_INFINITY:
        return
    resource.setrlimit(resource.RLIMIT_AS, (allowed + size_bytes, hard))


def _limit_time(cpu_seconds: float) -> None:
    """SIGXCPU ends the process after that; only the soft limit, as the next query's is later."""
    spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(spent + cpu_seconds) + 1, hard))
