"""DuckDB's part of a query in a process of its own, which the system ends at its limits: the parent's side.

Some of DuckDB's functions look neither at interrupts nor at its memory limit: `repeat('x', 4000000000)`.
A service that answers strangers runs their SQL here; what may be said in it is checked before, by `parse`.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nvpstore import errors
from nvpstore.errors import NvpError, QueryError, QueryTimeout
from nvpstore.query.asking import no_rows
from nvpstore.query.scheduler import Cancelled
from nvpstore.query.serving import FAILED, MOST_MESSAGE_BYTES, ROWS, ChildLimits
from nvpstore.query.spill import Relation, RowFiles

_POLL_SECONDS = 0.05
_PLAN_ROWS = 1 << 17


class Child:
    """Runs SQL as `Asking` says, in a process that has begun a query.

    Every method raises Cancelled once `stop` is set, QueryTimeout or QueryError where the process reached a
    limit. It can be asked nothing more then.
    """

    def __init__(
        self, pipe: Connection, *, limits: ChildLimits, stop: threading.Event, exit_code: Callable[[], str]
    ) -> None:
        """`exit_code` says how the process ended, once its pipe has."""
        self._pipe, self._limits, self._stop, self._exit_code = pipe, limits, stop, exit_code
        self.pid: int | None = None  # known once it has begun
        self._asked = False  # something whose last answer has not been read

    def begin(self, opening: bytes) -> bool:
        """The first word; False where the process had ended before. Raises StoreError: the index is gone."""
        self._send("begin", opening, self._limits)
        try:
            self.pid = int(_checked(self._message())[1:])
        except EOFError:
            return False
        self._asked = False
        return True

    def rest(self) -> bool:
        """The query is over; whether the process can serve another one. It can be asked nothing more."""
        if self._asked:
            return False
        try:
            self._send("rest")
            return json.loads(self._reply()[1:]) is True
        except (NvpError, duckdb.Error):
            return False

    # ------------------------------------------------------------ what may be asked

    def register(self, name: str, rows: Relation) -> None:
        if isinstance(rows, RowFiles):
            self._do("register_files", name, rows.files, rows.batch_rows)
            return
        if not isinstance(rows, pa.Table):
            raise TypeError(f"rows of type {type(rows).__name__} cannot go to another process")
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
        stream = sink.getvalue()
        self._do("register", name, stream.size, follows=memoryview(stream))

    def unregister(self, name: str) -> None:
        self._do("unregister", name)

    def check(self, sql: str) -> None:
        self._do("check", sql)

    def few(self, sql: str, schema: pa.Schema) -> pa.Table:
        return self.rows(sql).cast(schema)

    def numbers(self, sql: str) -> NDArray[np.int64]:
        (column,) = self.rows(sql).columns
        return np.asarray(column.to_numpy(), dtype=np.int64)

    def rows(self, sql: str) -> pa.Table:
        return pa.Table.from_batches(self.batches(sql, _PLAN_ROWS))

    def batches(self, sql: str, rows: int) -> Iterator[pa.RecordBatch]:
        """Rows that come before an error are given before it is raised."""
        self._send("batches", sql, rows)
        schema, some = None, False
        while (message := self._reply())[:1] == ROWS:
            with pa.ipc.open_stream(memoryview(message)[1:]) as reader:
                schema = reader.schema
                for batch in reader:
                    some = True
                    yield batch
        if not some:
            assert schema is not None, "the columns come first"
            yield no_rows(schema)

    # ------------------------------------------------------------ the pipe

    def _do(self, word: str, *arguments: object, follows: memoryview | None = None) -> None:
        self._send(word, *arguments, follows=follows)
        self._reply()

    def _send(self, word: str, *arguments: object, follows: memoryview | None = None) -> None:
        self._asked = True
        try:
            self._pipe.send((word, *arguments))
            if follows is not None:
                self._pipe.send_bytes(follows)
        except (BrokenPipeError, ConnectionResetError):
            pass  # `_reply` says why it ended

    def _reply(self) -> bytes:
        """The next message. Raises the error that it tells, or why there is none."""
        try:
            message = _checked(self._message())
        except EOFError:
            raise self._death() from None
        self._asked = message[:1] == ROWS
        return message

    def _message(self) -> bytes:
        """Raises EOFError where there is none any more."""
        try:
            while not self._pipe.poll(_POLL_SECONDS):
                if self._stop.is_set():
                    raise Cancelled("the query was cancelled")
            return self._pipe.recv_bytes(MOST_MESSAGE_BYTES)
        except OSError as cause:
            raise EOFError from cause

    def _death(self) -> QueryError:
        code = self._exit_code()
        if code == str(-signal.SIGXCPU):
            return QueryTimeout(f"the query was stopped after {self._limits.seconds} s (NVP_QUERY_TIMEOUT)")
        return QueryError(
            f"the query was stopped: its process ended ({code}), most likely for want of memory"
            f" ({self._limits.memory_bytes >> 20} MiB allowed)"
        )


def _checked(message: bytes) -> bytes:
    if message[:1] == FAILED:
        raise _told(json.loads(message[1:]))
    return message


def _told(said: dict[str, Any]) -> Exception:
    """A child's error as one of ours or of DuckDB's, by name."""
    name, text = str(said["type"]), str(said["text"])
    if name == "MemoryError":
        return QueryError(text)
    for known, root in ((errors, NvpError), (duckdb, duckdb.Error)):
        kind = getattr(known, name, None)
        if isinstance(kind, type) and issubclass(kind, root):
            return kind(text)
    # While rows are streamed, DuckDB's errors come through Arrow.
    if name.startswith("Arrow") or name == "OSError":
        return duckdb.Error(text)
    return RuntimeError(f"{name} in a query's process: {text}")
