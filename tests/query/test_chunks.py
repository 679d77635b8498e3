"""Batches are a function of the frames alone, and alike for queries that want nearly the same."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nvpstore.query.chunks import batches, fitting_frames

FRAMES = st.sets(st.integers(0, 300), max_size=200).map(sorted)


@given(FRAMES, st.integers(0, 5), st.sampled_from([1, 4, 8, 32]))
def test_batches_hold_every_frame_once_in_order(frames: list[int], start: int, size: int) -> None:
    asked = np.array([start + frame for frame in frames], dtype=np.int64)
    found = list(batches(asked, start=start, batch_frames=size))
    assert [frame for part in found for frame in part.tolist()] == asked.tolist()
    assert all(1 <= len(part) <= size for part in found)


@given(FRAMES)
def test_a_block_that_is_wanted_whole_is_a_batch_whatever_else_is(frames: list[int]) -> None:
    block = set(range(64 + 3, 96 + 3))
    asked = np.array(sorted({*frames, *block}), dtype=np.int64)
    assert sorted(block) in [part.tolist() for part in batches(asked, start=3, batch_frames=32)]


def test_scattered_frames_are_gathered() -> None:
    asked = np.arange(0, 640, 12)
    assert [len(part) for part in batches(asked, start=0, batch_frames=32)] == [32, 22]


def test_as_many_frames_as_fit() -> None:
    fits = [fitting_frames(32, frame_bytes=10, room_bytes=room) for room in (10**6, 319, 30, 0)]
    assert fits == [32, 31, 3, 1]
