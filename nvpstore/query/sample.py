"""The frames behind a scope: prune segments by their bounds, look at frames only where bounds do not decide.

What is kept of a segment is that all its frames are in scope, or a bit a frame: plans of millions of segments
stay small, and the frames themselves are enumerated when their turn comes.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sqlglot import exp

from nvpstore.query.asking import Asking, Here
from nvpstore.query.bounds import MOST_BOUNDS, is_frame_level, relax, tighten, whole_videos
from nvpstore.query.few import few_rows
from nvpstore.query.frames import (
    WORK_FIELDS,
    WORK_SCHEMA,
    Enumerated,
    enumerate_frames,
    frame_chunks,
    on_grid,
    sampled,
    sampled_counts,
    work_table,
)
from nvpstore.query.implied import strengthen, weaken
from nvpstore.query.options import TableOptions
from nvpstore.query.places import Places, in_order
from nvpstore.query.through import OUT
from nvpstore.query.writing import written

_OF_LEAN = ("video_id", "segment", "start_frame", "frames", "has_source", "fitted", "source_bytes")
# Bounds are a little wider than stored times: whoever wrote them may have rounded differently.
_SEGMENTS = """
SELECT s.video_id, s.segment, s.start_frame, s.frames, s.pts_origin, s.pts_first, s.pts_step, s.pts,
       v.time_base_num AS num, v.time_base_den AS den, epoch_us(v.recorded_at) AS recorded_us,
       NULL::BIGINT AS next_pts,
       v.source_uri IS NOT NULL AS has_source, s.latents_key IS NOT NULL AS fitted,
       coalesce(v.source_bytes, 0) AS source_bytes, v.width, v.height,
       coalesce(s.latents_bytes, 0) AS latents_bytes,
       s.start_frame AS frame_lo, s.start_frame + s.frames - 1 AS frame_hi,
       s.start_ts - 1e-5 AS ts_lo, s.end_ts + 1e-5 AS ts_hi,
       make_timestamptz(epoch_us(v.recorded_at) + floor((s.start_ts - 1e-5) * 1e6)::BIGINT) AS wall_ts_lo,
       make_timestamptz(epoch_us(v.recorded_at) + ceil((s.end_ts + 1e-5) * 1e6)::BIGINT) AS wall_ts_hi
