"""The frames behind a scope: prune segments by their bounds, enumerate what is left, sample, filter.

`ts` = (pts - first pts) · numerator / denominator in float64, the product in exact integers. Sampling looks
at the whole video and knows no predicate, so that the sampled set never depends on WHERE.
"""

from __future__ import annotations

from fractions import Fraction

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sqlglot import exp

from nvpstore.query.options import TableOptions
from nvpstore.query.scope import OUT, weaken

WORK_FIELDS = [
    pa.field("video_id", pa.string()),
    pa.field("segment", pa.int32()),
    pa.field("frame", pa.int64()),
    pa.field("ts", pa.float64()),
    pa.field("wall_ts", pa.timestamp("us", "UTC")),
]
WORK_SCHEMA = pa.schema(WORK_FIELDS)

# Bounds are a little wider than stored times: whoever wrote them may have rounded differently.
_SEGMENTS = """
SELECT s.video_id, s.segment, s.start_frame, s.frames, s.pts_origin, s.pts_first, s.pts_step, s.pts,
       v.time_base_num AS num, v.time_base_den AS den,
       epoch_us(v.recorded_at) AS recorded_us,
       lead(s.pts_first) OVER (PARTITION BY s.video_id ORDER BY s.segment) AS next_pts,
       s.start_frame AS frame_lo, s.start_frame + s.frames - 1 AS frame_hi,
       s.start_ts - 1e-5 AS ts_lo, s.end_ts + 1e-5 AS ts_hi,
       make_timestamptz(epoch_us(v.recorded_at) + floor((s.start_ts - 1e-5) * 1e6)::BIGINT) AS wall_ts_lo,
       make_timestamptz(epoch_us(v.recorded_at) + ceil((s.end_ts + 1e-5) * 1e6)::BIGINT) AS wall_ts_hi
FROM idx.store.segments s JOIN idx.store.videos v USING (video_id)
"""
_CANDIDATES = "__nvp_frames"


def scoped_frames(con: duckdb.DuckDBPyConnection, scope: exp.Expr | None, options: TableOptions) -> pa.Table:
    """Frames (WORK_SCHEMA) that `scope` keeps of those that `options` samples, by video and frame."""
    candidates = enumerate_frames(_segments(con, scope), options)
    if scope is None or candidates.num_rows == 0:
        return candidates
    con.register(_CANDIDATES, candidates)
    try:
        condition = scope.sql("duckdb")
        query = f"SELECT * FROM {_CANDIDATES} AS {OUT} WHERE {condition} ORDER BY video_id, frame"
        return con.sql(query).to_arrow_table().cast(WORK_SCHEMA)
    except duckdb.Error:
        return candidates  # see `_segments`
    finally:
        con.unregister(_CANDIDATES)


def _segments(con: duckdb.DuckDBPyConnection, scope: exp.Expr | None) -> pa.Table:
    relaxed = None if scope is None else weaken(scope.copy(), _relax)
    if relaxed is not None and sum(1 for _ in relaxed.find_all(exp.Column)) > _MOST_BOUNDS:
        relaxed = None  # DuckDB takes longer to plan thousands of bounds than to look at every segment
    condition = "" if relaxed is None else f" WHERE {relaxed.sql('duckdb')}"
    query = f"SELECT * FROM ({_SEGMENTS}) AS {OUT}{{}} ORDER BY video_id, segment"
    try:
        return con.sql(query.format(condition)).to_arrow_table()
    except duckdb.Error:
        # A condition may fail on rows that the query's other conditions keep from it (a cast, say). The
        # query itself decides: here such a condition just does not narrow.
        return con.sql(query.format("")).to_arrow_table()


# ---------------------------------------------------------------- conditions on whole segments

_LONG_LIST = 16
_MOST_BOUNDS = 400
_FRAME_LEVEL = ("frame", "ts", "wall_ts")
_MIRROR: dict[type[exp.Expr], type[exp.Expr]] = {
    exp.LT: exp.GT, exp.LTE: exp.GTE, exp.GT: exp.LT, exp.GTE: exp.LTE, exp.EQ: exp.EQ,
}  # fmt: skip


def _relax(atom: exp.Expr) -> exp.Expr | None:
    """What `atom` on a frame says about its segment: bounds for frame-level columns, itself without them."""
    if not _is_frame_level(atom):
        return atom.copy()
    if isinstance(atom, exp.Paren):
        return _relax(atom.this)
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


