"""Predicates over a query's outputs as predicates over what it reads, where they are the same."""

from __future__ import annotations

from sqlglot import exp

from nvpstore.query.names import CATALOG_VIEWS
from nvpstore.query.safety import unstable
from nvpstore.query.sources import Columns, Source, project, resolve, sources

OUT = "__nvp_s"  # stands for the source that a predicate is about
WHOLE_NUMBERS = ("frame", "segment", "rank", "object")  # columns of task tables, by their types
TEXTS = ("video_id", "label", "route", "caption")


def blocks(select: exp.Select) -> bool:
    """Whether filtering `select`'s rows differs from filtering what it reads."""
    if any(select.args.get(part) for part in ("limit", "offset", "group", "having", "qualify", "sample")):
        return True
    distinct = select.args.get("distinct")
    if distinct is not None and distinct.args.get("on") is not None:
        return True
    return any(item.find(exp.AggFunc, exp.Window, exp.Unnest, exp.Explode) for item in select.expressions)


def through(atom: exp.Expr, select: exp.Select, columns: Columns) -> exp.Expr | None:
    """`atom` over `select`'s outputs as one over its sources."""
    copy = exp.Paren(this=atom.copy())
    for node in list(copy.find_all(exp.Column)):
        if node.table != OUT:
            continue
        behind = project(select, node.name.lower(), columns)
        if behind is None or behind.find(exp.Query, exp.Anonymous, exp.AggFunc) or unstable(behind.walk()):
            return None
        node.replace(behind.copy() if isinstance(behind, exp.Column) else exp.paren(behind))
    mapped: exp.Expr = copy.this
    return mapped


def plain_outputs(query: exp.Expr) -> list[str] | None:
    """Names of a SELECT's outputs, in order; None where a star or another kind of query hides them."""
    if not isinstance(query, exp.Select) or any(item.is_star for item in query.expressions):
        return None
    return [item.alias_or_name.lower() for item in query.expressions]


def columns_alike(left: exp.Expr, right: exp.Expr, columns: Columns) -> set[str]:
    """Outputs of `left` that are, as those of `right` there, one column of task or catalog tables."""
    alike = set()
    found = [sources(side, columns) for side in (left, right) if isinstance(side, exp.Select)]
    for pair in zip(left.expressions, right.expressions, strict=True):
        origins = [_origin(item.unalias(), own) for item, own in zip(pair, found, strict=True)]
        written = [
            _is_written_as(item.unalias(), origin) for item, origin in zip(pair, origins[::-1], strict=True)
        ]
        if (origins[0] is not None and origins[0] == origins[1]) or any(written):
            alike.add(pair[0].alias_or_name.lower())
    return alike


def _is_written_as(node: exp.Expr, origin: tuple[str, str] | None) -> bool:
    """Whether a literal has the type of a column of a task table."""
    if not isinstance(node, exp.Literal) or origin is None or origin[0] != "task":
        return False
    return origin[1] in (TEXTS if node.is_string else WHOLE_NUMBERS if node.is_int else ())


def _origin(node: exp.Expr, among: list[Source]) -> tuple[str, str] | None:
    """(what kind of table, column) that an expression plainly is; tables of one kind have the same types."""
    source = resolve(node, among) if isinstance(node, exp.Column) else None
    if source is None or not has_known_types(source):
        return None
    return (source.kind if source.kind == "task" else source.name, node.name.lower())


def has_known_types(source: Source) -> bool:
    """Whether columns of one name have one type in all sources of its kind."""
    return source.kind == "task" or (source.kind == "catalog" and source.name in CATALOG_VIEWS)


def outputs_read(node: exp.Expr) -> set[str]:
    """Names of the outputs that a predicate is about."""
    return {column.name.lower() for column in node.find_all(exp.Column) if column.table == OUT}


def renamed(node: exp.Expr, names: dict[str, str]) -> exp.Expr:
    """A copy of a predicate, about other outputs."""
    copy = node.copy()
    for column in copy.find_all(exp.Column):
        if column.table == OUT:
            column.set("this", exp.to_identifier(names.get(column.name.lower(), column.name), quoted=True))
    return copy
