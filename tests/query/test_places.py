"""Segments are found by whole columns, in whatever order they come."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvpstore.query.places import in_order

KEYS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "ba", "c"]), st.integers(0, 9)), unique=True, max_size=20
)


def as_table(keys: list[tuple[str, int]]) -> pa.Table:
    return pa.table(
        {
            "video_id": pa.array([video_id for video_id, _ in keys], pa.string()),
            "segment": pa.array([segment for _, segment in keys], pa.int32()),
        }
    )


@given(KEYS, KEYS)
def test_rows_are_those_of_a_search_one_by_one(
    keys: list[tuple[str, int]], asked: list[tuple[str, int]]
) -> None:
    table, places = in_order(as_table(keys))
    ordered = sorted(keys)
    assert list(zip(*(column.to_pylist() for column in table.columns), strict=True)) == ordered
    assert list(places) == ordered
    wanted = as_table(asked)
    rows = places.rows(wanted["video_id"].combine_chunks(), wanted["segment"].to_numpy())
    assert rows.tolist() == [ordered.index(key) if key in ordered else -1 for key in asked]
    for key in asked:
        if key in ordered:
            assert places.row(key) == ordered.index(key)
        else:
            with pytest.raises(KeyError):
                places.row(key)


def test_what_is_in_order_is_not_copied() -> None:
    table = as_table([("a", 0), ("a", 1), ("b", 0)])
    assert in_order(table)[0] is table
    assert np.array_equal(in_order(table)[1].code, [0, 0, 1])
