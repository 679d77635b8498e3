"""Saved views: named SELECTs that a query may read, put into it as CTEs and checked by the same rules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from sqlglot import exp

from nvpstore.errors import QueryError
from nvpstore.query.names import SAVED, visible_ctes
from nvpstore.query.options import fault

MAX_VIEWS = 256


def expand_views(tree: exp.Query, views: Mapping[str, str], read: Callable[[str], exp.Query]) -> exp.Query:
    """Gives `tree` a CTE for every one of `views` that it reads, directly or through another one.

    `read` turns a view's text into a checked tree. Errors inside a view name it, with the line and column in
    its own text. Raises QueryError where views read each other in a circle or have parameters.
    """
    if not views:
        return tree
    if len(views) > MAX_VIEWS:
        raise QueryError(f"{len(views)} views given; at most {MAX_VIEWS} are allowed")
    expansion = _Expansion({name.lower(): (name, text) for name, text in views.items()}, read)
    expansion.point(tree, ())
    if expansion.ctes:
        clause = tree.args.get("with_")
        # First: a view must not see the query's own CTEs, which could bear the name of a table that it reads.
        own = clause.expressions if clause is not None else []
        recursive = bool(clause.args.get("recursive")) if clause is not None else False
        tree.set("with_", exp.With(expressions=[*expansion.ctes, *own], recursive=recursive))
    return tree


class _Expansion:
    """Collects the CTEs of the views that are read, each after those that it reads itself."""

    def __init__(self, views: Mapping[str, tuple[str, str]], read: Callable[[str], exp.Query]) -> None:
        self.ctes: list[exp.CTE] = []
        self._views = views
        self._read = read
        self._done: set[str] = set()

    def point(self, tree: exp.Query, within: tuple[str, ...]) -> None:
        """Points every name of a view in `tree` at its CTE; `within` are the views being read around it."""
        for node in list(tree.find_all(exp.Table)):
            if not isinstance(node.this, exp.Identifier) or node.args.get("db") is not None:
                continue
            name = node.name.lower()
            if name not in self._views or name in visible_ctes(node):
                continue
            self._include(name, node, within)
            if not node.alias:
                node.set("alias", exp.TableAlias(this=exp.to_identifier(node.name, quoted=True)))
            node.this.replace(_placed(exp.to_identifier(SAVED + name, quoted=True), node.this))

    def _include(self, name: str, node: exp.Table, within: tuple[str, ...]) -> None:
        if name in within:
            circle = " → ".join([*within[within.index(name) :], name])
            raise fault(node, f"views read each other in a circle: {circle}")
        if name in self._done:
            return
        shown, text = self._views[name]
        tree = self._parsed(shown, text)
        self.point(tree, (*within, name))
        self._done.add(name)
        alias = exp.TableAlias(this=exp.to_identifier(SAVED + name, quoted=True))
        self.ctes.append(exp.CTE(this=tree, alias=alias))

    def _parsed(self, name: str, text: str) -> exp.Query:
        try:
            tree = self._read(text)
        except QueryError as cause:
            raise QueryError(f'view "{name}": {cause}') from cause
        for node in tree.walk():
            if "line" in node.meta:
                node.meta["view"] = name  # so that later errors say in whose text the place is
        for node in tree.find_all(exp.Placeholder, exp.Parameter):
            raise fault(node, f'view "{name}" has the parameter {node.sql("duckdb")}: a view has none')
        return tree


def _placed(new: exp.Identifier, old: exp.Expr) -> exp.Identifier:
    new.meta.update(old.meta)
    return new


def refuse_kept_names(tree: exp.Query, prefixes: Collection[str]) -> None:
    """Raises QueryError where a query names a CTE or a table as only our own relations may be."""
    for node in tree.find_all(exp.TableAlias):
        for prefix in prefixes:
            if node.name.lower().startswith(prefix):
                raise fault(node, f'name "{node.name}": names that begin with {prefix} are kept')
