"""The memory of a process, divided among the queries that run in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from nvpstore.query.limits import Limits

FLOOR_BYTES = 16 << 20  # of DuckDB: with less it fails where it could spill


class Share:
    """What one running query has of the process's memory; it changes while the query runs.

    `duckdb_bytes` is DuckDB's limit now, `rows_bytes` how many bytes of rows stay in memory: what is beyond
    goes to disk with the next rows that come.
    """

    def __init__(self, limits: Limits, con: duckdb.DuckDBPyConnection) -> None:
        self.limits = limits
        self.duckdb_bytes = FLOOR_BYTES
        self.rows_bytes = 0
        self._cursor = con.cursor()  # a query may be running on the connection itself

    def fair(self, running: int) -> int:
        """DuckDB's bytes of one of so many queries."""
        return max(FLOOR_BYTES, self.limits.duckdb_bytes // running)

    def grant(self, duckdb_bytes: int) -> None:
        """Sets DuckDB's limit; it stays where DuckDB cannot let go of what it holds."""
        if duckdb_bytes == self.duckdb_bytes:
            return
        try:
            self._cursor.execute(f"SET memory_limit = '{duckdb_bytes >> 10}KiB'")
        except duckdb.Error:
            return
        self.duckdb_bytes = duckdb_bytes

    def close(self) -> None:
        self._cursor.close()


class Allotment:
    """Equal shares for all queries that run: one alone has everything.

    A query that begins makes the others' shares smaller first (DuckDB evicts to disk what it holds beyond)
    and gets what that sets free; as one ends, the others' shares grow. So all shares together are at most
    the largest `Limits.duckdb_bytes` (and `rows_bytes`) of them. Only the floor is granted whatever the
    others have: nobody waits for memory, since the query that it waits for may wait for it in turn (a stream
    whose reader asks something else between two batches).

    The batch that is being decoded and what is kept for other queries are not divided: there is one of each
    in a process, and the size of a batch must not hang on other queries.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shares: list[Share] = []

    @property
    def granted_bytes(self) -> int:
        """DuckDB's limits of all queries that run, together."""
        with self._lock:
            return sum(share.duckdb_bytes for share in self._shares)

    @contextmanager
    def share(self, limits: Limits, con: duckdb.DuckDBPyConnection) -> Iterator[Share]:
        """A query's share while the block runs; `con` is its own DuckDB, whose limit is the floor and can
        be changed."""
        share = Share(limits, con)
        with self._lock:
            self._shares.append(share)
            self._divide()
        try:
            yield share
        finally:
            with self._lock:
                self._shares.remove(share)
                share.close()
                self._divide()

    def _divide(self) -> None:
        running = len(self._shares)
        for share in self._shares:
            share.rows_bytes = share.limits.rows_bytes // running
            if share.fair(running) < share.duckdb_bytes:
                share.grant(share.fair(running))
        # Growing comes last: what was not given back cannot be granted again.
        for share in self._shares:
            if share.fair(running) > share.duckdb_bytes:
                others = sum(other.duckdb_bytes for other in self._shares if other is not share)
                free = share.limits.duckdb_bytes - others
                share.grant(max(FLOOR_BYTES, share.duckdb_bytes, min(share.fair(running), free)))


ALLOTMENT = Allotment()
