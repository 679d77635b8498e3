"""SQL text → one checked SELECT in which every task table is a reference to a relation of ours.

Everything else stays DuckDB's business; what DuckDB runs is generated from the checked tree, never the text.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Literal, cast

import duckdb
import sqlglot
from sqlglot import TokenType, exp
from sqlglot.errors import SqlglotError

from nvpstore.errors import QueryError
from nvpstore.query.columns import used_columns
from nvpstore.query.options import TableOptions, fault, position, read_options, suggestion
from nvpstore.query.safety import TABLE_FUNCTIONS, check_safe

MAX_CHARACTERS = 200_000
CATALOG_VIEWS = ("videos", "segments", "tasks", "routes")
FRAMES = "frames"
RELATION = "__nvp_"  # the prefix of the relations that stand for task tables

Mode = Literal["rows", "explain", "analyze"]
Params = Sequence[Any] | Mapping[str, Any]

# What it cannot parse is an error of ours, told once.
logging.getLogger("sqlglot").setLevel(logging.ERROR)

_EXPLAIN = re.compile(r"\s*explain(?P<analyze>\s+analyze)?\b", re.IGNORECASE)
_NOW = ("now", "current_timestamp", "get_current_timestamp", "transaction_timestamp")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTable:
    """One reference to `frames` or a task in a query's text.

    `version` is the prefix after `@`, or ''. `alias` is the name by which the text qualifies columns.
    `columns` are those that the query may read; None means all of them.
    """

    relation: str
    task: str
    version: str
    alias: str
    options: TableOptions
    columns: frozenset[str] | None
    where: str

    @property
    def shown(self) -> str:
        return f"{self.task}@{self.version}" if self.version else self.task


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A checked query. `tree` is what DuckDB will run, task tables being relations; not to be changed."""

    mode: Mode
    tree: exp.Query
    tables: tuple[TaskTable, ...]

    @property
    def sql(self) -> str:
        return self.tree.sql("duckdb", comments=False)


def parse(sql: str, tasks: Collection[str], *, params: Params | None = None) -> Query:
    """Checks `sql` and finds its task tables. `tasks` are the registered names.

    Raises QueryError: not exactly one read-only SELECT, unknown tables, options or parameters, functions
    and statements that reach outside the archive.
    """
    if len(sql) > MAX_CHARACTERS:
        raise QueryError(f"the query has {len(sql)} characters; at most {MAX_CHARACTERS} are allowed")
    mode, body = _split_explain(sql)
    tree = _single_select(_numbered(body))
    check_safe(tree)
    tree = _bind_now(_bind(tree, params), datetime.now(UTC))
    tables = [_replace(node, tasks, tree=tree, number=n) for n, node in enumerate(_task_nodes(tree, tasks))]
    return Query(mode=mode, tree=tree, tables=tuple(tables))


def _split_explain(sql: str) -> tuple[Mode, str]:
    match = _EXPLAIN.match(sql)
    if match is None:
        return "rows", sql
    # Blanks keep every later line and column where the user sees them.
    blanks = re.sub(r"\S", " ", match.group(0))
    return ("analyze" if match.group("analyze") else "explain"), blanks + sql[match.end() :]


def _single_select(sql: str) -> exp.Query:
    try:
        statements = [s for s in sqlglot.parse(sql, read="duckdb") if s is not None]
    except SqlglotError as cause:
        raise _syntax_error(cause) from cause
    except RecursionError as cause:
        raise QueryError("the query is nested too deeply") from cause
    if len(statements) != 1:
        raise QueryError(f"{len(statements)} statements given: a query is exactly one read-only SELECT")
    tree = statements[0]
    if not isinstance(tree, exp.Query):
        raise QueryError(f"{tree.key.upper()} statement given: a query is one read-only SELECT")
    return tree


def _syntax_error(cause: SqlglotError) -> QueryError:
    for error in getattr(cause, "errors", None) or []:
        where = f"line {error['line']}, column {error['col']}"
        near = f' at "{error["highlight"]}"' if error.get("highlight") else ""
        return QueryError(f"{where}: syntax error{near}: {error['description']}")
    return QueryError(f"syntax error: {str(cause).splitlines()[0]}")


