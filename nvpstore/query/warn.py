"""What a query may say but cannot mean: told beside its rows, not instead of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sqlglot import exp

from nvpstore.query.options import position

if TYPE_CHECKING:
    from nvpstore.query.parse import TaskTable

_MIRROR: dict[type[exp.Expr], type[exp.Expr]] = {
    exp.LT: exp.GT, exp.LTE: exp.GTE, exp.GT: exp.LT, exp.GTE: exp.LTE, exp.EQ: exp.EQ,
}  # fmt: skip
_ENDLESS = float("inf")
Bounds = tuple[float, float]


def rank_warnings(tree: exp.Query, tables: Sequence[TaskTable]) -> tuple[str, ...]:
    """A line for every condition on `rank` that no row of its task table meets, because of `top`."""
    by_relation = {table.relation: table for table in tables}
    found: list[str] = []
    for node in tree.find_all(exp.Table):
        table, select = by_relation.get(node.name), node.find_ancestor(exp.Select)
        if table is None or select is None or not isinstance(node.parent, (exp.From, exp.Join)):
            continue
        alone = len(select.args.get("joins") or []) + len(select.args.get("laterals") or []) == 0
        for condition, column, bounds in _rank_conditions(select):
            mine = column.table.lower() == table.alias.lower() if column.table else alone
            if mine and (bounds[0] > table.options.top or bounds[1] < 1):
                found.append(_told(condition, table, bounds))
    return tuple(found)


def _told(condition: exp.Expr, table: TaskTable, bounds: Bounds) -> str:
    top, where = table.options.top, position(condition)
    remedy = f"; ask for {table.shown}(top := {bounds[0]:.0f})" if top < bounds[0] < _ENDLESS else ""
    text = f"{condition.sql('duckdb')} never holds: {table.shown} has ranks 1 to {top} (top := {top}){remedy}"
    return f"{where}: {text}" if where else text


def _rank_conditions(select: exp.Select) -> Iterator[tuple[exp.Expr, exp.Column, Bounds]]:
    """Each conjunct of WHERE and ON that bounds one column named rank."""
    clauses = [select.args.get("where"), *(select.args.get("joins") or [])]
    for clause in clauses:
        node = clause.args.get("on") if isinstance(clause, exp.Join) else clause and clause.this
        for part in node.flatten() if isinstance(node, exp.And) else [node]:
            plain = part.unnest() if part is not None else None
            read = _bounds(plain) if plain is not None else None
            if plain is not None and read is not None:
                yield plain, *read


def _bounds(node: exp.Expr) -> tuple[exp.Column, Bounds] | None:
    """The `rank` column that `node` bounds, with the least and the greatest rank that it lets through."""
    if isinstance(node, exp.Between) and not node.args.get("symmetric") and _is_rank(node.this):
        low, high = _whole(node.args["low"]), _whole(node.args["high"])
        return None if low is None or high is None else (node.this, (low, high))
    if isinstance(node, exp.In) and _is_rank(node.this):
        values = [_whole(value) for value in node.expressions]
        known = [value for value in values if value is not None]
        return (node.this, (min(known), max(known))) if known and len(known) == len(values) else None
    if type(node) not in _MIRROR or not isinstance(node, exp.Binary):
        return None
    for kind, column, value in (
        (type(node), node.left, _whole(node.right)),
        (_MIRROR[type(node)], node.right, _whole(node.left)),
    ):
        if _is_rank(column) and value is not None:
            assert isinstance(column, exp.Column)
            return column, _of_comparison(kind, value)
    return None


def _of_comparison(kind: type[exp.Expr], value: int) -> Bounds:
    known: dict[type[exp.Expr], Bounds] = {
        exp.EQ: (value, value),
        exp.GT: (value + 1, _ENDLESS),
        exp.GTE: (value, _ENDLESS),
        exp.LT: (-_ENDLESS, value - 1),
        exp.LTE: (-_ENDLESS, value),
    }
    return known[kind]


def _is_rank(node: exp.Expr) -> bool:
    return isinstance(node, exp.Column) and node.name.lower() == "rank"


def _whole(node: exp.Expr) -> int | None:
    return int(str(node.this)) if isinstance(node, exp.Literal) and node.is_int else None
