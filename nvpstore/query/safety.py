"""What a query may say and what its connection may do: one SELECT, no file, no network, no settings."""

from __future__ import annotations

import functools
import os
import re
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
from sqlglot import exp

from nvpstore.errors import QueryError
from nvpstore.query.options import fault

# Everything in FROM that is neither a table of ours nor one of these is refused, known or not.
TABLE_FUNCTIONS = frozenset({"range", "generate_series", "unnest", "repeat", "json_each", "json_tree"})

# Functions that read the process, its settings or the catalog, that run or plan SQL, that write, wait or hang
# on hidden state, and DuckDB's own parts that trust their arguments.
REFUSED_FUNCTIONS = frozenset(
    [
        *("getenv", "current_setting", "getvariable", "nextval", "currval", "setval", "setseed"),
        *("sleep_ms", "pg_sleep", "write_log", "parse_duckdb_log_message"),
        *("query", "query_table", "json_execute_serialized_sql", "read_text", "read_blob", "glob"),
        *("json_serialize_sql", "json_deserialize_sql", "json_serialize_plan"),
        *("current_query", "current_query_id", "current_connection_id", "current_transaction_id"),
        *("txid_current", "current_database", "current_schema", "current_schemas", "current_catalog"),
        *("current_user", "current_role", "session_user", "user", "in_search_path", "version"),
        *("get_block_size", "index_key", "col_description", "obj_description", "shobj_description"),
        *("stats", "vector_type", "can_cast_implicitly", "create_sort_key", "icu_sort_key"),
        *("finalize", "combine", "combine_aggr", "to_aggregate_state", "invoke", "replace_type"),
        *("remap_struct", "sum_no_overflow", "constant_or_null", "add_parquet_key", "which_secret"),
        *("variant_bytes_to_variant", "variant_to_parquet_variant"),
    ]
)
_REFUSED_PREFIXES = ("__", "pg_", "has_", "inet_", "duckdb_", "pragma_", "read_", "write_", "http", "icu_")
_HARMLESS = frozenset({"pg_typeof", "pg_size_pretty"})

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
    if isinstance(node, exp.Binary):
        return ""  # AND, OR and -> count as functions in the tree; their text may be the whole query
    text = node.sql("duckdb")
    match = _NAME.match(text)
    return match.group(1).lower() if match else ""


def check_safe(tree: exp.Expr) -> None:
    """Raises QueryError where `tree` holds anything but reading. Table names are `parse`'s part."""
    for node in tree.walk():
        if isinstance(node, _STATEMENTS):
            raise fault(node, f"{node.key.upper()} is not allowed: a query is one read-only SELECT")
        if isinstance(node, exp.Func) and is_refused(function_name(node)):
            raise fault(node, f"function {function_name(node)} is not allowed in a query")


def is_refused(function: str) -> bool:
    """Whether a query may not call the scalar or aggregate function of this (lower-case) name."""
    if function in _HARMLESS:
        return False
    return function in REFUSED_FUNCTIONS or function.startswith(_REFUSED_PREFIXES)


# `a LEFT JOIN b ON … AND b.x IS NULL WHERE b.y IS NULL` loses rows in DuckDB 2.0.0: it becomes an anti join
# without the condition on b.x (duckdb issues 24540, 24623).
_WRONG_OPTIMIZERS = ("outer_join_simplification",)

_extracting = threading.Lock()


@functools.cache
def _extractor() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(":memory:", config={"enable_external_access": "false", "threads": "1"})


def check_extracted(sql: str, con: duckdb.DuckDBPyConnection | None = None) -> None:
    """Raises QueryError unless DuckDB itself reads the generated `sql` as exactly one SELECT."""
    try:
        if con is not None:
            statements = con.extract_statements(sql)
        else:
            with _extracting:  # a connection is not for two threads at once
                statements = _extractor().extract_statements(sql)
    except duckdb.Error as cause:
        raise QueryError(f"DuckDB cannot read the query: {str(cause).splitlines()[0]}") from cause
    kinds = [statement.type for statement in statements]
    if kinds != [duckdb.StatementType.SELECT]:
        hint = "; PIVOT needs its values: ON label IN ('cat', 'dog')" if "PIVOT" in sql.upper() else ""
        raise QueryError(f"DuckDB does not read the query as one SELECT{hint}")


def unstable(nodes: Iterable[exp.Expr]) -> bool:
    """Whether one of `nodes` is a function whose value may differ from one call to the next."""
    return any(isinstance(node, exp.Func) and function_name(node) in UNSTABLE_FUNCTIONS for node in nodes)


def lock_down(
    con: duckdb.DuckDBPyConnection,
    *,
    memory_limit: str,
    threads: int,
    temp_folder: Path | None = None,
    temp_limit: str = "4GiB",
    changeable: Sequence[str] = (),
) -> None:
    """Takes files, network, extensions, Python variables and settings but `changeable` away from `con`, and
    from all cursors of it.

    What does not fit into `memory_limit` spills into `temp_folder` (default: one of this process among the
    machine's temporary files), at most `temp_limit` of it; DuckDB removes it with the connection.
    """
    folder = Path(tempfile.gettempdir()) / f"nvp-spill-{os.getpid()}" if temp_folder is None else temp_folder
    limits = {
        "disabled_optimizers": quoted(",".join(_disabled(con))),
        "memory_limit": quoted(memory_limit),
        "threads": str(threads),
        "GLOBAL TimeZone": "'UTC'",  # a machine's own zone must not change rows
        "temp_directory": quoted(str(folder)),
        "max_temp_directory_size": quoted(temp_limit),
        "enable_progress_bar": "false",
    }
    closed = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
        "allow_persistent_secrets": "false",
        "GLOBAL python_enable_replacements": "false",  # of cursors too
        "enable_external_access": "false",
        "allowed_configs": f"[{', '.join(map(quoted, changeable))}]",
        "lock_configuration": "true",  # last: nothing can be set after it
    }
    try:
        con.execute(";".join(f"SET {name} = {value}" for name, value in {**limits, **closed}.items()))
    except duckdb.Error as cause:
        raise QueryError(f"the query connection cannot be locked down: {cause}") from cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """The terms on which queries are lent connections: locked down, but for `memory_limit`, which begins as
    and is set back to so many MiB."""

    memory_mib: int
    threads: int

    def prepare(self, connection: duckdb.DuckDBPyConnection) -> None:
        limit = f"{self.memory_mib}MiB"
        lock_down(connection, memory_limit=limit, threads=self.threads, changeable=("memory_limit",))

    def restore(self, connection: duckdb.DuckDBPyConnection) -> bool:
        """Nothing else of it can be changed; not where DuckDB cannot let go of what it holds."""
        try:
            connection.execute(f"SET memory_limit = '{self.memory_mib}MiB'")
        except duckdb.Error:
            return False
        return True


def _disabled(con: duckdb.DuckDBPyConnection) -> list[str]:
    known = {name for (name,) in con.execute("SELECT name FROM duckdb_optimizers()").fetchall()}
    return [name for name in _WRONG_OPTIMIZERS if name in known]  # a later DuckDB may have no such part


def quoted(text: str) -> str:
    """`text` as a string of SQL."""
    return "'" + text.replace("'", "''") + "'"
