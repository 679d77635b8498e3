"""Queries that the catalog alone answers: they can narrow a scope before anything is computed."""

from __future__ import annotations

from sqlglot import exp

from nvpstore.query.names import RELATION, visible_ctes
from nvpstore.query.safety import unstable
from nvpstore.query.sources import Columns, Source

_REFUSED = (
    *(exp.Limit, exp.Offset, exp.TableSample, exp.Window, exp.Lateral, exp.Unnest, exp.Distinct, exp.With),
    exp.Anonymous,  # may be an aggregate whose value hangs on the order of rows
)


def is_closed(query: exp.Expr, columns: Columns) -> bool:
    """Whether `query` is one SELECT of catalog views and given tables alone, with only one answer."""
    if not isinstance(query, exp.Select) or any(node is not query for node in query.find_all(exp.Query)):
        return False
    if query.find(*_REFUSED) is not None or unstable(query.walk()):
        return False
    if any(not isinstance(node, (exp.Max, exp.Min, exp.Count)) for node in query.find_all(exp.AggFunc)):
        return False
    tables = list(query.find_all(exp.Table))
    for table in tables:
        name = table.name.lower()
        if name not in columns or name.startswith(RELATION) or name in visible_ctes(table):
            return False
    views = {table.alias_or_name.lower(): columns[table.name.lower()] for table in tables}
    return all(_is_own(node, views) for node in query.find_all(exp.Column))


def _is_own(node: exp.Column, views: Columns) -> bool:
    """Whether a column is one of the query's own tables'; any other belongs to a query around it."""
    if node.table:
        return node.table.lower() in views
    return isinstance(node.this, exp.Star) or any(node.name.lower() in names for names in views.values())


def catalog_item(source: Source, alias: str, columns: Columns) -> exp.Expr | None:
    """What to put in FROM as `alias` for a source that the catalog alone answers; None for others."""
    if source.kind == "catalog":
        return exp.alias_(exp.to_table(source.name), alias, table=True)
    if source.kind == "query" and source.query is not None and is_closed(source.query, columns):
        return source.query.copy().subquery(alias)
    return None
