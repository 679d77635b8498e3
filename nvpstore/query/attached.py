"""The catalog's views in somebody's own DuckDB connection, read-only, beside what they have there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import duckdb

from nvpstore.catalog.files import OpenIndex
from nvpstore.catalog.tables import TABLES, VIEWS_SQL, united
from nvpstore.errors import UsageError
from nvpstore.query.names import CATALOG_VIEWS
from nvpstore.query.safety import quoted

DATABASE = "nvp"


class Indexed(Protocol):
    """A snapshot of the catalog."""

    @property
    def index(self) -> OpenIndex: ...


def attach_views(con: duckdb.DuckDBPyConnection, snapshot: Indexed) -> tuple[str, ...]:
    """Gives `con` the views `nvp.videos`, `nvp.segments`, `nvp.tasks` and `nvp.routes` of a snapshot.

    Also by plain name where `con` has nothing of that name; returns the names under which the four answer.
    A second call shows another snapshot. Nothing of `con` changes but these names. Raises UsageError where
    the index cannot be attached.
    """
    file = snapshot.index.file
    parts = dict(zip((f"{DATABASE}_base", f"{DATABASE}_delta"), file.paths, strict=False))
    try:
        _detach(con)
        for name, path in parts.items():
            con.execute(f"ATTACH {quoted(str(path))} AS {name} (READ_ONLY)")
        con.execute(f"ATTACH ':memory:' AS {DATABASE}")
        with _using(con, DATABASE):
            con.execute("CREATE SCHEMA store")
            for table in TABLES:
                con.execute(f"CREATE VIEW store.{table} AS {_rows_of(table, list(parts))}")
            con.execute(VIEWS_SQL)
        return tuple(_named(con, view) for view in CATALOG_VIEWS)
    except duckdb.Error as cause:
        raise UsageError(
            f"the index cannot be attached to this connection: {str(cause).splitlines()[0]}"
        ) from cause


def _rows_of(table: str, databases: list[str]) -> str:
    if len(databases) == 1:
        return f"FROM {databases[0]}.store.{table}"
    return united(table, base=f"{databases[0]}.store", delta=f"{databases[1]}.store")


def _detach(con: duckdb.DuckDBPyConnection) -> None:
    for name in (DATABASE, f"{DATABASE}_delta", f"{DATABASE}_base"):
        con.execute(f"DETACH DATABASE IF EXISTS {name}")


@contextmanager
def _using(con: duckdb.DuckDBPyConnection, database: str) -> Iterator[None]:
    """Within it, plain names are `database`'s; what was current before is again afterwards."""
    ((catalog, schema),) = con.execute("SELECT current_database(), current_schema()").fetchall()
    con.execute(f"USE {database}")
    try:
        yield
    finally:
        con.execute(f"USE {_identifier(catalog)}.{_identifier(schema)}")


def _named(con: duckdb.DuckDBPyConnection, view: str) -> str:
    """Makes `view` answer by its plain name, unless that is somebody else's."""
    text = f"FROM {DATABASE}.{view}"
    taken = con.execute(
        "SELECT count(*) FROM (SELECT table_name AS name, '' AS sql, database_name AS d FROM duckdb_tables()"
        " UNION ALL SELECT view_name, sql, database_name FROM duckdb_views() WHERE NOT internal)"
        " WHERE lower(name) = $view AND d NOT IN ($own, $base, $delta) AND NOT contains(sql, $text)",
        {
            "view": view,
            "own": DATABASE,
            "base": f"{DATABASE}_base",
            "delta": f"{DATABASE}_delta",
            "text": f"{DATABASE}.{view}",
        },
    ).fetchall()
    if taken[0][0]:
        return f"{DATABASE}.{view}"
    con.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS {text}")
    return view


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
