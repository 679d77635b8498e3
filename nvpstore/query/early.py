"""Whether the rows so far are enough, counted on each step's rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import duckdb
import pyarrow as pa

from nvpstore.query.asking import Asking
from nvpstore.query.parse import Query
from nvpstore.query.plan import Plan
from nvpstore.query.writing import written


def enough_rows_of(
    asking: Asking, query: Query, plan: Plan
) -> Callable[[Mapping[str, pa.Table]], bool] | None:
    """Told each step's rows by relation: whether those so far give all that the query can return.

    None where only all rows do. Such queries answer from each row by itself, so that counts add up.
    """
    if plan.stop_once is not None:
        return _Counter(asking, plan.stop_once, rows=1)
    if plan.stop_after is None:
        return None
    unlimited = query.tree.copy()
    for clause in ("limit", "offset"):
        unlimited.set(clause, None)
    return _Counter(asking, written(unlimited), rows=plan.stop_after)


class _Counter:
    """Counts what a query gives on each step's rows until it is `rows`."""

    def __init__(self, asking: Asking, sql: str, *, rows: int) -> None:
        self._asking, self._left = asking, rows
        self._sql = f"SELECT count(*) FROM ({sql})"

    def __call__(self, relations: Mapping[str, pa.Table]) -> bool:
        if relations and self._left > 0:
            self._left -= self._count(relations)
        return self._left <= 0

    def _count(self, relations: Mapping[str, pa.Table]) -> int:
        for name, rows in relations.items():
            self._asking.register(name, rows)
        try:
            (count,) = self._asking.numbers(self._sql)
        except duckdb.InterruptException:
            raise
        except duckdb.Error:
            return 0  # the query itself will meet it, and say where
        return int(count)
