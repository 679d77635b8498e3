"""Which frames a task table's rows can come from: for each reference a predicate over
`video_id, segment, frame, ts, wall_ts` that holds for every row the query needs.

A superset: DuckDB applies the whole predicate again. What is not provably right is left out. The argument:
let source i of a SELECT come in by a join that gives only true rows of it, and let all joins after it up to P
keep their left side. Then a row of i matters beyond P only as part of a combination for which every condition
between i and P holds, and every earlier one that survives the joins up to i.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sqlglot import exp

from nvpstore.query.closed import catalog_item, is_closed
from nvpstore.query.implied import DERIVED, Rewrite, weaken
from nvpstore.query.parse import RELATION, Query, visible_ctes
from nvpstore.query.safety import unstable
from nvpstore.query.sources import FRAME_COLUMNS, Columns, Source, inner_query, resolve, sources
from nvpstore.query.through import (
    OUT,
    blocks,
    columns_alike,
    has_known_types,
    outputs_read,
    plain_outputs,
    renamed,
    through,
)

# Columns of the view `videos` that are a table's own.
_STORED_OF_VIDEOS = frozenset(
    ["video_id", "name", "duration", "width", "height", "frames", "state", "tags", "recorded_at"]
)
CATALOG_ALIAS = "__nvp_c"  # catalog tables inside the EXISTS of a derived semi join


def find_scopes(query: Query, columns: Columns) -> dict[str, exp.Expr | None]:
    """For each task relation a predicate over `__nvp_s.<frame column>`, or None for no restriction.

    `columns` gives the column names of the task relations and the catalog views.
    """
    walk = _Walk(query.tree, columns)
    walk.visit(query.tree, [])
    return {table.relation: walk.found.get(table.relation) for table in query.tables}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Condition:
    """A conjunct that holds after join `index`; WHERE comes after the last one."""

    index: int
    node: exp.Expr
    among: list[Source]


class _Walk:
    """One pass over the tree, outer queries first. `found` collects the predicates of task relations."""

    def __init__(self, tree: exp.Query, columns: Columns) -> None:
        self.columns = columns
        self.found: dict[str, exp.Expr | None] = {}
        self._visited: set[int] = set()
        self._readers = _reader_counts(tree)
        self._numbers = itertools.count()

    def visit(self, query: exp.Expr, inherited: list[exp.Expr]) -> None:
        """`inherited` hold, over `__nvp_s.<output column>`, for every row of `query` that matters."""
        if id(query) in self._visited:
            return
        self._visited.add(id(query))
        if isinstance(query, exp.Select):
            self._select(query, inherited)
        elif isinstance(query, exp.Union):
            self._union(query, inherited)
        for nested in _nested_queries(query):
            self.visit(nested, [])

    def _union(self, union: exp.Union, inherited: list[exp.Expr]) -> None:
        left, right = inner_query(union.left), inner_query(union.right)
        if left is None or right is None:
            return
        names = [plain_outputs(branch) for branch in (left, right)]
        cut = any(union.args.get(part) for part in ("limit", "offset", "by_name"))
        if cut or names[0] is None or names[1] is None or len(names[0]) != len(names[1]):
            return
        # A column of two types is a third one in the union, and compared as that.
        alike = columns_alike(left, right, self.columns)
        inherited = [node for node in inherited if outputs_read(node) <= alike]
        self.visit(left, inherited)
        positions = dict(zip(names[0], names[1], strict=True))
        self.visit(right, [renamed(node, positions) for node in inherited])

    def _select(self, select: exp.Select, inherited: list[exp.Expr]) -> None:
        found = sources(select, self.columns)
        if select.args.get("sample"):
            return  # DuckDB samples before WHERE: what is sampled must be everything
        conditions = list(_conditions(select, found))
        visible = [source for source in found if not source.hidden]
        if not blocks(select):
            for node in inherited:
                mapped = weaken(node, lambda atom: through(atom, select, self.columns))
                if mapped is not None:
                    conditions.append(_Condition(index=len(found), node=mapped, among=visible))
        for source in found:
            if source.kind in ("task", "query"):
                self._descend(source, self._predicate(source, found, conditions))

    def _descend(self, source: Source, predicate: exp.Expr | None) -> None:
        if source.kind == "task":
            self.found[source.name] = None if predicate is None else _without_identities(predicate)
        elif source.query is not None and (not source.name or self._readers.get(id(source.query)) == 1):
            self.visit(source.query, [] if predicate is None else [predicate])

    def _predicate(
        self, target: Source, found: list[Source], conditions: list[_Condition]
    ) -> exp.Expr | None:
        """What holds for every row of `target` that matters, over `__nvp_s`."""
        if not target.is_real:
            return None
        reach = target.index
        while reach + 1 < len(found) and found[reach + 1].keeps_left:
            reach += 1
        # WHERE is one past the last join.
        end = reach + 1 if reach + 1 == len(found) else reach
        holding = [c for c in conditions if c.index <= end and _survives(c.index, target.index, found)]
        real = [s for s in found if s.index <= reach and s.is_real and _survives(s.index, reach, found)]
        equal = _equal_columns(target, real, holding)
        alone = [weaken(c.node, self._rewriter(target, equal, {}, c.among)) for c in holding]
        parts = [part for part in alone if part is not None]
        semi = self._semi_join(target, equal, real, holding)
        if semi is not None:
            parts.append(semi)
        return exp.and_(*parts, copy=False) if parts else None

    def _semi_join(
        self,
        target: Source,
        equal: dict[tuple[int, str], str],
        real: list[Source],
        holding: list[_Condition],
    ) -> exp.Expr | None:
        """`EXISTS (SELECT 1 FROM catalog sources WHERE what joins and restricts them)`."""
        tables: dict[str, exp.Expr] = {}
        names: dict[int, str] = {}
        for source in real:
            alias = f"{CATALOG_ALIAS}{next(self._numbers)}"
            item = None if source is target else catalog_item(source, alias, self.columns)
            if item is not None:
                tables[alias], names[source.index] = item, alias
        parts, used = [], set()
        for condition in holding:
            part = weaken(condition.node, self._rewriter(target, equal, names, condition.among))
            aliases = (
                set() if part is None else {c.table for c in part.find_all(exp.Column)} & set(names.values())
            )
            if part is not None and aliases:
                parts.append(part)
                used |= aliases
        if not parts:
            return None
        first, *others = [_stored(item, alias, parts) for alias, item in tables.items() if alias in used]
        select = exp.select("1").from_(first).where(*parts, copy=False)
        for item in others:
            select = select.join(item, join_type="cross", copy=False)
        select.meta[DERIVED] = True
        return exp.Exists(this=select)

    def _rewriter(
        self, target: Source, equal: dict[tuple[int, str], str], catalog: dict[int, str], among: list[Source]
    ) -> Rewrite:
        """`__nvp_s` for the target's columns and their equals, `catalog`'s names for catalog sources."""
        allowed = FRAME_COLUMNS if target.kind == "task" else None

        def column(node: exp.Column) -> exp.Expr | None:
            source, name = resolve(node, among), node.name.lower()
            if source is None:
                return None
            if source.index in catalog:
                return exp.column(name, table=catalog[source.index])
            mine = source is target or (source.index, name) in equal
            return exp.column(name, table=OUT) if mine and (allowed is None or name in allowed) else None

        return lambda atom: _substitute(atom, column, self.columns)


def _stored(item: exp.Expr, alias: str, parts: list[exp.Expr]) -> exp.Expr:
    """The table behind `videos` where `parts` need no more: the view adds up all objects of the archive."""
    if not isinstance(item, exp.Table) or item.name != "videos":
        return item
    read = {c.name.lower() for part in parts for c in part.find_all(exp.Column) if c.table == alias}
    table = exp.to_table("idx.store.videos", alias=alias)
    return table if read <= _STORED_OF_VIDEOS else item


# ---------------------------------------------------------------- conditions


def _conditions(select: exp.Select, found: list[Source]) -> Iterator[_Condition]:
    """Every conjunct of inner and semi joins' conditions and of WHERE."""
    for source in found:
        if not source.filters or source.join is None:
            continue
        among = [s for s in found if s.index <= source.index and (not s.hidden or s is source)]
        for name in source.using:
            equality = _using(name, source, found)
            if equality is not None:
                yield _Condition(index=source.index, node=equality, among=among)
        on = source.join.args.get("on")
        for node in _conjuncts(on):
            yield _Condition(index=source.index, node=node, among=among)
    where = select.args.get("where")
    visible = [source for source in found if not source.hidden]
    for node in _conjuncts(where.this if where is not None else None):
        yield _Condition(index=len(found), node=node, among=visible)


