"""What the views and tasks of an archive may be called: names that stand for tables in SQL."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache

import duckdb
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from nvpstore.errors import QueryError, UsageError
from nvpstore.query.names import check_given
from nvpstore.storage import keys


def check_table_name(
    name: str, *, what: str, tasks: Collection[str] = (), taken: Mapping[str, str] | None = None
) -> None:
    """Raises UsageError where no `what` ("view" or "task") can have this name.

    `tasks` are names of tasks that it may not have; `taken` says of other names why not.
    """
    keys.check_name(name)
    try:
        check_given([name], tasks=tasks)
    except QueryError as cause:
        raise _refused(name, what, str(cause)) from None
    if taken and name in taken:
        raise _refused(name, what, taken[name])
    if name in _words_of_sql() or not _is_read_as_a_table(name):
        raise _refused(name, what, "it is a word or a table function of SQL")


def _refused(name: str, what: str, why: str) -> UsageError:
    return UsageError(
        f"no {what} can be called {name!r}: {why}. "
        "Allowed is a lowercase letter, then up to 62 of a-z 0-9 _, where that means nothing else"
    )


@cache
def _words_of_sql() -> frozenset[str]:
    """Keywords that DuckDB reserves somewhere, and its table functions."""
    words = (
        "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category <> 'unreserved' UNION "
        "SELECT function_name FROM duckdb_functions() WHERE function_type IN ('table', 'table_macro')"
    )
    with duckdb.connect(":memory:") as con:
        return frozenset(word for (word,) in con.execute(words).fetchall())


def _is_read_as_a_table(name: str) -> bool:
    try:
        tree = sqlglot.parse_one(f"SELECT * FROM {name}", read="duckdb")
    except SqlglotError:
        return False
    table = tree.find(exp.Table)
    return table is not None and table.name == name and isinstance(table.this, exp.Identifier)
