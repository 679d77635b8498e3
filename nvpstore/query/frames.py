"""The frames of segments, enumerated and sampled for many segments at once.

`ts` = (pts - first pts) · numerator / denominator in float64, the product in exact integers. Sampling looks
at the whole video and knows no predicate, so that the sampled set never depends on WHERE.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nvpstore.query.options import TableOptions

WORK_FIELDS = [
    pa.field("video_id", pa.string()),
    pa.field("segment", pa.int32()),
    pa.field("frame", pa.int64()),
    pa.field("ts", pa.float64()),
    pa.field("wall_ts", pa.timestamp("us", "UTC")),
]
WORK_SCHEMA = pa.schema(WORK_FIELDS)
# Of a segment what its frames' times follow from; `next_pts` is that of the video's next frame after it.
TIMING = (
    *("video_id", "segment", "start_frame", "frames", "pts_origin", "pts_first", "pts_step", "pts"),
    *("num", "den", "recorded_us", "next_pts"),
)
CHUNK_FRAMES = 1 << 20  # enumerated at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Enumerated:
    """All frames of some segments, int64 [t] each: the segment's row, the frame, ticks since the video's
    first frame."""

    owner: NDArray[np.int64]
    frame: NDArray[np.int64]
    elapsed: NDArray[np.int64]


def enumerate_frames(rows: pa.Table) -> Enumerated:
    """All frames of the segments `rows` (TIMING), in their order."""
    counts = _ints(rows, "frames")
    owner = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
    pts = _ints(rows, "pts_first")[owner] + _ints(rows, "pts_step")[owner] * place
    listed = pc.is_valid(rows["pts"]).to_numpy()
    if listed.any():
        pts[listed[owner]] = pc.list_flatten(rows["pts"]).to_numpy()
    return Enumerated(
        owner=owner,
        frame=_ints(rows, "start_frame")[owner] + place,
        elapsed=pts - _ints(rows, "pts_origin")[owner],
    )


def frame_chunks(counts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Rows [start, stop) whose segments have about CHUNK_FRAMES frames together."""
    bounds = np.flatnonzero(np.diff(np.cumsum(counts) // CHUNK_FRAMES)) + 1
    return list(zip([0, *bounds.tolist()], [*bounds.tolist(), len(counts)], strict=True))


def work_table(rows: pa.Table, found: Enumerated, keep: NDArray[np.bool_]) -> pa.Table:
    """The frames of `found` that `keep` [t] names, as WORK_SCHEMA."""
    owner, elapsed = found.owner[keep], found.elapsed[keep]
    ts = elapsed * _ints(rows, "num")[owner] / _ints(rows, "den")[owner]
    recorded = _ints(rows, "recorded_us")[owner]
    unknown = pc.is_null(rows["recorded_us"]).to_numpy()[owner]
    wall_ts = pa.array(recorded + np.rint(ts * 1e6).astype(np.int64), mask=unknown)
    at = pa.array(owner)
    columns = [
        rows["video_id"].combine_chunks().cast(pa.string()).take(at),
        rows["segment"].take(at),
        pa.array(found.frame[keep]),
        pa.array(ts, pa.float64()),
        wall_ts.cast(WORK_SCHEMA.field("wall_ts").type),
    ]
    return pa.table(columns, schema=WORK_SCHEMA)


def _ints(rows: pa.Table, name: str) -> NDArray[np.int64]:
    values: NDArray[np.int64] = pc.fill_null(rows[name].cast(pa.int64()), 0).to_numpy()
    return values


# ---------------------------------------------------------------- sampling


def sampled(rows: pa.Table, found: Enumerated, options: TableOptions) -> NDArray[np.bool_]:
    """Which frames of `found` (all frames of `rows`) `options` samples."""
    if options.clip is not None:
        within = found.frame - _ints(rows, "start_frame")[found.owner]
        first: NDArray[np.bool_] = np.equal(within % options.clip.span, 0)
        return first
    if options.stride is not None:
        return np.equal(found.frame % options.stride, 0)
    if options.every is None:
        return np.ones(len(found.owner), dtype=np.bool_)
    counts = _ints(rows, "frames")
    following = np.empty_like(found.elapsed)
    following[:-1] = found.elapsed[1:]
    ends = np.cumsum(counts)[counts > 0] - 1
    after, ended = _after(rows)
    following[ends] = after[counts > 0]
    last = np.zeros(len(following), dtype=np.bool_)
    last[ends] = ended[counts > 0]
    keep = np.empty(len(following), dtype=np.bool_)
    for time_base, mine in _time_bases(rows):
        some = mine[found.owner]
        keep[some] = _on_grid(found.elapsed[some], following[some], last[some], options.every / time_base)
    return keep


def sampled_counts(rows: pa.Table, options: TableOptions) -> NDArray[np.int64]:
    """How many frames of each segment of `rows` (TIMING) are sampled, int64 [segments]."""
    counts, start = _ints(rows, "frames"), _ints(rows, "start_frame")
    if options.clip is not None:
        return -(-counts // options.clip.span)
    if options.stride is not None:
        step = options.stride
        return (start + counts - 1) // step - (start - 1) // step
    if options.every is None:
        return counts
    listed = pc.is_valid(rows["pts"]).to_numpy() | (_ints(rows, "pts_step") <= 0) | (counts == 0)
    result = np.zeros(len(counts), dtype=np.int64)
    for time_base, mine in _time_bases(rows):
        some = np.flatnonzero(mine & ~listed)
        if len(some):
            result[some] = _even_counts(rows.take(pa.array(some)), options.every / time_base)
    others = np.flatnonzero(listed)
    for low, high in frame_chunks(counts[others]):
        part = rows.take(pa.array(others[low:high]))
        found = enumerate_frames(part)
        kept = found.owner[sampled(part, found, options)]
        result[others[low:high]] = np.bincount(kept, minlength=high - low)
    return result


def _even_counts(rows: pa.Table, ticks_per_step: Fraction) -> NDArray[np.int64]:
    """The same where frames are evenly spaced: grid points are counted, not frames."""
    counts, step = _ints(rows, "frames"), _ints(rows, "pts_step")
    first = _ints(rows, "pts_first") - _ints(rows, "pts_origin")
    final = first + step * (counts - 1)
    after, ended = _after(rows)
    p, q = ticks_per_step.numerator, ticks_per_step.denominator
    # Up to a frame's spacing every frame is the last before some grid point; beyond it, every grid point has
    # a frame of its own.
    points = _points(final, p, q) - _points(first, p, q)
    dense = (step.astype(object) if _large(step, p, q) else step) * q >= p
    before = np.where(dense, counts - 1, points).astype(np.int64)
    return before + _on_grid(final, after, ended, ticks_per_step)


def _after(rows: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Ticks of the next frame after each segment; whether there is none."""
    ended = pc.is_null(rows["next_pts"]).to_numpy()
    return np.where(ended, 0, _ints(rows, "next_pts") - _ints(rows, "pts_origin")), ended


def _time_bases(rows: pa.Table) -> list[tuple[Fraction, NDArray[np.bool_]]]:
    """Each time base, and which segments have it."""
    nums, dens = _ints(rows, "num"), _ints(rows, "den")
    pairs = np.unique(np.stack([nums, dens]), axis=1).T.tolist()
    return [(Fraction(num, den), (nums == num) & (dens == den)) for num, den in pairs]


def on_grid(
    elapsed: NDArray[np.int64], *, following: int | None, ticks_per_step: Fraction
) -> NDArray[np.bool_]:
    """Which frames are, for some k = 0, 1, …, the last with elapsed ≤ k · ticks_per_step, exactly.

    `elapsed` int64 [t], ascending, in ticks since the video's first frame. `following` is the next frame's
    after these; None: these end the video, and the grid ends with them.
    """
    after = np.append(elapsed[1:], 0 if following is None else following)
    last = np.zeros(len(elapsed), dtype=np.bool_)
    last[-1] = following is None
    return _on_grid(elapsed, after, last, ticks_per_step)


def _on_grid(
    elapsed: NDArray[np.int64],
    following: NDArray[np.int64],
    last: NDArray[np.bool_],
    ticks_per_step: Fraction,
) -> NDArray[np.bool_]:
    p, q = ticks_per_step.numerator, ticks_per_step.denominator
    between = _points(elapsed, p, q) < _points(following, p, q)
    if not last.any():
        return between
    exact = elapsed.astype(object) if _large(elapsed, p, q) else elapsed
    return np.where(last, np.equal(exact * q % p, 0), between).astype(np.bool_)


def _points(ticks: NDArray[np.int64], p: int, q: int) -> NDArray[Any]:
    """The smallest k whose grid point k · p / q is not before each of `ticks`."""
    exact = ticks.astype(object) if _large(ticks, p, q) else ticks
    points: NDArray[Any] = -((-exact * q) // p)
    return points


def _large(ticks: NDArray[np.int64], p: int, q: int) -> bool:
    # Products past 63 bits are rare (odd steps on long videos): Python's own integers are exact there.
    return bool(len(ticks)) and int(ticks.max()) * q + p >= 2**63