def _without_identities(predicate: exp.Expr) -> exp.Expr | None:
    """`predicate` without what equal columns of two tables come to: `frame = frame`."""
    kept = [part for part in _conjuncts(predicate) if not _is_identity(part.unnest())]
    return exp.and_(*kept, copy=False) if kept else None


def _is_identity(node: exp.Expr) -> bool:
    # wall_ts may be NULL, and NULL = NULL is not true.
    if not isinstance(node, exp.EQ):
        return False
    left, right = node.left.unnest(), node.right.unnest()
    return isinstance(left, exp.Column) and left == right and left.name.lower() != "wall_ts"


def _conjuncts(node: exp.Expr | None) -> list[exp.Expr]:
    if node is None:
        return []
    return list(node.flatten()) if isinstance(node, exp.And) else [node]


def _using(name: str, source: Source, found: list[Source]) -> exp.Expr | None:
    """`left.name = right.name`, both sides qualified, where the left side is certain."""
    left = [s for s in found if s.index < source.index and not s.hidden]
    if source.columns is None or name not in source.columns:
        return None
    holder = resolve(exp.column(name), left)
    if holder is None or not all(s.alias for s in (holder, source)):
        return None
    return exp.column(name, table=holder.alias).eq(exp.column(name, table=source.alias))


