"""What a query may say and what its connection may do: one SELECT, no file, no network, no settings."""

from __future__ import annotations

import re
from collections.abc import Iterable

import duckdb
from sqlglot import exp

from nvpstore.errors import QueryError
from nvpstore.query.options import fault

# Everything in FROM that is neither a table of ours nor one of these is refused, known or not.
TABLE_FUNCTIONS = frozenset({"range", "generate_series", "unnest", "repeat", "json_each", "json_tree"})

REFUSED_FUNCTIONS = frozenset(
    [
        "getenv",
        "current_setting",
        "getvariable",
        "nextval",
        "currval",
        "setval",
        "setseed",
        "sleep_ms",
        "write_log",
        "query",
        "query_table",
        "json_execute_serialized_sql",
        "read_text",
        "read_blob",
        "glob",
        "pg_sleep",
    ]
)

# DuckDB calls these volatile (or lets them differ between two statements): their value when a scope is
# found says nothing about their value when the predicate is applied again.
UNSTABLE_FUNCTIONS = REFUSED_FUNCTIONS | frozenset(
    [
        "random",
        "uuid",
        "uuidv4",
        "uuidv7",
        "gen_random_uuid",
        "error",
        "stats",
        "vector_type",
        "current_query",
        "current_query_id",
        "current_connection_id",
        "current_transaction_id",
        "txid_current",
        "now",
        "get_current_timestamp",
        "transaction_timestamp",
        "current_timestamp",
        "current_date",
        "current_time",
        "today",
        "get_current_time",
        "localtime",
        "localtimestamp",
        "current_localtime",
        "current_localtimestamp",
        "age",
        "version",
        "current_database",
        "current_schema",
        "current_schemas",
        "in_search_path",
    ]
)

_STATEMENTS: tuple[type[exp.Expr], ...] = (
    *(exp.DML, exp.DDL, exp.Command, exp.Copy, exp.Attach, exp.Detach, exp.Pragma, exp.Set),
    *(exp.Show, exp.Describe, exp.Summarize, exp.Drop, exp.Use, exp.Into, exp.Lock),
)
_NAME = re.compile(r"\s*([A-Za-z_][\w$]*)")


def function_name(node: exp.Func) -> str:
    """The name under which DuckDB would find `node`, lower case; '' for operators and syntax."""
    if isinstance(node, exp.Anonymous):
        return str(node.name).lower()
    if isinstance(node, exp.Connector):
        return ""  # AND and OR count as functions in the tree; their text may be the whole query
    text = node.sql("duckdb")
    match = _NAME.match(text)
    return match.group(1).lower() if match else ""


def check_safe(tree: exp.Expr) -> None:
    """Raises QueryError where `tree` holds anything but reading. Table names are `parse`'s part."""
    for node in tree.walk():
        if isinstance(node, _STATEMENTS):
            raise fault(node, f"{node.key.upper()} is not allowed: a query is one read-only SELECT")
        if isinstance(node, exp.Func) and function_name(node) in REFUSED_FUNCTIONS:
            raise fault(node, f"function {function_name(node)} is not allowed in a query")


def unstable(nodes: Iterable[exp.Expr]) -> bool:
    """Whether one of `nodes` is a function whose value may differ from one call to the next."""
    return any(isinstance(node, exp.Func) and function_name(node) in UNSTABLE_FUNCTIONS for node in nodes)


def lock_down(con: duckdb.DuckDBPyConnection, *, memory_limit: str, threads: int) -> None:
    """Takes files, network, extensions, Python variables and settings away from `con`, for good."""
    limits = {
        "memory_limit": f"'{memory_limit}'",
        "threads": str(threads),
        "TimeZone": "'UTC'",  # a machine's own zone must not change rows
    }
    closed = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "python_enable_replacements": "false",
        "enable_external_access": "false",
        "lock_configuration": "true",  # last: nothing can be set after it
    }
    try:
        for name, value in {**limits, **closed}.items():
            con.execute(f"SET {name} = {value}")
    except duckdb.Error as cause:
        raise QueryError(f"the query connection cannot be locked down: {cause}") from cause