# ---------------------------------------------------------------- parameters and the time


def _numbered(sql: str) -> str:
    """`?` as `$1`, `$2`, … in the order of the text, which the tree does not keep."""
    try:
        marks = [t for t in sqlglot.tokenize(sql, read="duckdb") if t.token_type is TokenType.PLACEHOLDER]
    except SqlglotError as cause:
        raise _syntax_error(cause) from cause
    for number, token in reversed(list(enumerate(marks, start=1))):
        sql = f"{sql[: token.start]}${number}{sql[token.end + 1 :]}"
    return sql


def _bind(tree: exp.Query, params: Params | None) -> exp.Query:
    """Puts `$1` and `$name` values into the tree as literals: scope needs them as well as DuckDB."""
    for node in list(tree.find_all(exp.Placeholder, exp.Parameter)):
        node.replace(_literal(_value(params, str(node.name), node), node))
    return tree


def _value(params: Params | None, name: str, node: exp.Expr) -> Any:
    if isinstance(params, Mapping):
        if name in params:
            return params[name]
    elif params is not None and name.isdigit() and 1 <= int(name) <= len(params):
        return params[int(name) - 1]
    raise fault(node, f"no value given for parameter {node.sql('duckdb')}")


def _literal(value: Any, node: exp.Expr) -> exp.Expr:
    if isinstance(value, float):  # a bare 0.1 would be a DECIMAL in DuckDB
        return exp.cast(exp.Literal.string(repr(value)), "DOUBLE")
    if value is None or isinstance(value, (bool, int, str, Decimal)):
        return exp.convert(value)
    if isinstance(value, datetime):
        kind = "TIMESTAMP" if value.tzinfo is None else "TIMESTAMPTZ"
        return exp.cast(exp.Literal.string(value.isoformat(" ")), kind, dialect="duckdb")
    if isinstance(value, date):
        return exp.cast(exp.Literal.string(value.isoformat()), "DATE")
    if isinstance(value, (list, tuple)):
        return exp.Array(expressions=[_literal(item, node) for item in value])
    raise fault(
        node, f"parameter of type {type(value).__name__}: allowed are numbers, text, dates, lists and None"
    )


def _bind_now(tree: exp.Query, instant: datetime) -> exp.Query:
    """One value of `now()` for the whole query, so that it can also narrow the scope."""
    for node in list(tree.find_all(exp.CurrentTimestamp, exp.Anonymous)):
        if isinstance(node, exp.CurrentTimestamp) or node.name.lower() in _NOW:
            node.replace(
                exp.cast(exp.Literal.string(instant.isoformat(" ")), "TIMESTAMPTZ", dialect="duckdb")
            )
    return tree


# ---------------------------------------------------------------- tables


def visible_ctes(node: exp.Expr) -> dict[str, exp.CTE]:
    """The CTEs that a table name at `node` can mean, by lower-case name; inner ones win."""
    found: dict[str, exp.CTE] = {}
    child: exp.Expr | None = node
    while child is not None and child.parent is not None:
        parent = child.parent
        clause = parent.args.get("with_")
        if isinstance(clause, exp.With) and child is not clause:
            for cte in clause.expressions:
                found.setdefault(cte.alias.lower(), cte)
        if isinstance(parent, exp.With) and isinstance(child, exp.CTE):
            # A CTE sees its elder siblings, and itself where it is recursive.
            for cte in parent.expressions[: (child.index or 0) + bool(parent.args.get("recursive"))]:
                found.setdefault(cte.alias.lower(), cte)
        child = parent
    return found