def _survives(index: int, until: int, found: list[Source]) -> bool:
    """Whether what held after join `index` still holds after join `until`."""
    return all(source.keeps_left for source in found[index + 1 : until + 1])


def _equal_columns(
    target: Source, real: list[Source], holding: list[_Condition]
) -> dict[tuple[int, str], str]:
    """Columns of other sources that equal the target's column of the same name."""
    linked: dict[int, set[str]] = {}
    for condition in holding:
        node = condition.node
        if not (
            isinstance(node, exp.EQ)
            and isinstance(node.left, exp.Column)
            and isinstance(node.right, exp.Column)
        ):
            continue
        sides = [resolve(side, condition.among) for side in (node.left, node.right)]
        others = [side for side in sides if side is not None and side is not target]
        same_name = node.left.name.lower() == node.right.name.lower()
        typed = len(others) == 1 and has_known_types(others[0])  # of another type, equal is not identical
        if same_name and target in sides and typed and others[0] in real:
            linked.setdefault(others[0].index, set()).add(node.left.name.lower())
    equal: dict[tuple[int, str], str] = {}
    for source in real:
        names = linked.get(source.index, set())
        if {"video_id", "frame"} <= names and source.kind == target.kind == "task":
            names = set(FRAME_COLUMNS)  # the frame decides its segment and its times
        equal |= {(source.index, name): name for name in names}
    return equal


def _substitute(
    atom: exp.Expr, column: Callable[[exp.Column], exp.Expr | None], columns: Columns
) -> exp.Expr | None:
    """A copy of `atom` with every free column replaced; None where one cannot be, or `atom` is unstable."""
    if unstable(atom.walk()) or (atom.find(exp.AggFunc, exp.Window) and not atom.find(exp.Query)):
        return None
    if any(not is_closed(query, columns) for query in atom.find_all(exp.Select, exp.SetOperation)):
        return None
    copy = exp.Paren(this=atom.copy())
    for node in list(copy.find_all(exp.Column)):
        if node.table.startswith(CATALOG_ALIAS) or node.find_ancestor(exp.Select) is not None:
            continue
        replacement = column(node)
        if replacement is None:
            return None
        node.replace(replacement)
    return copy if isinstance(copy.this, (exp.Column, exp.Binary, exp.Connector)) else copy.this


# ---------------------------------------------------------------- queries in a query


def _reader_counts(tree: exp.Query) -> dict[int, int]:
    """How often each CTE's query is read."""
    counts: dict[int, int] = {}
    for table in tree.find_all(exp.Table):
        cte = visible_ctes(table).get(table.name.lower())
        if cte is not None and not table.name.startswith(RELATION):
            counts[id(cte.this)] = counts.get(id(cte.this), 0) + 1
    return counts


def _nested_queries(query: exp.Expr) -> Iterator[exp.Expr]:
    """The queries directly inside `query`, CTEs last: by then their only reader has visited them."""
    inner = [
        node
        for node in query.find_all(exp.Select, exp.SetOperation)
        if node is not query and node.find_ancestor(exp.Select, exp.SetOperation) is query
    ]
    yield from sorted(inner, key=lambda node: isinstance(node.parent, exp.CTE))
