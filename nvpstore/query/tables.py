"""A caller's own tables beside the archive's: any Arrow data, read once, registered under its name."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import duckdb
import pyarrow as pa

from nvpstore.errors import QueryError

_ALLOWED = "a pandas or Polars frame, or an Arrow table, record batch or reader"


def given_tables(tables: Mapping[str, Any] | None) -> dict[str, pa.Table]:
    """Every value as an Arrow table, so that it cannot change while a query runs; a reader is used up.

    Raises QueryError for what is no table, for relations of other DuckDB connections, and for columns that
    have no Arrow type.
    """
    return {name: _as_arrow(name, value) for name, value in (tables or {}).items()}


def register_tables(con: duckdb.DuckDBPyConnection, tables: Mapping[str, pa.Table]) -> None:
    """Offers `tables` to the queries of `con` by their names, as `parse` knows them."""
    for name, table in tables.items():
        try:
            con.register(name, table)
        except duckdb.Error as cause:
            raise QueryError(f'table "{name}" cannot be used: {str(cause).splitlines()[0]}') from cause


def _as_arrow(name: str, value: Any) -> pa.Table:
    if isinstance(value, (duckdb.DuckDBPyRelation, duckdb.DuckDBPyConnection)):
        # Its connection could be used by somebody else at the same time, and could reach files.
        raise QueryError(f'table "{name}" belongs to another DuckDB connection: give its .to_arrow_table()')
    try:
        table = _converted(value)
    except (pa.ArrowException, TypeError, ValueError) as cause:
        raise QueryError(f'table "{name}" cannot be read as Arrow: {str(cause).splitlines()[0]}') from cause
    if table is None:
        raise QueryError(f'table "{name}" is of type {type(value).__name__}: allowed is {_ALLOWED}')
    _check_columns(name, table)
    return table


def _converted(value: Any) -> pa.Table | None:
    """An Arrow table of `value`; None where it holds no table."""
    if isinstance(value, pa.Table):
        return value
    if isinstance(value, pa.RecordBatch):
        return pa.Table.from_batches([value])
    if isinstance(value, pa.RecordBatchReader):
        return value.read_all()
    pandas = sys.modules.get("pandas")  # nobody has a frame of it without having imported it
    if pandas is not None and isinstance(value, pandas.DataFrame):
        return pa.Table.from_pandas(value, preserve_index=False)
    if hasattr(value, "__arrow_c_stream__"):
        return pa.table(value)
    return None


def _check_columns(name: str, table: pa.Table) -> None:
    if not table.column_names:
        raise QueryError(f'table "{name}" has no columns')
    seen: set[str] = set()
    for column in table.column_names:
        if column.lower() in seen:  # DuckDB knows no case, and would rename the second one
            raise QueryError(f'table "{name}" has column "{column}" twice (upper and lower case are equal)')
        seen.add(column.lower())