FROM (FROM idx.store.segments{among}) s JOIN (FROM idx.store.videos{among}) v USING (video_id)
"""
_ALL = pa.schema(
    [
        *(("video_id", pa.string()), ("segment", pa.int32()), ("start_frame", pa.int64())),
        *(("frames", pa.int32()), ("pts_origin", pa.int64()), ("pts_first", pa.int64())),
        *(("pts_step", pa.int64()), ("pts", pa.list_(pa.int64())), ("num", pa.int64()), ("den", pa.int64())),
        *(("recorded_us", pa.int64()), ("next_pts", pa.int64())),
        *(("has_source", pa.bool_()), ("fitted", pa.bool_()), ("source_bytes", pa.int64())),
        *(("width", pa.int32()), ("height", pa.int32()), ("latents_bytes", pa.int64())),
    ]
)
_LEAN = pa.schema([_ALL.field(name) for name in _OF_LEAN])
_WHOLE = pa.field("whole", pa.bool_())
_CANDIDATES = "__nvp_frames"
_FEW_VIDEOS = 1024
_VERY_FEW_VIDEOS = 32  # which may well have few segments
SMALL = 1024  # segments


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoped:
    """The segments that have frames in scope, in order of video and segment.

    `frames` int64 [n] counts those in scope. `mask_at` int64 [n] is where in `masks` the `mask_bytes` of a
    segment begin (a bit a frame of the segment), or -1 where all its sampled frames are in scope.
    `has_source`, `fitted` bool [n] and `source_bytes` int64 [n] are the index's words on the segment's video.
    `timing` (TIMING) is there where it was read and is small.
    """

    places: Places
    frames: NDArray[np.int64]
    mask_at: NDArray[np.int64]
    mask_bytes: NDArray[np.int64]
    masks: NDArray[np.uint8]
    has_source: NDArray[np.bool_]
    fitted: NDArray[np.bool_]
    source_bytes: NDArray[np.int64]
    timing: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.frames)

    def only(self, rows: NDArray[np.int64]) -> Scoped:
        """Just the segments at `rows`, which ascend."""
        if len(rows) == len(self):
            return self
        return Scoped(
            places=self.places.only(rows),
            frames=self.frames[rows],
            mask_at=self.mask_at[rows],
            mask_bytes=self.mask_bytes[rows],
            masks=self.masks,
            has_source=self.has_source[rows],
            fitted=self.fitted[rows],
            source_bytes=self.source_bytes[rows],
            timing=None if self.timing is None else self.timing.take(pa.array(rows)),
        )


def scoped_segments(
    con: duckdb.DuckDBPyConnection,
    scope: exp.Expr | None,
    options: TableOptions,
    *,
    asking: Asking | None = None,
) -> Scoped:
    """The segments with frames that `scope` keeps of those that `options` samples.

    `asking` evaluates `scope` (default: on `con`).
    """
    asking = Here(con) if asking is None or scope is None else asking
    rows, places = in_order(_segments(asking, scope, options))
    if options.every is not None:
        rows = with_next(con, rows, places)
    counts = _counts(rows, options)
    mask_at = np.full(len(counts), -1, dtype=np.int64)
    masks = np.empty(0, dtype=np.uint8)
    partial = np.flatnonzero(~pc.fill_null(rows["whole"], False).to_numpy())
    if scope is not None and len(partial):
        kept = _masks(asking, scope, rows.take(pa.array(partial)), options)
        if kept is not None:
            masks, mask_at[partial], counts[partial] = kept
    return Scoped(
        places=places,
        frames=counts,
        mask_at=mask_at,
        mask_bytes=np.where(mask_at < 0, 0, -(-rows["frames"].to_numpy().astype(np.int64) // 8)),
        masks=masks,
        has_source=rows["has_source"].to_numpy(),
        fitted=rows["fitted"].to_numpy(),
        source_bytes=rows["source_bytes"].to_numpy(),
        timing=rows if "pts" in rows.schema.names and rows.num_rows <= SMALL else None,
    ).only(np.flatnonzero(counts > 0))


def _counts(rows: pa.Table, options: TableOptions) -> NDArray[np.int64]:
    if options.every is not None or options.stride is not None or options.clip is not None:
        return sampled_counts(rows, options)
    counts: NDArray[np.int64] = rows["frames"].to_numpy().astype(np.int64)
    return counts


def _segments(asking: Asking, scope: exp.Expr | None, options: TableOptions) -> pa.Table:
    """Segments that may have frames in scope; `whole` says that all of them certainly are.

    Without the times of their frames where those decide nothing.
    """
    relaxed = whole = None
    if scope is not None:
        relaxed, whole = weaken(scope.copy(), relax), strengthen(scope.copy(), tighten)
    if relaxed is not None and sum(1 for _ in relaxed.find_all(exp.Column)) > MOST_BOUNDS:
        relaxed = whole = (
            None  # DuckDB takes longer to plan thousands of bounds than to look at every segment
        )
    videos = _among(asking, relaxed)
    among = "" if videos is None else videos_filter(videos)
    if among and scope is not None and whole_videos(scope) is not None:
        scope = relaxed = None  # the videos are all that it says
    certain = "true" if scope is None else "false" if whole is None else written(whole)
    condition = "" if relaxed is None else f" WHERE {written(relaxed)}"
    decided = scope is None or (whole is not None and not is_frame_level(scope))
    lean = not among and options.every is None and decided
    query = "SELECT {columns}, ({whole})::BOOLEAN AS whole FROM (" + _SEGMENTS + f") AS {OUT}{{where}}"
    try:
        schema = _LEAN if lean else _ALL
        sql = query.format(columns=", ".join(schema.names), whole=certain, among=among, where=condition)
        schema = schema.append(_WHOLE)
        if videos is None or len(videos) <= _VERY_FEW_VIDEOS:
            return asking.few(sql, schema)
        return asking.rows(sql).cast(schema)
    except duckdb.Error:
        # A condition may fail on rows that the query's other conditions keep from it (a cast, say). The
        # query itself decides: here such a condition just does not narrow.
        sql = query.format(columns=", ".join(_ALL.names), whole="false", among="", where="")
        return asking.few(sql, _ALL.append(_WHOLE))


def _among(asking: Asking, relaxed: exp.Expr | None) -> pa.Array | None:
    """The videos that may have segments in scope, which are far fewer than segments; None: all."""
    condition = None if relaxed is None else weaken(relaxed.copy(), whole_videos)
    if condition is None:
        return None
    query = f"SELECT video_id FROM idx.store.videos AS {OUT} WHERE {written(condition)}"
    try:
        videos = asking.few(query, pa.schema([_ALL.field("video_id")]))["video_id"]
    except duckdb.Error:
        return None
    return videos.combine_chunks()


def united(left: Scoped, right: Scoped) -> tuple[Scoped, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """What is in one scope or the other, and each segment's row in both (-1: not there)."""
    ids = [side.places.dictionary().cast(pa.string()) for side in (left, right)]
    both = pa.table(
        {
            "video_id": pa.concat_arrays(ids),
            "segment": pa.array(np.concatenate([left.places.segment, right.places.segment])),
        }
    )
    _, places = in_order(both.group_by(["video_id", "segment"], use_threads=False).aggregate([]))
    names = places.dictionary().cast(pa.string())
    rows = left.places.rows(names, places.segment), right.places.rows(names, places.segment)
    pick = np.where(rows[0] >= 0, rows[0], rows[1] + len(left))

    def column(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(left, name), getattr(right, name)])[pick]

    shifted = np.where(right.mask_at >= 0, right.mask_at + len(left.masks), -1)
    at = np.concatenate([left.mask_at, shifted])
    twice = np.flatnonzero((rows[0] >= 0) & (rows[1] >= 0))
    mine, theirs = at[rows[0][twice]], at[rows[1][twice] + len(left)]
    frames, mask_at, masks = column("frames"), at[pick], np.concatenate([left.masks, right.masks])
    whole = twice[(mine < 0) | (theirs < 0)]
    other = rows[1][whole]
    frames[whole] = np.where(mask_at[whole] < 0, frames[whole], right.frames[other])
    mask_at[whole] = -1
    mixed = (mine >= 0) & (theirs >= 0)
    sizes = column("mask_bytes")
    joined, starts, counts = _either(masks, mine[mixed], theirs[mixed], sizes[twice[mixed]])
    frames[twice[mixed]], mask_at[twice[mixed]] = counts, starts + len(masks)
    scoped = Scoped(
        places=places,
        frames=frames,
        mask_at=mask_at,
        mask_bytes=np.where(mask_at < 0, 0, sizes),
        masks=np.concatenate([masks, joined]),
        has_source=column("has_source"),
        fitted=column("fitted"),
        source_bytes=column("source_bytes"),
    )
    return scoped, rows


