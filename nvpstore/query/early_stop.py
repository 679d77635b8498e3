"""Filters and projections of one task table: each of its rows counts by itself.

So rows can be given as they come, and those so far may be enough, under a LIMIT or in an EXISTS: whatever the
table's other rows are, the answer is one that the whole table allows.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlglot import exp

from nvpstore.query.closed import is_closed
from nvpstore.query.parse import Query
from nvpstore.query.safety import unstable
from nvpstore.query.sources import Columns, Source, resolve, sources
from nvpstore.query.writing import written

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
    soon as it has a row, the query's result cannot change any more. At most one of them is given.

    `streams`: the result is what the query gives on parts of the table, put together, and reads nothing else.
    """

    rows: int | None = None
    once: str | None = None
    streams: bool = False


def enough_rows(query: Query, columns: Columns) -> Enough:
    """When `query` needs no more rows of its one task table; nothing where that is not certain."""
    if len(query.tables) != 1:
        return Enough()
    relation = query.tables[0].relation
    by_row = _by_row(query.tree, relation, columns)
    if by_row and not any(query.tree.args.get(part) for part in _PARTS_OF_A_LIMIT):
        # What it reads besides would be read again with each part.
        return Enough(streams=sum(1 for _ in query.tree.find_all(exp.Table, exp.Query)) == 2)
    if unstable(query.tree.walk()):
        return Enough()
    if by_row:
        return Enough(rows=_limit(query.tree))
    for exists in query.tree.find_all(exp.Exists):
        inner = exists.this
        limited = any(inner.args.get(part) for part in _PARTS_OF_A_LIMIT)
        if not limited and _by_row(inner, relation, columns) and not _is_correlated(inner, columns):
            return Enough(once=written(inner.limit(1)))
    return Enough()


def _by_row(query: exp.Expr, relation: str, columns: Columns) -> bool:
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
    return not any(_select_of(node) is query for node in query.find_all(*_SPREADING))


def _is_correlated(query: exp.Select, columns: Columns) -> bool:
    """Whether a column of `query` may be of a query around it."""
    found = sources(query, columns)
    own = [node for node in query.find_all(exp.Column) if _select_of(node) is query]
    return any(not isinstance(node.this, exp.Star) and resolve(node, found) is None for node in own)


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
