"""SQL text → one checked SELECT in which every task table is a reference to a relation of ours.

Everything else stays DuckDB's business; what DuckDB runs is generated from the checked tree, never the text.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, cast

import duckdb
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from nvpstore.errors import QueryError
from nvpstore.query.binding import Params, bind, bind_now, numbered
from nvpstore.query.columns import used_columns
from nvpstore.query.names import (
    CATALOG_VIEWS,
    FRAMES,
    RELATION,
    SAVED,
    check_given,
    taken_names,
    task_named,
    visible_ctes,
)
from nvpstore.query.options import TableOptions, fault, position, read_options, suggestion
from nvpstore.query.safety import TABLE_FUNCTIONS, check_extracted, check_safe
from nvpstore.query.size import check_size, check_tables
from nvpstore.query.text_calls import TextCall, take_text_calls
from nvpstore.query.views import Views, expand_views, plain_names, refuse_kept_names
from nvpstore.query.warn import rank_warnings
from nvpstore.query.writing import written

__all__ = ["CATALOG_VIEWS", "FRAMES", "RELATION", "Params", "Query", "TaskTable"]
__all__ += ["binder_error", "parse", "visible_ctes"]

Mode = Literal["rows", "explain", "analyze"]
PlanFormat = Literal["text", "json"]

# What it cannot parse is an error of ours, told once.
logging.getLogger("sqlglot").setLevel(logging.CRITICAL)

_INCOMPLETE = re.compile(r"Required keyword: '\w+' missing for <class '[\w.]*?(\w+)'>")
_EXPLAIN = re.compile(
    r"\s*explain\b(?P<analyze>\s+analyze\b)?"
    r"(?:\s*\((?P<options>\s*(?:analyze|format\b[^(),]*)(?:,[^(),]*)*)\))?",
    re.IGNORECASE,
)


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
    """A checked query. `tree` is what DuckDB will run, task tables being relations; not to be changed.

    `texts` are the calls of `embed_text`, whose literals in the tree are NULL until `texts.with_texts`.
    `given` are the caller's own tables that it may read, by lower-case name. `warnings` are lines for whoever
    asked.
    """

    mode: Mode
    tree: exp.Query
    tables: tuple[TaskTable, ...]
    texts: tuple[TextCall, ...] = ()
    given: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()
    plan_format: PlanFormat = "text"

    @property
    def sql(self) -> str:
        return written(self.tree)


def parse(
    sql: str,
    tasks: Collection[str],
    *,
    params: Params | None = None,
    tables: Collection[str] = (),
    views: Mapping[str, str] | None = None,
    saved: Mapping[str, str] | None = None,
    con: duckdb.DuckDBPyConnection | None = None,
) -> Query:
    """Checks `sql` and finds its task tables. `tasks` are the registered names. On `con` DuckDB reads what is
    generated (default: on a connection of its own, which takes a first query 13 ms).

    `tables` are the names of the caller's own tables, `views` the texts of the caller's views by name and
    `saved` those of the archive's, which the caller's names hide. Raises QueryError: not exactly one
    read-only SELECT, unknown tables, options or parameters, functions and statements that reach outside the
    archive.
    """
    check_given([*tables, *(views or {})], tasks=tasks)
    named = Views(given=views or {}, tables=tables, saved=saved or {}, taken=taken_names(tasks))
    try:
        query = _parse(sql, tasks, params=params, views=named)
        check_extracted(query.sql, con)
    except RecursionError as cause:
        raise QueryError("the query is nested too deeply") from cause
    return query


def _parse(sql: str, tasks: Collection[str], *, params: Params | None, views: Views) -> Query:
    mode, plan_format, body = _split_explain(sql)
    tree = bind(_checked_select(body), params, sql=body)
    tree = bind_now(expand_views(tree, views, _checked_select), datetime.now(UTC))
    given = frozenset(name.lower() for name in views.tables)
    nodes = enumerate(_task_nodes(tree, tasks, given, views.names))
    found = tuple(_replace(node, tasks, tree=tree, number=number) for number, node in nodes)
    return Query(
        mode=mode,
        tree=tree,
        tables=found,
        texts=take_text_calls(tree, tasks),
        given=given,
        warnings=rank_warnings(tree, found),
        plan_format=plan_format,
    )


def _checked_select(sql: str) -> exp.Query:
    """The tree of a text that is one SELECT of a bounded size, and safe."""
    tree = _single_select(sql)
    check_safe(tree)
    refuse_kept_names(tree, (RELATION, SAVED))
    check_tables(sum(1 for _ in tree.find_all(exp.Table)))
    return tree


def _split_explain(sql: str) -> tuple[Mode, PlanFormat, str]:
    match = _EXPLAIN.match(sql)
    if match is None:
        return "rows", "text", sql
    analyze, plan_format = _explain_options(match.group("options"))
    # Blanks keep every later line and column where the user sees them.
    blanks = re.sub(r"\S", " ", match.group(0))
    mode: Mode = "analyze" if analyze or match.group("analyze") else "explain"
    return mode, plan_format, blanks + sql[match.end() :]


def _explain_options(text: str | None) -> tuple[bool, PlanFormat]:
    """Whether `(analyze, format json)` asks for ANALYZE, and for which format."""
    analyze, plan_format = False, "text"
    for option in [] if text is None else text.lower().split(","):
        words = option.split()
        if words == ["analyze"]:
            analyze = True
        elif words in (["format", "json"], ["format", "text"]):
            plan_format = words[1]
        else:
            raise QueryError(f"EXPLAIN ({option.strip()}): allowed are analyze, format text and format json")
    return analyze, cast(PlanFormat, plan_format)


def _single_select(sql: str) -> exp.Query:
    try:
        check_size(sql)
        statements = [s for s in sqlglot.parse(numbered(sql), read="duckdb") if s is not None]
    except SqlglotError as cause:
        raise _syntax_error(cause) from cause
    if len(statements) != 1:
        raise QueryError(f"{len(statements)} statements given: a query is exactly one read-only SELECT")
    tree = _as_select(statements[0])
    if not isinstance(tree, exp.Query):
        raise QueryError(f"{_first_word(sql)} statement given: a query is one read-only SELECT")
    return tree


def _first_word(sql: str) -> str:
    return next((token.text.upper() for token in sqlglot.tokenize(sql, read="duckdb") if token.text), "")


def _as_select(tree: exp.Expr) -> exp.Expr:
    """`VALUES …` and `PIVOT …` as the SELECT that they are short for."""
    if isinstance(tree, exp.Values):
        width = len(tree.expressions[0].expressions) if isinstance(tree.expressions[0], exp.Tuple) else 1
        names = [exp.to_identifier(f"col{n}") for n in range(width)]
        tree.set("alias", exp.TableAlias(this=exp.to_identifier("__values"), columns=names))
        return exp.select("*").from_(tree)
    if isinstance(tree, exp.Pivot):
        return exp.select("*").from_(exp.Subquery(this=tree))
    return tree


def _syntax_error(cause: SqlglotError) -> QueryError:
    for error in getattr(cause, "errors", None) or []:
        where = f"line {error['line']}, column {error['col']}"
        near = f' at "{error["highlight"]}"' if error.get("highlight") else ""
        said = _INCOMPLETE.sub(lambda m: f"{m[1].upper()} is not complete", error["description"])
        said = said.replace("Invalid expression / Unexpected token", "not expected here")
        return QueryError(f"{where}: syntax error{near}: {said}")
    return QueryError(f"syntax error: {str(cause).splitlines()[0]}")


# ---------------------------------------------------------------- tables


def _task_nodes(
    tree: exp.Query, tasks: Collection[str], given: Collection[str], views: Collection[str]
) -> Iterator[exp.Table]:
    """Every Table node that is a task table; every other one is checked to be allowed.

    Tables of `views` are CTEs by now; their names only help to suggest.
    """
    for lateral in tree.find_all(exp.Lateral):
        _check_lateral(lateral)
    for node in list(tree.find_all(exp.Table)):
        if node.args.get("db") is not None or node.args.get("catalog") is not None:
            raise fault(node, f"table {node.sql('duckdb')}: names with a schema or database are not offered")
        source = node.this
        if isinstance(source, exp.Identifier):
            if _known_name(node, tasks, given, views):
                yield node
        elif isinstance(source, exp.Anonymous):
            if _known_function(node, source, tasks):
                yield node
        elif not isinstance(source, (exp.GenerateSeries, exp.Unnest)):
            raise fault(node, f"table function {node.sql('duckdb')} is not allowed in a query")


def _check_lateral(node: exp.Lateral) -> None:
    """`LATERAL f(…)` has no Table node: what it calls is held to the same list."""
    source = node.this
    if isinstance(source, (exp.Subquery, exp.Unnest, exp.GenerateSeries)):
        return
    if not (isinstance(source, exp.Anonymous) and _function_text(source).lower() in TABLE_FUNCTIONS):
        raise fault(node, f"{node.sql('duckdb')}: this is not allowed in a query; LATERAL (SELECT …) is")


def _known_name(
    node: exp.Table, tasks: Collection[str], given: Collection[str], views: Collection[str]
) -> bool:
    """Whether `node` is a task table by its name; False for everything else that may be read."""
    name = node.name.lower()
    ctes = visible_ctes(node)
    if name in ctes or name in CATALOG_VIEWS or name in given:
        return False
    if task_named(node.name, tasks) is None:
        own = [cte for cte in ctes if not cte.startswith(SAVED)]
        known = [*CATALOG_VIEWS, FRAMES, *tasks, *given, *views, *own]
        raise fault(node, f'unknown table "{node.name}"{suggestion(name.split("@")[0], known)}')
    return True


def _known_function(node: exp.Table, source: exp.Anonymous, tasks: Collection[str]) -> bool:
    name = _function_text(source)
    if name.lower() in TABLE_FUNCTIONS:
        return False
    if task_named(name, tasks) is None:
        known = [FRAMES, *tasks]
        raise fault(
            node, f'unknown or refused table function "{name}"{suggestion(name.split("@")[0], known)}'
        )
    return True


def _function_text(source: exp.Anonymous) -> str:
    return source.this.name if isinstance(source.this, exp.Identifier) else str(source.this)


def _replace(node: exp.Table, tasks: Collection[str], *, tree: exp.Query, number: int) -> TaskTable:
    """Turns `labels(top := 3) c` into `__nvp_0 AS c` in place."""
    source = node.this
    called = isinstance(source, exp.Anonymous)
    name = _function_text(source) if isinstance(source, exp.Anonymous) else node.name
    task, version = cast(tuple[str, str], task_named(name, tasks))
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
_HINT = re.compile(r"(Candidate (?:bindings|tables): .*|Did you mean .*)")


def binder_error(cause: duckdb.Error, tree: exp.Query) -> QueryError:
    """DuckDB's refusal as a QueryError with the place in the user's text and DuckDB's suggestion."""
    text = str(cause)
    first = text.splitlines()[0]
    hint = _HINT.search(text)
    message = first + (f" {hint.group(1)}" if hint else "")
    message = re.sub(rf"\b{RELATION}\d+\b", "this table", plain_names(message))
    words = [m.lower() for m in re.findall(r'column named "([^"]+)"', first)] or [
        m.lower() for m in _NAMED.findall(first)
    ]
    for node in tree.find_all(exp.Identifier, exp.Anonymous):
        if words and node.name.lower() == words[0] and node.meta.get("line"):
            return fault(node, message)
    return QueryError(message)