def _either(
    masks: NDArray[np.uint8],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """The bits set at `left` or `right` in `masks`, where each result begins, and how many bits it has."""
    starts = np.cumsum(sizes) - sizes
    owner = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(owner)) - starts[owner]
    joined = masks[left[owner] + place] | masks[right[owner] + place]
    counts = np.bincount(owner, weights=np.bitwise_count(joined), minlength=len(sizes))
    return joined, starts, counts.astype(np.int64)


def timing_rows(con: duckdb.DuckDBPyConnection, places: Places, options: TableOptions) -> pa.Table:
    """TIMING of the segments at `places`, in their order, and beyond what `Stored` says of their videos."""
    segments = _SEGMENTS.format(among=videos_filter(places.videos))
    table = few_rows(con, f"SELECT {', '.join(_ALL.names)} FROM ({segments})", _ALL)
    rows = places.rows(table["video_id"].combine_chunks(), table["segment"].to_numpy())
    at = np.empty(len(places), dtype=np.int64)
    at[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
    table = table.take(pa.array(at))
    return table if options.every is None else with_next(con, table, places)


def with_next(con: duckdb.DuckDBPyConnection, rows: pa.Table, places: Places) -> pa.Table:
    """`rows` (at `places`) with `next_pts`: sampling looks past the segments in scope."""
    query = f"SELECT video_id, segment, pts_first FROM idx.store.segments{videos_filter(places.videos)}"
    every, at = in_order(con.sql(query).to_arrow_table())
    following = np.zeros(len(rows), dtype=np.int64)
    ended = np.ones(len(rows), dtype=np.bool_)
    before = np.flatnonzero(at.code[1:] == at.code[:-1])
    mine = places.rows(at.dictionary().cast(pa.string()).take(pa.array(before)), at.segment[before])
    pts = every["pts_first"].to_numpy()
    following[mine[mine >= 0]] = pts[before[mine >= 0] + 1]
    ended[mine[mine >= 0]] = False
    column = pa.array(following, mask=ended)
    return rows.set_column(rows.schema.get_field_index("next_pts"), "next_pts", column)


def videos_filter(videos: pa.Array) -> str:
    """`` WHERE video_id IN (…)`` for a few videos, which an index finds by its minima and maxima, else ``."""
    if len(videos) > _FEW_VIDEOS:
        return ""
    quoted = ("'" + video_id.replace("'", "''") + "'" for video_id in videos.to_pylist())
    listed = ", ".join(quoted)
    return f" WHERE video_id IN ({listed})" if listed else " WHERE false"


def _masks(
    asking: Asking, scope: exp.Expr, rows: pa.Table, options: TableOptions
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]] | None:
    """The bits of the segments `rows`, where each one's begin, and how many are set; None: no narrowing."""
    frames = rows["frames"].to_numpy().astype(np.int64)
    sizes = -(-frames // 8)
    starts = np.cumsum(sizes) - sizes
    parts, counts = [], np.zeros(len(frames), dtype=np.int64)
    for low, high in frame_chunks(frames):
        part = rows.slice(low, high - low)
        found = enumerate_frames(part)
        keep = _kept(asking, scope, part, found, options)
        if keep is None:
            return None
        if options.stabilize:
            keep = _from_the_start(found, keep, sampled(part, found, options))
        bits = np.zeros(8 * int(sizes[low:high].sum()), dtype=np.bool_)
        place = found.frame - part["start_frame"].to_numpy()[found.owner]
        bits[8 * (starts[low:high] - starts[low])[found.owner] + place] = keep
        parts.append(np.packbits(bits))
        counts[low:high] = np.bincount(found.owner[keep], minlength=high - low)
    return np.concatenate(parts), starts, counts


def _from_the_start(
    found: Enumerated, keep: NDArray[np.bool_], sampled_frames: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Of each segment all sampled frames up to the last in `keep`: memory is built up from the first one."""
    last = np.full(int(found.owner[-1]) + 1 if len(found.owner) else 0, -1, dtype=np.int64)
    np.maximum.at(last, found.owner[keep], found.frame[keep])
    return sampled_frames & (found.frame <= last[found.owner])


def _kept(
    asking: Asking,
    scope: exp.Expr,
    rows: pa.Table,
    found: Enumerated,
    options: TableOptions,
) -> NDArray[np.bool_] | None:
    """Which frames of `found` are sampled and in scope; None where the condition fails, see `_segments`."""
    keep = sampled(rows, found, options)
    candidates = work_table(rows, found, keep).append_column("place", pa.array(np.flatnonzero(keep)))
    asking.register(_CANDIDATES, candidates)
    places: NDArray[np.int64] | None = None
    with contextlib.suppress(duckdb.Error):
        places = asking.numbers(f"SELECT place FROM {_CANDIDATES} AS {OUT} WHERE {written(scope)}")
    asking.unregister(_CANDIDATES)
    if places is None:
        return None
    inside = np.zeros(len(keep), dtype=np.bool_)
    inside[places] = True
    return inside


__all__ = [
    "WORK_FIELDS",
    "WORK_SCHEMA",
    "Scoped",
    "on_grid",
    "scoped_segments",
    "timing_rows",
    "united",
    "videos_filter",
]
