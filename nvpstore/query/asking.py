"""Where DuckDB runs what a user wrote: on the query's own connection, or in another process (`child`).

What we write ourselves about the index always runs on the connection. What holds a part of a user's text (its
binding, its predicates, the query as a whole) goes through this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nvpstore.query.few import few_rows
from nvpstore.query.spill import Relation

Connect = Callable[[], duckdb.DuckDBPyConnection]


class Asking(Protocol):
    """Runs SQL on an index and on what was registered. Every method raises what DuckDB raises."""

    def register(self, name: str, rows: Relation) -> None:
        """Offer `rows` under a name, in place of what was offered under it before."""

    def unregister(self, name: str) -> None: ...

    def check(self, sql: str) -> None:
        """Bind and plan a statement; it does not run."""

    def few(self, sql: str, schema: pa.Schema) -> pa.Table:
        """What `sql` gives, with the columns of `schema`; best where rows are few."""

    def numbers(self, sql: str) -> NDArray[np.int64]:
        """The one column of whole numbers that `sql` gives."""

    def rows(self, sql: str) -> pa.Table:
        """All rows."""

    def batches(self, sql: str, rows: int) -> Iterator[pa.RecordBatch]:
        """The rows in batches of at most so many; at least one batch, maybe empty."""


class Here:
    """On a connection of this process."""

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self._con = con

    def register(self, name: str, rows: Relation) -> None:
        self._con.register(name, rows)

    def unregister(self, name: str) -> None:
        self._con.unregister(name)

    def check(self, sql: str) -> None:
        self._con.execute(f"EXPLAIN {sql}").fetchall()

    def few(self, sql: str, schema: pa.Schema) -> pa.Table:
        return few_rows(self._con, sql, schema)

    def numbers(self, sql: str) -> NDArray[np.int64]:
        (column,) = self._con.execute(sql).fetchnumpy().values()
        return np.asarray(column, dtype=np.int64)

    def rows(self, sql: str) -> pa.Table:
        return self._con.sql(sql).to_arrow_table()

    def batches(self, sql: str, rows: int) -> Iterator[pa.RecordBatch]:
        # Not as a stream: what goes wrong in one is no error of DuckDB's any more.
        yield from in_batches(self.rows(sql), rows)


def in_batches(table: pa.Table, rows: int) -> Iterator[pa.RecordBatch]:
    """A table in batches of at most so many rows; at least one batch, maybe empty."""
    batches = table.to_batches(max_chunksize=rows)
    yield from batches or [no_rows(table.schema)]


def no_rows(schema: pa.Schema) -> pa.RecordBatch:
    """A batch that tells the columns."""
    return pa.RecordBatch.from_pylist([], schema=schema)