def _task_nodes(tree: exp.Query, tasks: Collection[str]) -> Iterator[exp.Table]:
    """Every Table node that is a task table; every other one is checked to be allowed."""
    for node in list(tree.find_all(exp.Table)):
        if node.args.get("db") is not None or node.args.get("catalog") is not None:
            raise fault(node, f"table {node.sql('duckdb')}: names with a schema or database are not offered")
        source = node.this
        if isinstance(source, exp.Identifier):
            if _known_name(node, tasks):
                yield node
        elif isinstance(source, exp.Anonymous):
            if _known_function(node, source, tasks):
                yield node
        elif not isinstance(source, (exp.GenerateSeries, exp.Unnest)):
            raise fault(node, f"table function {source.sql('duckdb')} is not allowed in a query")


def _known_name(node: exp.Table, tasks: Collection[str]) -> bool:
    name = node.name.lower()
    ctes = visible_ctes(node)
    if name in ctes or name in CATALOG_VIEWS:
        return False
    if _task_of(node.name, tasks) is None:
        known = [*CATALOG_VIEWS, FRAMES, *tasks, *ctes]
        if name.startswith(RELATION):
            known = [*CATALOG_VIEWS, FRAMES, *tasks]
        raise fault(node, f'unknown table "{node.name}"{suggestion(name.split("@")[0], known)}')
    return True


def _known_function(node: exp.Table, source: exp.Anonymous, tasks: Collection[str]) -> bool:
    name = _function_text(source)
    if name.lower() in TABLE_FUNCTIONS:
        return False
    if _task_of(name, tasks) is None:
        known = [FRAMES, *tasks]
        raise fault(
            node, f'unknown or refused table function "{name}"{suggestion(name.split("@")[0], known)}'
        )
    return True


def _function_text(source: exp.Anonymous) -> str:
    return source.this.name if isinstance(source.this, exp.Identifier) else str(source.this)


def _task_of(name: str, tasks: Collection[str]) -> tuple[str, str] | None:
    """(registered name, version prefix) or None."""
    word, _, version = name.partition("@")
    if word.lower() == FRAMES:
        return None if "@" in name else (FRAMES, "")
    by_lower = {task.lower(): task for task in tasks}
    if word.lower() not in by_lower or ("@" in name and not version):
        return None
    return by_lower[word.lower()], version.lower()


def _replace(node: exp.Table, tasks: Collection[str], *, tree: exp.Query, number: int) -> TaskTable:
    """Turns `labels(top := 3) c` into `__nvp_0 AS c` in place."""
    source = node.this
    called = isinstance(source, exp.Anonymous)
    name = _function_text(source) if isinstance(source, exp.Anonymous) else node.name
    task, version = cast(tuple[str, str], _task_of(name, tasks))
    options = read_options(source.expressions if called else [], table=task)
    alias = node.alias or name
    where = position(node)
    table = TaskTable(
        relation=f"{RELATION}{number}",
        task=task,
        version=version,
        alias=alias,
        options=options,
        columns=used_columns(tree, node, alias=alias),
        where=where,
    )
    node.set("this", exp.to_identifier(table.relation))
    if not node.alias:
        node.set("alias", exp.TableAlias(this=exp.to_identifier(alias, quoted=True)))
    return table


# ---------------------------------------------------------------- DuckDB's own complaints

_NAMED = re.compile(r'(?:column|table|Function with name|Parameter) "?([\w@]+)"?', re.IGNORECASE)
_HINT = re.compile(r"(Candidate bindings: .*|Did you mean .*)")


def binder_error(cause: duckdb.Error, tree: exp.Query) -> QueryError:
    """DuckDB's refusal as a QueryError with the place in the user's text and DuckDB's suggestion."""
    text = str(cause)
    first = text.splitlines()[0]
    hint = _HINT.search(text)
    message = first + (f" {hint.group(1)}" if hint else "")
    message = re.sub(rf"\b{RELATION}\d+\b", "this table", message)
    words = [m.lower() for m in re.findall(r'column named "([^"]+)"', first)] or [
        m.lower() for m in _NAMED.findall(first)
    ]
    for node in tree.find_all(exp.Identifier, exp.Anonymous):
        if words and node.name.lower() == words[0] and node.meta.get("line"):
            return fault(node, message)
    return QueryError(message)
