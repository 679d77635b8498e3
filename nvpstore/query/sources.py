"""What one SELECT reads: its sources in join order, what each join keeps, and which source a column means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sqlglot import exp

from nvpstore.query.names import RELATION, visible_ctes

FRAME_COLUMNS = frozenset({"video_id", "segment", "frame", "ts", "wall_ts"})
Kind = Literal["task", "catalog", "query", "other"]
Columns = Mapping[str, frozenset[str]]  # of relations and catalog views, by name
_MORE_THAN_BRACKETS = ("limit", "offset", "with_", "order", "sample", "pivots", "joins", "laterals")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The `index`-th thing in FROM. `columns` None: not known. `query` only where kind is "query"."""

    index: int
    alias: str
    kind: Kind
    name: str
    columns: frozenset[str] | None
    join: exp.Join | None
    query: exp.Query | None = None

    @property
    def keeps_left(self) -> bool:
        """Every value on the left that this join outputs is one that it was given, and rows on the left do
        not depend on each other."""
        join = self.join
        return join is None or (
            (
                _method(join) in ("", "NATURAL", "ASOF")
                and join.side.upper() in ("", "LEFT")
                and join.kind.upper() in ("", "INNER", "CROSS", "SEMI", "ANTI")
            )
            or (
                join.side.upper() == "LEFT" and join.kind.upper() == "OUTER" and _method(join) in ("", "ASOF")
            )
        )

    @property
    def is_real(self) -> bool:
        """This join outputs (or, as a semi join, matches) only true rows of the source, no NULL rows."""
        join = self.join
        return join is None or (
            _method(join) in ("", "NATURAL")
            and (join.side.upper(), join.kind.upper())
            in {("", ""), ("", "INNER"), ("", "CROSS"), ("", "SEMI"), ("RIGHT", ""), ("RIGHT", "OUTER")}
        )

    @property
    def filters(self) -> bool:
        """The join condition holds for every row that this join outputs."""
        return self.join is not None and self.is_real and self.join.side == ""

    @property
    def hidden(self) -> bool:
        """Only its own join condition sees it."""
        return self.join is not None and self.join.kind.upper() in ("SEMI", "ANTI")

    @property
    def using(self) -> tuple[str, ...]:
        if self.join is None:
            return ()
        return tuple(identifier.name.lower() for identifier in self.join.args.get("using") or [])


def _method(join: exp.Join) -> str:
    return str(join.args.get("method") or "").upper()


def sources(select: exp.Select, columns: Columns) -> list[Source]:
    """The sources of `select` in join order."""
    clause = select.args.get("from_")
    if clause is None:
        return []
    found = [_source(0, clause.this, None, columns)]
    for join in select.args.get("joins") or []:
        found.append(_source(len(found), join.this, join, columns))
    for lateral in select.args.get("laterals") or []:
        # Its rows hang on the others'; nothing is known of its columns.
        found.append(_opaque(len(found), lateral, None))
    return found


def _source(index: int, node: exp.Expr, join: exp.Join | None, columns: Columns) -> Source:
    if _is_opaque(node):
        return _opaque(index, node, join)
    alias = node.alias_or_name.lower()
    if isinstance(node, exp.Table):
        name = node.name.lower()
        ctes = visible_ctes(node)
        if name in ctes and not name.startswith(RELATION):
            return _cte_source(index, alias, ctes[name], join, columns)
        kind: Kind = "task" if name.startswith(RELATION) else "catalog"
        known = columns.get(name)
        return Source(index=index, alias=alias, kind=kind, name=name, columns=known, join=join)
    query = inner_query(node)
    assert query is not None, "what is no query is opaque"
    return Source(
        index=index,
        alias=alias,
        kind="query",
        name="",
        columns=output_names(query, columns),
        join=join,
        query=query,
    )


def _cte_source(index: int, alias: str, cte: exp.CTE, join: exp.Join | None, columns: Columns) -> Source:
    recursive = cte.parent is not None and cte.parent.args.get("recursive")
    if recursive or cte.args["alias"].args.get("columns") or not isinstance(cte.this, exp.Query):
        return Source(index=index, alias=alias, kind="other", name="", columns=None, join=join)
    return Source(
        index=index,
        alias=alias,
        kind="query",
        name=cte.alias.lower(),
        columns=output_names(cte.this, columns),
        join=join,
        query=cte.this,
    )


