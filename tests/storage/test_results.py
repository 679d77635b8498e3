"""Results objects: rows and coverage come back from a footer and a row group; damage is noticed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvpstore.errors import IntegrityError
from nvpstore.storage import keys
from nvpstore.storage.objects import open_store
from nvpstore.storage.results import (
    AnswerPart,
    Answers,
    decode_rows,
    encode_results,
    fetch_footer,
    intervals,
    read_parts,
)
from nvpstore.types import StoredObject
from tests.storage.counting import CountingStore

BOX = pa.struct([(side, pa.float32()) for side in ("x0", "y0")])
DETECTIONS = pa.schema(
    {
        "frame": pa.int64(),
        "label": pa.string(),
        "box": BOX,
        "embedding": pa.list_(pa.float32()),
    }
)


def found(*frames: int) -> pa.Table:
    rows = [
        {"frame": f, "label": f"cat {f}", "box": {"x0": f, "y0": 1}, "embedding": [0.5, f]} for f in frames
    ]
    return pa.Table.from_pylist(rows, schema=DETECTIONS)


def part(segment: int, asked: list[int], rows: pa.Table) -> AnswerPart:
    return AnswerPart(
        segment=segment, route="a" * 32, covered=intervals(np.array(asked, np.int64)), rows=rows
    )


def some_answers(parts: int = 3) -> Answers:
    made = [
        part(n, [10 * n, 10 * n + 1, 10 * n + 5], found(10 * n, 10 * n, 10 * n + 5)) for n in range(parts)
    ]
    nothing = part(parts, [10 * parts, 10 * parts + 2], found())
    return Answers(video_id="0" * 32, task="boxes", version="1" * 64, result="2" * 32, parts=(*made, nothing))


def stored(answers: Answers) -> tuple[CountingStore, StoredObject]:
    store = CountingStore(open_store(f"memory://{keys.new_attempt()}"))
    encoded = encode_results(answers, keys.new_attempt())
    return store, store.inner.put(encoded.key, encoded.data)


class TestIntervals:
    @given(st.sets(st.integers(0, 60)), st.lists(st.integers(0, 70)))
    def test_are_the_frames_they_are_made_of(self, frames: set[int], asked: list[int]) -> None:
        runs = intervals(np.array(sorted(frames), dtype=np.int64))
        assert runs.listed().tolist() == sorted(frames)
        assert runs.frames == len(frames)
        assert runs.holds(np.array(asked, dtype=np.int64)).tolist() == [frame in frames for frame in asked]
        assert (runs.starts[1:] > runs.stops[:-1]).all()


class TestObjects:
    def test_rows_and_coverage_come_back(self) -> None:
        answers = some_answers()
        store, obj = stored(answers)
        footer = fetch_footer(store, obj)
        task, places = read_parts(footer, obj.key)
        assert task == "boxes"
        for place, part in zip(places, answers.parts, strict=True):
            assert (place.segment, place.route, place.rows) == (part.segment, part.route, part.rows.num_rows)
            assert place.covered.listed().tolist() == part.covered.listed().tolist()
            if place.row_group is None:
                assert not part.rows.num_rows
                continue
            at = place.row_group
            rows = decode_rows(store.get_range(at.key, at.offset, at.size_bytes), footer, at)
            assert rows.to_pylist() == part.rows.to_pylist()

    def test_nothing_found_anywhere_is_an_answer(self) -> None:
        answers = Answers(
            video_id="0" * 32, task="a", version="1" * 64, result="2" * 32, parts=(part(0, [3, 4], found()),)
        )
        store, obj = stored(answers)
        (place,) = read_parts(fetch_footer(store, obj), obj.key)[1]
        assert (place.covered.listed().tolist(), place.rows, place.row_group) == ([3, 4], 0, None)

    def test_a_footer_costs_one_request_or_two_where_it_is_long(self) -> None:
        for parts, requests in ((3, 1), (300, 2)):
            store, obj = stored(some_answers(parts))
            read_parts(fetch_footer(store, obj), obj.key)
            assert len(store.ranges) == requests

    @pytest.mark.parametrize("where", [-1, -5, -200])
    def test_a_flipped_bit_in_the_footer_is_noticed(self, where: int) -> None:
        encoded = encode_results(some_answers(), keys.new_attempt())
        data = bytearray(encoded.data)
        data[where] ^= 1
        store = open_store(f"memory://{keys.new_attempt()}")
        obj = store.put(encoded.key, bytes(data))
        with pytest.raises(IntegrityError):
            read_parts(fetch_footer(store, obj), obj.key)

    def test_a_flipped_bit_in_rows_is_noticed(self) -> None:
        store, obj = stored(some_answers())
        footer = fetch_footer(store, obj)
        at = read_parts(footer, obj.key)[1][1].row_group
        assert at is not None
        data = bytearray(store.get_range(at.key, at.offset, at.size_bytes))
        data[7] ^= 1
        with pytest.raises(IntegrityError, match="at offset"):
            decode_rows(bytes(data), footer, at)

    def test_nulls_and_no_parts_are_refused(self) -> None:
        missing = found(1).set_column(1, "label", pa.nulls(1, pa.string()))
        for parts in ((), (part(0, [1], missing),)):
            answers = Answers(video_id="0" * 32, task="a", version="1" * 64, result="2" * 32, parts=parts)
            with pytest.raises(ValueError, match=r"at least one part|nulls in \['label'\]"):
                encode_results(answers, keys.new_attempt())
