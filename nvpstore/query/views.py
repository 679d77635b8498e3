"""Views: named SELECTs that a query may read, put into it as CTEs and checked by the same rules.

A caller gives them with the query, or they are saved in the archive. The caller's own tables and views hide
saved views of the same name, but only in what the caller wrote: a saved view reads what it read when it was
saved.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import duckdb
from sqlglot import exp

from nvpstore.errors import QueryError
from nvpstore.query.names import SAVED, visible_ctes
from nvpstore.query.options import fault, suggestion

MAX_VIEWS = 256  # that a caller gives, and that an archive has


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """What table names can mean beside the archive's tables: texts of views by name, names of tables.

    `given` and `tables` are the caller's, `saved` the archive's. `taken` are names that mean something else
    already, by lower-case name, and what: a saved view may have had one of them before.
    """

    given: Mapping[str, str] = field(default_factory=dict)
    tables: Collection[str] = ()
    saved: Mapping[str, str] = field(default_factory=dict)
    taken: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.given, *self.saved)


# A snapshot never changes, and most queries read no view.
_LOADED: WeakKeyDictionary[object, Mapping[str, str]] = WeakKeyDictionary()
_LOADING = threading.Lock()


def load_views(con: duckdb.DuckDBPyConnection, snapshot: object) -> Mapping[str, str]:
    """The texts of the saved views of `snapshot` by name; `con` is a connection of it."""
    with _LOADING:
        known = _LOADED.get(snapshot)
    if known is None:
        known = dict(con.execute("SELECT name, sql FROM idx.store.views ORDER BY name").fetchall())
        with _LOADING:
            _LOADED[snapshot] = known
    return known


def expand_views(tree: exp.Query, views: Views, read: Callable[[str], exp.Query]) -> exp.Query:
    """Gives `tree` a CTE for every one of `views` that it reads, directly or through another one.

    `read` turns a view's text into a checked tree. Errors inside a view name it, with the line and column in
    its own text. Raises QueryError where views read each other in a circle or have parameters, and where a
    saved view's name means something else by now.
    """
    if not views.names:
        return tree
    if len(views.given) > MAX_VIEWS:
        raise QueryError(f"{len(views.given)} views given; at most {MAX_VIEWS} are allowed")
    expansion = _Expansion(views, read)
    expansion.point(tree, ())
    if expansion.ctes:
        clause = tree.args.get("with_")
        # First: a view must not see the query's own CTEs, which could bear the name of a table that it reads.
        own = clause.expressions if clause is not None else []
        recursive = bool(clause.args.get("recursive")) if clause is not None else False
        tree.set("with_", exp.With(expressions=[*expansion.ctes, *own], recursive=recursive))
    return tree


def views_alone(tree: exp.Query) -> Iterator[tuple[str, exp.Query, exp.Query]]:
    """Of each view that an expanded `tree` reads: its name, its tree, and a query that reads it alone."""
    clause = tree.args.get("with_")
    ctes = clause.expressions if clause is not None else []
    for count, cte in enumerate(ctes, start=1):
        if cte.alias.startswith(SAVED):
            alone = exp.select("*").from_(exp.Table(this=exp.to_identifier(cte.alias, quoted=True)))
            alone.set("with_", exp.With(expressions=[other.copy() for other in ctes[:count]]))
            yield plain_names(cte.alias), cte.this, alone


def plain_names(text: str) -> str:
    """`text` with views under the names that people know."""
    return text.replace(f"{SAVED}@", "").replace(SAVED, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    name: str
    text: str
    saved: bool

    @property
    def cte(self) -> str:
        # A caller's view may bear a saved one's name, and none can have the sign in it.
        return f"{SAVED}{'@' if self.saved else ''}{self.name.lower()}"


class _Expansion:
    """Collects the CTEs of the views that are read, each after those that it reads itself."""

    def __init__(self, views: Views, read: Callable[[str], exp.Query]) -> None:
        self.ctes: list[exp.CTE] = []
        self._views = views
        self._own = {
            name.lower(): _View(name=name, text=text, saved=False) for name, text in views.given.items()
        }
        self._saved = {name: _View(name=name, text=text, saved=True) for name, text in views.saved.items()}
        self._tables = {name.lower() for name in views.tables}
        self._read = read
        self._done: set[str] = set()

    def point(self, tree: exp.Query, within: tuple[_View, ...]) -> None:
        """Points every name of a view in `tree` at its CTE; `within` are the views being read around it."""
        for node in list(tree.find_all(exp.Table)):
            if not isinstance(node.this, exp.Identifier) or node.args.get("db") is not None:
                continue
            if node.name.lower() in visible_ctes(node):
                continue
            view = self._meant(node, saved=bool(within) and within[-1].saved)
            if view is None:
                continue
            self._include(view, node, within)
            if not node.alias:
                node.set("alias", exp.TableAlias(this=exp.to_identifier(node.name, quoted=True)))
            node.this.replace(_placed(exp.to_identifier(view.cte, quoted=True), node.this))

    def _meant(self, node: exp.Table, *, saved: bool) -> _View | None:
        """The view that is meant by a table's name, within a `saved` view's text or one of the caller's."""
        name = node.name.lower()
        if not saved and (name in self._own or name in self._tables):
            return self._own.get(name)
        if name not in self._saved:
            if name in self._tables:  # it was dropped, and nobody meant the caller's
                known = [*self._saved, *self._views.taken]
                raise fault(node, f'unknown table "{node.name}"{suggestion(name, known)}')
            return None
        if what := self._views.taken.get(name):
            raise fault(node, f'"{name}" is ambiguous: {what}, and a saved view; drop the view')
        return self._saved[name]

    def _include(self, view: _View, node: exp.Table, within: tuple[_View, ...]) -> None:
        if view in within:
            circle = " → ".join(one.name.lower() for one in [*within[within.index(view) :], view])
            raise fault(node, f"views read each other in a circle: {circle}")
        if view.cte in self._done:
            return
        tree = self._parsed(view)
        self.point(tree, (*within, view))
        self._done.add(view.cte)
        alias = exp.TableAlias(this=exp.to_identifier(view.cte, quoted=True))
        self.ctes.append(exp.CTE(this=tree, alias=alias))

    def _parsed(self, view: _View) -> exp.Query:
        name = view.name
        try:
            tree = self._read(view.text)
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
