"""What a condition on frames says about whole segments, by the bounds of their frames and times."""

from __future__ import annotations

from sqlglot import exp

from nvpstore.query.through import OUT

_LONG_LIST = 16
MOST_BOUNDS = 400
_FRAME_LEVEL = ("frame", "ts", "wall_ts")
_MIRROR: dict[type[exp.Expr], type[exp.Expr]] = {
    exp.LT: exp.GT, exp.LTE: exp.GTE, exp.GT: exp.LT, exp.GTE: exp.LTE, exp.EQ: exp.EQ,
}  # fmt: skip


def whole_videos(atom: exp.Expr) -> exp.Expr | None:
    """`atom` where it says the same of all segments of a video."""
    own = {c.name.lower() for c in atom.find_all(exp.Column) if c.table == OUT}
    return atom.copy() if own <= {"video_id"} else None


def relax(atom: exp.Expr) -> exp.Expr | None:
    """What `atom` on a frame says about its segment: bounds for frame-level columns, itself without them."""
    if not is_frame_level(atom):
        return atom.copy()
    if isinstance(atom, exp.Paren):
        return relax(atom.this)
    if isinstance(atom, exp.Between) and not atom.args.get("symmetric"):
        low, high = atom.args["low"], atom.args["high"]
        return _both(_bound(exp.GTE, atom.this, low), _bound(exp.LTE, atom.this, high))
    if isinstance(atom, exp.In) and len(atom.expressions) > _LONG_LIST:
        values = [value.copy() for value in atom.expressions]
        low, high = (exp.func(name, *values, dialect="duckdb") for name in ("least", "greatest"))
        return _both(_bound(exp.GTE, atom.this, low), _bound(exp.LTE, atom.this, high))
    if isinstance(atom, exp.In) and atom.expressions:
        parts = [_bound(exp.EQ, atom.this, value) for value in atom.expressions]
        known = [part for part in parts if part is not None]
        return exp.or_(*known, copy=False) if len(known) == len(parts) else None
    if type(atom) in _MIRROR:
        left, right = atom.this, atom.expression
        return _bound(type(atom), left, right) or _bound(_MIRROR[type(atom)], right, left)
    return None


def is_frame_level(node: exp.Expr) -> bool:
    """Whether `node` reads a column that differs between the frames of a segment."""
    return any(c.table == OUT and c.name.lower() in _FRAME_LEVEL for c in node.find_all(exp.Column))


def _bound(kind: type[exp.Expr], column: exp.Expr, value: exp.Expr) -> exp.Expr | None:
    plain = column.unnest()
    if not isinstance(plain, exp.Column) or not is_frame_level(plain) or is_frame_level(value):
        return None
    low = exp.column(f"{plain.name.lower()}_lo", table=OUT)
    high = exp.column(f"{plain.name.lower()}_hi", table=OUT)
    if kind in (exp.LT, exp.LTE):
        return kind(this=low, expression=exp.paren(value))
    if kind in (exp.GT, exp.GTE):
        return kind(this=high, expression=exp.paren(value))
    return _both(
        exp.LTE(this=low, expression=exp.paren(value)), exp.GTE(this=high, expression=exp.paren(value))
    )


def _both(left: exp.Expr | None, right: exp.Expr | None) -> exp.Expr | None:
    parts = [part for part in (left, right) if part is not None]
    return exp.paren(exp.and_(*parts, copy=False)) if parts else None


def tighten(atom: exp.Expr) -> exp.Expr | None:
    """What makes `atom` certain for every frame of a segment; None: nothing does."""
    if not is_frame_level(atom):
        return atom.copy()
    if isinstance(atom, exp.Paren):
        return tighten(atom.this)
    if isinstance(atom, exp.Between) and not atom.args.get("symmetric"):
        low = _certain(exp.GTE, atom.this, atom.args["low"])
        high = _certain(exp.LTE, atom.this, atom.args["high"])
        return None if low is None or high is None else _both(low, high)
    if type(atom) in _MIRROR:
        left, right = atom.this, atom.expression
        return _certain(type(atom), left, right) or _certain(_MIRROR[type(atom)], right, left)
    return None


def _certain(kind: type[exp.Expr], column: exp.Expr, value: exp.Expr) -> exp.Expr | None:
    plain = column.unnest()
    if kind is exp.EQ or not isinstance(plain, exp.Column) or not is_frame_level(plain):
        return None
    if is_frame_level(value):
        return None
    side = "hi" if kind in (exp.LT, exp.LTE) else "lo"
    bound = exp.column(f"{plain.name.lower()}_{side}", table=OUT)
    return kind(this=bound, expression=exp.paren(value))
