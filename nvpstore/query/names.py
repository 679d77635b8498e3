"""What a table name in a query can mean: views of the catalog, task tables, a caller's own, CTEs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from sqlglot import exp

from nvpstore.errors import QueryError

CATALOG_VIEWS = ("videos", "segments", "tasks", "routes")
FRAMES = "frames"
RELATION = "__nvp_"  # the prefix of the relations that stand for task tables
SAVED = "__view_"  # the prefix of the CTEs that stand for views

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
# DuckDB's own catalog answers to these.
_SYSTEM = ("duckdb_", "pragma_", "sqlite_", "pg_", RELATION, SAVED)


def taken_names(tasks: Collection[str]) -> dict[str, str]:
    """What table names in lower case mean in an archive with `tasks`, saved views aside."""
    taken = {name.lower(): "it is a view of the catalog" for name in CATALOG_VIEWS}
    taken[FRAMES] = "it is a table of every archive"
    return taken | {name.lower(): "it is a task of this archive" for name in tasks}


def check_given(names: Iterable[str], *, tasks: Collection[str]) -> None:
    """Raises QueryError where a name for a table or view is malformed, kept or taken."""
    taken = taken_names(tasks)
    for name in names:
        if not isinstance(name, str) or not _PLAIN.fullmatch(name):
            raise QueryError(f"table name {name!r}: allowed are letters, digits and _, 63 at most")
        if name.lower().startswith(_SYSTEM):
            raise QueryError(f'table name "{name}": names that begin so are kept; give it another one')
        if name.lower() in taken:
            raise QueryError(f'table name "{name}" is taken: {taken[name.lower()]}; give it another one')
        taken[name.lower()] = "it is given twice (upper and lower case are equal)"


def task_named(name: str, tasks: Collection[str]) -> tuple[str, str] | None:
    """The task, or "frames", that `name` or `name@version` means, and the version's beginning; None: none."""
    word, _, version = name.partition("@")
    if word.lower() == FRAMES:
        return None if "@" in name else (FRAMES, "")
    by_lower = {task.lower(): task for task in tasks}
    if word.lower() not in by_lower or ("@" in name and not version):
        return None
    return by_lower[word.lower()], version.lower()


def visible_ctes(node: exp.Expr) -> dict[str, exp.CTE]:
    """The CTEs that a table name at `node` can mean, by lower-case name; inner ones win."""
    found: dict[str, exp.CTE] = {}
    child: exp.Expr | None = node
    while child is not None and child.parent is not None:
        parent = child.parent
        clause = parent.args.get("with_")
        if isinstance(clause, exp.With) and child is not clause:
            for cte in clause.expressions:
                found.setdefault(cte.alias.lower(), cte)
        if isinstance(parent, exp.With) and isinstance(child, exp.CTE):
            # A CTE sees its elder siblings, and itself where it is recursive.
            for cte in parent.expressions[: (child.index or 0) + bool(parent.args.get("recursive"))]:
                found.setdefault(cte.alias.lower(), cte)
        child = parent
    return found