def _is_frame_level(node: exp.Expr) -> bool:
    return any(c.table == OUT and c.name.lower() in _FRAME_LEVEL for c in node.find_all(exp.Column))


def _bound(kind: type[exp.Expr], column: exp.Expr, value: exp.Expr) -> exp.Expr | None:
    plain = column.unnest()
    if not isinstance(plain, exp.Column) or not _is_frame_level(plain) or _is_frame_level(value):
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


# ---------------------------------------------------------------- frames of a segment


def enumerate_frames(segments: pa.Table, options: TableOptions) -> pa.Table:
    """All frames of `segments` (rows as `_SEGMENTS` gives them) that `options` samples, as WORK_SCHEMA."""
    parts = []
    for row in segments.to_pylist():
        pts = _pts(row)
        frames = np.arange(row["start_frame"], row["start_frame"] + row["frames"], dtype=np.int64)
        elapsed = pts - row["pts_origin"]
        keep = _sampled(frames, elapsed, row, options)
        parts.append(_frames_table(row, frames[keep], elapsed[keep]))
    return pa.concat_tables(parts).combine_chunks() if parts else WORK_SCHEMA.empty_table()


def _pts(row: dict[str, object]) -> NDArray[np.int64]:
    if row["pts"] is not None:
        return np.asarray(row["pts"], dtype=np.int64)
    count, step, first = (int(str(row[key] or 0)) for key in ("frames", "pts_step", "pts_first"))
    return first + step * np.arange(count, dtype=np.int64)


def _sampled(
    frames: NDArray[np.int64], elapsed: NDArray[np.int64], row: dict[str, object], options: TableOptions
) -> NDArray[np.bool_]:
    if options.stride is not None:
        return np.equal(frames % options.stride, 0)
    if options.every is None:
        return np.ones(len(frames), dtype=np.bool_)
    time_base = Fraction(int(str(row["num"])), int(str(row["den"])))
    following = None if row["next_pts"] is None else int(str(row["next_pts"])) - int(str(row["pts_origin"]))
    return on_grid(elapsed, following=following, ticks_per_step=options.every / time_base)


def on_grid(
    elapsed: NDArray[np.int64], *, following: int | None, ticks_per_step: Fraction
) -> NDArray[np.bool_]:
    """Which frames are, for some k = 0, 1, …, the last with elapsed ≤ k · ticks_per_step, exactly.

    `elapsed` int64 [t], ascending, in ticks since the video's first frame. `following` is the next frame's
    after these; None: these end the video, and the grid ends with them.
    """
    p, q = ticks_per_step.numerator, ticks_per_step.denominator
    largest = max(int(elapsed[-1]), following or 0)
    # Products past 63 bits are rare (odd steps on long videos): Python's own integers are exact there.
    ticks = elapsed if largest * q + p < 2**63 else elapsed.astype(object)
    first_k = -((-ticks * q) // p)  # the smallest k whose grid point is not before the frame
    keep = np.empty(len(elapsed), dtype=np.bool_)
    keep[:-1] = first_k[:-1] < first_k[1:]
    if following is None:
        keep[-1] = int(elapsed[-1]) * q % p == 0
    else:
        keep[-1] = int(first_k[-1]) < -((-following * q) // p)
    return keep


def _frames_table(row: dict[str, object], frames: NDArray[np.int64], elapsed: NDArray[np.int64]) -> pa.Table:
    count = len(frames)
    ts = elapsed * int(str(row["num"])) / int(str(row["den"]))
    if row["recorded_us"] is None:
        wall_ts = pa.nulls(count, WORK_SCHEMA.field("wall_ts").type)
    else:
        micros = int(str(row["recorded_us"])) + np.rint(ts * 1e6).astype(np.int64)
        wall_ts = pc.cast(pa.array(micros), WORK_SCHEMA.field("wall_ts").type)
    columns = [
        pa.repeat(pa.scalar(row["video_id"], pa.string()), count),
        pa.repeat(pa.scalar(row["segment"], pa.int32()), count),
        pa.array(frames),
        pa.array(ts, pa.float64()),
        wall_ts,
    ]
    return pa.table(columns, schema=WORK_SCHEMA)
