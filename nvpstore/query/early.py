"""Queries whose rows can be given, or are enough, before all segments are done."""

from __future__ import annotations

from sqlglot import exp

from nvpstore.query.parse import Query

_WHOLE = (exp.AggFunc, exp.Window, exp.Subquery, exp.Unnest, exp.Explode)
_CLAUSES = ("with_", "joins", "laterals", "group", "having", "qualify", "windows", "distinct", "order")
_LIMITS = ("limit", "offset", "sample", "pivots")


def is_plain(query: Query) -> bool:
    """Whether `query` only filters and projects one task table, so that segments do not matter to rows."""
    tree = query.tree
    if not isinstance(tree, exp.Select) or len(query.tables) != 1:
        return False
    if any(tree.args.get(clause) for clause in (*_CLAUSES, *_LIMITS)):
        return False
    sources = list(tree.find_all(exp.Table))
    if len(sources) != 1 or sources[0].args.get("sample") or sources[0].args.get("pivots"):
        return False
    if sources[0].args.get("joins") or sources[0].name != query.tables[0].relation:
        return False
    return not any(isinstance(node, (*_WHOLE, exp.Query)) for node in tree.walk() if node is not tree)