def _is_opaque(node: exp.Expr) -> bool:
    alias = node.args.get("alias")
    if alias is not None and isinstance(alias, exp.TableAlias) and alias.args.get("columns"):
        return True
    if any(node.args.get(part) for part in ("sample", "pivots", "joins", "laterals", "version", "when")):
        return True
    if isinstance(node, exp.Table):
        return not isinstance(node.this, exp.Identifier)
    return not isinstance(node, exp.Subquery) or inner_query(node) is None


def inner_query(node: exp.Expr) -> exp.Select | exp.SetOperation | None:
    """The query in brackets; None where brackets on the way do more than enclose it."""
    while isinstance(node, exp.Subquery):
        if any(node.args.get(part) for part in _MORE_THAN_BRACKETS):
            return None
        node = node.this
    return node if isinstance(node, (exp.Select, exp.SetOperation)) else None


def _opaque(index: int, node: exp.Expr, join: exp.Join | None) -> Source:
    return Source(
        index=index, alias=node.alias_or_name.lower(), kind="other", name="", columns=None, join=join
    )


# ---------------------------------------------------------------- columns


def output_names(query: exp.Expr, columns: Columns) -> frozenset[str] | None:
    """Lower-case output names of a query; None where they cannot be read off."""
    if isinstance(query, exp.SetOperation):
        return output_names(query.left, columns)
    if not isinstance(query, exp.Select):
        return None
    names: set[str] = set()
    for projection in query.expressions:
        if not projection.is_star:
            names.add(projection.alias_or_name.lower())
            continue
        starred = _starred_sources(query, projection, columns)
        if starred is None:
            return None
        names |= {name for source in starred for name in source.columns or ()}
    return frozenset(names)


def _starred_sources(select: exp.Select, star: exp.Expr, columns: Columns) -> list[Source] | None:
    """What a plain `*` or `c.*` stands for; None for unknown columns, EXCLUDE, REPLACE and RENAME."""
    inner = star.this if isinstance(star, exp.Column) else star
    if not isinstance(inner, exp.Star) or any(
        inner.args.get(key) for key in ("except_", "replace", "rename")
    ):
        return None
    found = [source for source in sources(select, columns) if not source.hidden]
    if isinstance(star, exp.Column) and star.table:
        found = [source for source in found if source.alias == star.table.lower()]
    return None if not found or any(source.columns is None for source in found) else found


def resolve(column: exp.Column, among: list[Source]) -> Source | None:
    """The source that `column` is read from, where that is certain."""
    if column.args.get("db") is not None:
        return None
    name = column.name.lower()
    if column.table:
        matches = [source for source in among if source.alias == column.table.lower()]
        if len(matches) != 1 or (matches[0].columns is not None and name not in matches[0].columns):
            return None
        return matches[0] if matches[0].columns is not None else None
    if any(source.columns is None for source in among):
        return None
    matches = [source for source in among if name in (source.columns or ())]
    if not matches:
        return None
    merged = all(name in source.using and source.keeps_left for source in matches[1:])
    between = [source for source in among if source.index > matches[0].index]
    if len(matches) > 1 and not (merged and all(source.keeps_left for source in between)):
        return None
    return matches[0]


def project(select: exp.Select, name: str, columns: Columns) -> exp.Expr | None:
    """The expression over `select`'s sources behind its output column `name`, where that is certain."""
    found: list[exp.Expr] = []
    for projection in select.expressions:
        if not projection.is_star:
            if projection.alias_or_name.lower() == name:
                found.append(projection.unalias())
            continue
        starred = _starred_sources(select, projection, columns)
        if starred is None:
            return None
        qualifier = projection.table if isinstance(projection, exp.Column) else ""
        if any(name in (source.columns or ()) for source in starred):
            found.append(exp.column(name, table=qualifier or None))
    return found[0] if len(found) == 1 else None
