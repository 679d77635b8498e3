"""Connections to an index, each a DuckDB of its own, lent to one user at a time and used again.

Making one takes DuckDB longer than most queries of an index take.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Protocol

import duckdb

KEPT = 8  # of one index, while nobody uses them


class Terms(Protocol):
    """What a connection is made for; hashable: what one user has done with, one of equal terms gets."""

    def prepare(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Once, before its first use. Settings must be global: each user has a cursor."""

    def restore(self, connection: duckdb.DuckDBPyConnection) -> bool:
        """After each use: whether it is again as `prepare` left it."""


class Connections:
    """Of one index. Can be used by several threads."""

    def __init__(self, connect: Callable[[], duckdb.DuckDBPyConnection]) -> None:
        self._connect = connect
        self._idle: list[tuple[Terms, duckdb.DuckDBPyConnection]] = []
        self._closed = False
        self._lock = threading.Lock()

    @contextmanager
    def lend(self, terms: Terms) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor of a connection that nobody else has until the block ends.

        The cursor is closed then, and whatever was registered in it is gone. Where the block raises, the
        connection is not used again.
        """
        connection = self._take(terms)
        try:
            with closing(connection.cursor()) as cursor:
                yield cursor
            again = terms.restore(connection)
        except BaseException:
            connection.close()
            raise
        if again:
            self._keep(terms, connection)
        else:
            connection.close()

    def close(self) -> None:
        """Closes those that nobody uses now, and the others as they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def _take(self, terms: Terms) -> duckdb.DuckDBPyConnection:
        with self._lock:
            for kept in reversed(self._idle):  # the last one has the most in memory
                if kept[0] == terms:
                    self._idle.remove(kept)
                    return kept[1]
        connection = self._connect()
        try:
            terms.prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _keep(self, terms: Terms, connection: duckdb.DuckDBPyConnection) -> None:
        with self._lock:
            self._idle.append((terms, connection))
            beyond = len(self._idle) - (0 if self._closed else KEPT)
            old = [self._idle.pop(0) for _ in range(beyond)]
        for _, unused in old:
            unused.close()
