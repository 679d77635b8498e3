"""When the rows that a task table has given so far are enough: filters and projections of one table under a
LIMIT or in an EXISTS. Whatever the table's other rows are, the answer is one that the whole table allows."""

from __future__ import annotations

from dataclasses import dataclass

from sqlglot import exp

from nvpstore.query.closed import is_closed
from nvpstore.query.parse import Query
from nvpstore.query.safety import unstable
from nvpstore.query.sources import Columns, Source, resolve, sources

# What makes a row of the result hang on more than one row of the table.
_PARTS = (
    "group",
    "having",
    "qualify",
    "windows",
    "distinct",
    "sample",
    "order",
    "connect",
    "match",
    "pivots",
)
_PARTS_OF_A_LIMIT = ("limit", "offset")
# A function that sqlglot does not know may be an aggregate.
_SPREADING = (exp.AggFunc, exp.Window, exp.Anonymous, exp.AnonymousAggFunc, exp.Unnest, exp.Explode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enough:
    """`rows`: so many rows of the query's result are all of it. `once`: a query over the same relations; as
    soon as it has a row, the query's result cannot change any more. At most one of them is given."""

    rows: int | None = None
    once: str | None = None


def enough_rows(query: Query, columns: Columns) -> Enough:
    """When `query` needs no more rows of its one task table; nothing where that is not certain."""
    if len(query.tables) != 1 or unstable(query.tree.walk()):
        return Enough()
    relation = query.tables[0].relation
    if _reads(query.tree, relation, columns):
        rows = _limit(query.tree)
        return Enough() if rows is None else Enough(rows=rows)
    for exists in query.tree.find_all(exp.Exists):
        inner = exists.this
        if _reads(inner, relation, columns) and not any(inner.args.get(p) for p in _PARTS_OF_A_LIMIT):
            return Enough(once=inner.limit(1).sql("duckdb", comments=False))
    return Enough()


def _reads(query: exp.Expr, relation: str, columns: Columns) -> bool:
    """Whether `query` filters and projects the rows of `relation`, each by itself, and reads nothing else
    but the catalog. Joins with the catalog are filters that may repeat a row."""
    if not isinstance(query, exp.Select) or any(query.args.get(part) for part in (*_PARTS, "with_")):
        return False
    found = sources(query, columns)
    tasks = [source for source in found if source.kind == "task"]
    if [source.name for source in tasks] != [relation] or not all(_plain(source) for source in found):
        return False
    nested = [node for node in query.find_all(exp.Select, exp.SetOperation) if node is not query]
    if not all(is_closed(node, columns) for node in nested):
        return False
    own = [node for node in query.find_all(*_SPREADING, exp.Column) if _select_of(node) is query]
    return all(
        isinstance(node, exp.Column) and (isinstance(node.this, exp.Star) or resolve(node, found) is not None)
        for node in own
    )


def _plain(source: Source) -> bool:
    if source.kind not in ("task", "catalog"):
        return False
    join = source.join
    return join is None or (
        not join.args.get("method") and not join.side and join.kind.upper() in ("", "INNER", "CROSS")
    )


def _select_of(node: exp.Expr) -> exp.Expr | None:
    return node.find_ancestor(exp.Select, exp.SetOperation)


def _limit(query: exp.Query) -> int | None:
    """How many rows LIMIT and OFFSET leave, from the first on; None without a plain LIMIT."""
    limit, offset = query.args.get("limit"), query.args.get("offset")
    values = [limit.expression if isinstance(limit, exp.Limit) else None]
    values += [] if offset is None else [offset.expression]
    if limit is not None and any(limit.args.get(part) for part in ("limit_options", "expressions")):
        return None
    if any(not isinstance(value, exp.Literal) or not value.is_int for value in values):
        return None
    return sum(int(value.name) for value in values if value is not None)
