"""Queries whose rows can be given, or are enough, before all segments are done."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import duckdb
import pyarrow as pa
from sqlglot import exp

from nvpstore.query.parse import Query
from nvpstore.query.plan import Plan

_WHOLE = (exp.AggFunc, exp.Window, exp.Anonymous, exp.AnonymousAggFunc, exp.Unnest, exp.Explode, exp.Query)
_CLAUSES = ("with_", "joins", "laterals", "group", "having", "qualify", "windows", "distinct", "order")
_LIMITS = ("limit", "offset", "sample", "pivots")


def is_plain(query: Query) -> bool:
    """Whether `query` only filters and projects one task table, so that segments do not matter to rows."""
    tree = query.tree
    if not isinstance(tree, exp.Select) or len(query.tables) != 1:
        return False
    if any(tree.args.get(clause) for clause in (*_CLAUSES, *_LIMITS)):
        return False
    (source, *others) = tree.find_all(exp.Table)
    if others or source.name != query.tables[0].relation:
        return False
    if any(source.args.get(clause) for clause in ("joins", "sample", "pivots", "laterals")):
        return False
    return not any(isinstance(node, _WHOLE) for node in tree.walk() if node is not tree)


def enough_rows_of(
    con: duckdb.DuckDBPyConnection, query: Query, plan: Plan
) -> Callable[[Mapping[str, pa.Table]], bool] | None:
    """Told each step's rows by relation: whether those so far give all that the query can return.

    None where only all rows do. Such queries answer from each row by itself, so that counts add up.
    """
    if plan.stop_once is not None:
        return _Counter(con, plan.stop_once, rows=1)
    if plan.stop_after is None:
        return None
    unlimited = query.tree.copy()
    for clause in ("limit", "offset"):
        unlimited.set(clause, None)
    return _Counter(con, unlimited.sql("duckdb", comments=False), rows=plan.stop_after)


class _Counter:
    """Counts what a query gives on each step's rows until it is `rows`."""

    def __init__(self, con: duckdb.DuckDBPyConnection, sql: str, *, rows: int) -> None:
        self._con, self._left = con, rows
        self._sql = f"SELECT count(*) FROM ({sql})"

    def __call__(self, relations: Mapping[str, pa.Table]) -> bool:
        if relations and self._left > 0:
            self._left -= self._count(relations)
        return self._left <= 0

    def _count(self, relations: Mapping[str, pa.Table]) -> int:
        for name, rows in relations.items():
            self._con.register(name, rows)
        try:
            ((count,),) = self._con.execute(self._sql).fetchall()
        except duckdb.InterruptException:
            raise
        except duckdb.Error:
            return 0  # the query itself will meet it, and say where
        return int(count)
