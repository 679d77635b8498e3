"""Which columns of a task table a query may read: what is not read is not computed."""

from __future__ import annotations

from sqlglot import exp


def used_columns(tree: exp.Query, table: exp.Table, *, alias: str) -> frozenset[str] | None:
    """Lower-case names of all columns of `table` that the query may read, or None for all.

    A superset: a name counts wherever in the query it is written.
    """
    if _takes_all(tree, table, alias=alias):
        return None
    left_out = {
        id(node)
        for star in tree.find_all(exp.Star)
        for part in star.args.get("except_") or []
        for node in part.walk()
    }
    names: set[str] = set()
    for node in tree.find_all(exp.Column, exp.Identifier):
        # All identifiers, not columns alone: USING lists, struct paths and aliases cost nothing to count.
        if id(node) not in left_out:
            names.add(node.name.lower())
    if alias.lower() in _bare_columns(tree):
        return None  # `SELECT c FROM labels c` reads the whole row as a struct
    return frozenset(names) | _starred(table, alias=alias)


def _bare_columns(tree: exp.Query) -> set[str]:
    return {node.name.lower() for node in tree.find_all(exp.Column) if not node.table}


def _takes_all(tree: exp.Query, table: exp.Table, *, alias: str) -> bool:
    """Whether a form is used whose columns cannot be read off the text."""
    renamed = table.args.get("alias")
    if renamed is not None and renamed.args.get("columns"):
        return True
    if tree.find(exp.PositionalColumn, exp.Columns, exp.Pivot) is not None:
        return True
    if any(join.args.get("method") == "NATURAL" for join in tree.find_all(exp.Join)):
        return True
    stars = _stars(table, alias=alias)
    return bool(stars) and not _left_out(stars)


def _stars(table: exp.Table, *, alias: str) -> list[exp.Star]:
    """The stars that expand to `table`'s columns: those of its own SELECT, bare or with its alias."""
    select = table.find_ancestor(exp.Select)
    if select is None:
        return [exp.Star()]
    if not select.expressions:
        return [exp.Star()]
    found = []
    for star in select.find_all(exp.Star):
        if star.find_ancestor(exp.Select) is not select or isinstance(star.parent, exp.Count):
            continue
        qualifier = star.parent.table if isinstance(star.parent, exp.Column) else ""
        if not qualifier or qualifier.lower() == alias.lower():
            found.append(star)
    return found


def _starred(table: exp.Table, *, alias: str) -> frozenset[str]:
    """What `* EXCLUDE (…)` leaves: kept as marks `-name`, resolved against the schema by `read_columns`."""
    return frozenset(f"-{name}" for name in _left_out(_stars(table, alias=alias)))


def _left_out(stars: list[exp.Star]) -> set[str]:
    """What every star leaves out."""
    each = [{node.name.lower() for node in star.args.get("except_") or []} for star in stars]
    return set.intersection(*each) if each else set()


def read_columns(used: frozenset[str] | None, names: list[str]) -> tuple[str, ...]:
    """The columns of a schema with `names` that a query may read, in schema order."""
    if used is None:
        return tuple(names)
    excluded = {mark[1:] for mark in used if mark.startswith("-")}
    if excluded:
        return tuple(name for name in names if name not in excluded or name in used)
    return tuple(name for name in names if name in used)
