"""Order: every frame once an epoch, a function of seed and epoch, whoever hands it over."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvpstore.errors import UsageError
from nvpstore.handover.chunks import Order, chunks_of, given_out

PLACES = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 40)), min_size=1, unique=True
)


def table(places: list[tuple[str, int, int]]) -> pa.Table:
    names = ("video_id", "segment", "frame")
    return pa.table({name: [place[i] for place in places] for i, name in enumerate(names)})


@given(places=PLACES, most=st.integers(1, 9))
def test_chunks_are_of_one_segment_and_hold_each_row_once(
    places: list[tuple[str, int, int]], most: int
) -> None:
    chunks = chunks_of(table(places), most=most)
    rows = [row for chunk in chunks for row in chunk.rows.tolist()]
    assert sorted(rows) == list(range(len(places)))
    for chunk in chunks:
        assert {places[row][:2] for row in chunk.rows.tolist()} == {(chunk.video_id, chunk.segment)}
        assert 1 <= len(chunk.rows) <= most
    assert [places[row] for row in rows] == sorted(places)


@given(count=st.integers(1, 60), mix=st.integers(1, 9), epoch=st.integers(0, 3))
def test_an_epoch_has_every_chunk_once_and_is_shuffled_anew(count: int, mix: int, epoch: int) -> None:
    order = Order(batch=4, mix=mix, seed=5)
    groups = order.groups(count, epoch)
    assert sorted(np.concatenate(groups).tolist()) == list(range(count))
    assert all(len(group) <= mix for group in groups)
    again = order.groups(count, epoch)
    assert [group.tolist() for group in groups] == [group.tolist() for group in again]
    if count > 9:
        other = np.concatenate(order.groups(count, epoch + 1)).tolist()
        assert other != np.concatenate(groups).tolist()
    plain = Order(batch=4, mix=mix, seed=None).groups(count, epoch)
    assert np.concatenate(plain).tolist() == list(range(count))


@given(batches=st.lists(st.integers(0, 6), min_size=1, max_size=5), done=st.integers(0, 40))
def test_batches_are_given_out_in_turn(batches: list[int], done: int) -> None:
    turns = [w for turn in range(6) for w, own in enumerate(batches) if turn < own]
    given, turn = given_out(batches, done)
    assert given == [turns[:done].count(worker) for worker in range(len(batches))]
    order = [*range(turn, len(batches)), *range(turn)]
    left = [own - taken for own, taken in zip(batches, given, strict=True)]
    assert turns[done:] == [worker for lap in range(6) for worker in order if lap < left[worker]]


def test_rows_that_cannot_be_found_are_refused() -> None:
    with pytest.raises(UsageError, match="rows without segment, frame"):
        chunks_of(pa.table({"video_id": ["a"]}), most=4)
    with pytest.raises(UsageError, match="no frames"):
        chunks_of(
            table([]).cast(pa.schema({"video_id": "string", "segment": "int32", "frame": "int64"})), most=4
        )
    with pytest.raises(UsageError, match="batch 0, mix 1"):
        Order(batch=0, mix=1, seed=None)
