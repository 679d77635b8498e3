"""`every` and `stride` against a literal reading of their definition, in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvpstore.query.sample import on_grid
from tests.query.archive_fixture import FixtureSnapshot, ask, brute_force_sample

ELAPSED = st.lists(st.integers(1, 12), max_size=25).map(lambda steps: np.cumsum([0, *steps]))
TIME_BASES = st.sampled_from([Fraction(1, 30), Fraction(1001, 30000), Fraction(1, 12800), Fraction(1, 3)])
EVERY = st.fractions(min_value=Fraction(1, 50), max_value=3, max_denominator=50)


def sampled(elapsed: np.ndarray, time_base: Fraction, every: Fraction, *, cut: int = 0) -> list[int]:
    """Frames on the grid, computed in two segments that are cut at `cut`."""
    parts = (
        [(0, elapsed[:cut], int(elapsed[cut])), (cut, elapsed[cut:], None)] if cut else [(0, elapsed, None)]
    )
    picked: list[int] = []
    for start, part, following in parts:
        keep = on_grid(part.astype(np.int64), following=following, ticks_per_step=every / time_base)
        picked += (np.flatnonzero(keep) + start).tolist()
    return picked


@given(ELAPSED, TIME_BASES, EVERY)
def test_every_is_the_last_frame_at_or_before_each_grid_point(
    elapsed: np.ndarray, time_base: Fraction, every: Fraction
) -> None:
    ts = [int(ticks) * time_base for ticks in elapsed]
    assert sampled(elapsed, time_base, every) == brute_force_sample(ts, every)


@given(ELAPSED, TIME_BASES, EVERY, st.data())
def test_every_does_not_see_segments(
    elapsed: np.ndarray, time_base: Fraction, every: Fraction, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(elapsed) - 1))
    assert sampled(elapsed, time_base, every, cut=cut) == sampled(elapsed, time_base, every)


def test_grid_points_on_frames_are_exact_where_floats_are_not() -> None:
    # 0.1 s at 30 frames a second is every third frame; 3 * 0.1 > 0.3 in floats.
    elapsed = np.arange(31)
    assert sampled(elapsed, Fraction(1, 30), Fraction(1, 10)) == list(range(0, 31, 3))


def test_long_videos_with_odd_steps_do_not_overflow() -> None:
    elapsed = np.array([0, 2**40, 2**41, 2**42])
    every = Fraction(333333333333, 10**12)
    assert sampled(elapsed, Fraction(1, 90000), every) == [0, 1, 2]


@pytest.mark.parametrize("where", ["ts > 0.7", "segment = 1", "frame BETWEEN 33 AND 70", "label = 'cat'"])
@pytest.mark.parametrize("options", ["every := 0.33", "every := 1", "stride := 7"])
def test_the_sampled_set_does_not_depend_on_where(
    snapshot: FixtureSnapshot, where: str, options: str
) -> None:
    everything = f"SELECT * FROM (SELECT * FROM labels({options}) LIMIT 100000)"
    columns = "video_id, frame, rank"
    narrowed = ask(snapshot, f"SELECT {columns} FROM labels({options}) WHERE {where}").fetchall()
    expected = ask(snapshot, f"SELECT {columns} FROM ({everything}) WHERE {where}").fetchall()
    assert sorted(narrowed) == sorted(expected)
    assert narrowed
