"""Rows of the index as Arrow, where they are expected to be few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa

FEW = 1024  # rows


def few_rows(
    con: duckdb.DuckDBPyConnection, sql: str, schema: pa.Schema, parameters: Sequence[Any] = ()
) -> pa.Table:
    """What `sql` gives, with the columns of `schema`.

    `con.sql` binds a query twice: for a few rows that is half of what it takes. Only where there are more
    than `FEW` are they asked for in that way, whatever their number.
    """
    con.execute(sql, list(parameters))
    rows = con.fetchmany(FEW + 1)
    if len(rows) > FEW:
        con.abort()
        return rows_of(con, sql, schema, parameters)
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)


def rows_of(
    con: duckdb.DuckDBPyConnection, sql: str, schema: pa.Schema, parameters: Sequence[Any] = ()
) -> pa.Table:
    """The same for any number of rows."""
    return con.sql(sql, params=list(parameters)).to_arrow_table().cast(schema)
