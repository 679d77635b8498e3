"""Work divided: nothing lost, nothing twice, about equal parts."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from nvpstore.batches.work import MOST_FRAMES, PARTS_A_WORKER, divide
from nvpstore.query.part import WORK_SCHEMA


def work(counts: list[int]) -> pa.Table:
    rows = [{"video_id": f"v{i // 3:04}", "segment": i % 3, "frames": n} for i, n in enumerate(counts)]
    return pa.Table.from_pylist(rows, schema=WORK_SCHEMA)


@given(st.lists(st.integers(1, 300), max_size=200), st.integers(1, 9))
def test_every_segment_is_in_one_part(counts: list[int], workers: int) -> None:
    parts = divide(work(counts), workers=workers)
    keys = [key for part in parts for key in part.keys]
    assert keys == [(f"v{i // 3:04}", i % 3) for i in range(len(counts))]
    assert sum(part.frames for part in parts) == sum(counts)
    assert [part.number for part in parts] == list(range(len(parts)))
    size = -(-sum(counts) // (workers * PARTS_A_WORKER)) if counts else 0
    assert all(part.frames <= max(size, max(counts)) for part in parts)


def test_parts_are_never_huge() -> None:
    parts = divide(work([1000] * 1000), workers=1)
    assert max(part.frames for part in parts) <= MOST_FRAMES


def test_no_work_is_no_part() -> None:
    assert divide(work([]), workers=4) == []
