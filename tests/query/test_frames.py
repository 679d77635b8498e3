"""Frames of many segments at once are those of each segment by itself."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from nvpstore.query.frames import TIMING, enumerate_frames, frame_chunks, sampled, sampled_counts, work_table
from nvpstore.query.options import TableOptions
from tests.query.archive_fixture import brute_force_sample

INTS = dict.fromkeys([*TIMING], pa.int64()) | {"video_id": pa.string(), "segment": pa.int32()}
SCHEMA = pa.schema([*(INTS | {"pts": pa.list_(pa.int64())}).items()])
OPTIONS = st.one_of(
    st.just(TableOptions()),
    st.builds(TableOptions, stride=st.integers(1, 9)),
    st.builds(TableOptions, every=st.fractions(Fraction(1, 1000), 3, max_denominator=1000)),
)


@st.composite
def videos(draw: Any) -> list[tuple[Fraction, list[int], list[int]]]:
    """Time base, pts and the frames at which segments start, of some videos."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        count = draw(st.integers(1, 30))
        step = draw(st.integers(1, 900))
        even = draw(st.booleans())
        gaps = [step] * count if even else draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))
        pts = list(itertools.accumulate(gaps, initial=draw(st.integers(-9, 9))))[:count]
        starts = sorted({0, *draw(st.lists(st.integers(0, count - 1), max_size=3))})
        base = draw(st.sampled_from([Fraction(1, 30), Fraction(1001, 30000), Fraction(1, 90000)]))
        found.append((base, pts, starts))
    return found


def as_rows(drawn: list[tuple[Fraction, list[int], list[int]]]) -> pa.Table:
    rows = []
    for video, (base, pts, starts) in enumerate(drawn):
        for segment, (start, stop) in enumerate(itertools.pairwise([*starts, len(pts)])):
            mine = pts[start:stop]
            steps = set(np.diff(mine).tolist())
            rows.append(
                {
                    "video_id": f"v{video}",
                    "segment": segment,
                    "start_frame": start,
                    "frames": stop - start,
                    "pts_origin": pts[0],
                    "pts_first": mine[0],
                    "pts_step": next(iter(steps), 0) if len(steps) <= 1 else None,
                    "pts": None if len(steps) <= 1 else mine,
                    "num": base.numerator,
                    "den": base.denominator,
                    "recorded_us": None if video else 10**15,
                    "next_pts": pts[stop] if stop < len(pts) else None,
                }
            )
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def expected(drawn: list[tuple[Fraction, list[int], list[int]]], options: TableOptions) -> list[Any]:
    rows = []
    for video, (base, pts, starts) in enumerate(drawn):
        ts = [(p - pts[0]) * base for p in pts]
        frames = range(len(pts)) if options.every is None else brute_force_sample(ts, options.every)
        for frame in frames:
            if options.stride is None or frame % options.stride == 0:
                rows.append(
                    (f"v{video}", sum(start <= frame for start in starts) - 1, frame, float(ts[frame]))
                )
    return rows


@given(videos(), OPTIONS)
def test_frames_are_sampled_by_video_and_counted_without_enumeration(drawn: Any, options: Any) -> None:
    rows = as_rows(drawn)
    found = enumerate_frames(rows)
    keep = sampled(rows, found, options)
    table = work_table(rows, found, keep)
    answer = list(zip(*(table[name].to_pylist() for name in ("video_id", "segment", "frame")), strict=True))
    wanted = expected(drawn, options)
    assert answer == [row[:3] for row in wanted]
    np.testing.assert_allclose(table["ts"].to_numpy(), [row[3] for row in wanted], rtol=1e-12)
    assert table["wall_ts"].null_count == sum(row[0] != "v0" for row in wanted)
    counts = np.bincount(found.owner[keep], minlength=rows.num_rows)
    assert sampled_counts(rows, options).tolist() == counts.tolist()


@given(st.lists(st.integers(1, 700_000), max_size=9))
def test_chunks_cover_all_segments_once(counts: list[int]) -> None:
    chunks = frame_chunks(np.array(counts, dtype=np.int64))
    assert [n for low, high in chunks for n in range(low, high)] == list(range(len(counts)))
