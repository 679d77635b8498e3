"""Rows of the index on a few segments, however they lie, and however many they turn out to be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from benchmarks.planning import open_index, write_index
from nvpstore.query.few import FEW, few_rows, rows_of
from nvpstore.query.index import load_tasks
from nvpstore.query.places import Places
from nvpstore.query.rows_at import BySegment, read_rows


@pytest.fixture(scope="module")
def con(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    path: Path = tmp_path_factory.mktemp("index") / "index.duckdb"
    write_index(path, 400)
    with open_index(path).connect() as connection:
        yield connection


def places_of(con: duckdb.DuckDBPyConnection, *segments: tuple[int, int]) -> Places:
    """Of (the video's place in the index, segment)."""
    names = sorted(row[0] for row in con.execute("SELECT video_id FROM videos").fetchall())
    codes, code = np.unique([video for video, _ in segments], return_inverse=True)
    return Places(
        videos=pa.array([names[at] for at in codes], pa.string()),
        code=code.astype(np.int32),
        segment=np.array([segment for _, segment in segments], dtype=np.int32),
    )


@pytest.mark.parametrize(
    "segments",
    [
        [(1, 7)],
        [(0, 3), (0, 4), (0, 5), (2, 4)],
        [(0, 0), (1, 99), (2, 50)],  # far apart: asked for one by one
        [(video, segment) for video in range(3) for segment in range(100)],
    ],
    ids=["one", "neighbours", "far apart", "whole videos"],
)
def test_each_segment_has_its_stages_and_routes(
    con: duckdb.DuckDBPyConnection, segments: list[tuple[int, int]]
) -> None:
    places = places_of(con, *segments)
    (task,) = load_tasks(con)
    rows = read_rows(con, task, places)
    assert rows.routes is not None
    assert rows.stages.num_rows <= 6 * 4 * len(places)
    stages, routes = BySegment(places, rows.stages), BySegment(places, rows.routes)
    for row, (video_id, segment) in enumerate(places):
        where = "WHERE video_id = ? AND segment = ?"
        expected = con.execute(
            f"SELECT stage, size_bytes, gflops FROM idx.store.stages {where}", [video_id, segment]
        ).fetchall()
        found = [(one["stage"], one["size_bytes"], one["gflops"]) for one in stages.at(row)]
        assert sorted(found) == sorted(expected)
        keys = con.execute(
            f'SELECT route, "offset", sha256 FROM idx.store.routes {where}', [video_id, segment]
        ).fetchall()
        assert {(one["route"], one["offset"], one["sha256"]) for one in routes.at(row)} == set(keys)


def test_of_no_segments_there_are_no_rows(con: duckdb.DuckDBPyConnection) -> None:
    (task,) = load_tasks(con)
    rows = read_rows(con, task, places_of(con))
    assert (rows.stages.num_rows, rows.routes is not None and rows.routes.num_rows) == (0, 0)


@pytest.mark.parametrize("count", [0, 1, FEW, FEW + 1, 3 * FEW])
def test_few_rows_and_many_are_the_same_table(con: duckdb.DuckDBPyConnection, count: int) -> None:
    schema = pa.schema([("n", pa.int32()), ("t", pa.string()), ("l", pa.list_(pa.int64()))])
    sql = "SELECT i AS n, nullif(i, 1)::VARCHAR AS t, [i, NULL] AS l FROM range(?) AS r(i)"
    assert few_rows(con, sql, schema, [count]).equals(rows_of(con, sql, schema, [count]))
    assert con.sql("SELECT 1").fetchall() == [(1,)]  # nothing is left open
