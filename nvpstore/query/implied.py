"""Conditions that follow from a condition, or from which it follows, made of those atoms that can be kept."""

from __future__ import annotations

from collections.abc import Callable

from sqlglot import exp

DERIVED = "derived"  # marks the SELECT of an EXISTS that stands for a join
Rewrite = Callable[[exp.Expr], exp.Expr | None]


def weaken(node: exp.Expr, rewrite: Rewrite) -> exp.Expr | None:
    """An expression that holds wherever `node` does, of the atoms that `rewrite` keeps; None: TRUE."""
    return _kept(node, rewrite, whole=exp.Or)


def strengthen(node: exp.Expr, rewrite: Rewrite) -> exp.Expr | None:
    """An expression that holds only where `node` does, of the atoms that `rewrite` keeps; None: FALSE."""
    return _kept(node, rewrite, whole=exp.And)


def _kept(node: exp.Expr, rewrite: Rewrite, *, whole: type[exp.Connector]) -> exp.Expr | None:
    """`node` of the atoms that `rewrite` keeps. A `whole` connector lacking one part says nothing at all."""
    if isinstance(node, exp.Paren):
        return _kept(node.this, rewrite, whole=whole)
    if isinstance(node, (exp.And, exp.Or)):
        parts = [_kept(part, rewrite, whole=whole) for part in node.flatten()]
        kept = [part for part in parts if part is not None]
        if not kept or (isinstance(node, whole) and len(kept) < len(parts)):
            return None
        return (exp.and_ if isinstance(node, exp.And) else exp.or_)(*kept, copy=False)
    if _is_derived(node):
        condition = _kept(node.this.args["where"].this, rewrite, whole=whole)
        if condition is None:
            return None
        derived = node.copy()
        derived.this.set("where", exp.Where(this=condition))
        return derived
    return rewrite(node)


def _is_derived(node: exp.Expr) -> bool:
    """Whether `node` is an EXISTS that stands for a join."""
    return isinstance(node, exp.Exists) and bool(node.this.meta.get(DERIVED))
