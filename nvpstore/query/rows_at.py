"""Rows of the index on a few segments, read once: for the choice of routes, and for carrying them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nvpstore.query.few import few_rows, rows_of
from nvpstore.query.places import Places
from nvpstore.query.safety import quoted
from nvpstore.query.sample import SMALL, videos_filter
from nvpstore.types import TaskRecord

# Text that is equal where routes differ in fidelity, cost and adapter only.
KIND_SQL = "concat(route, chr(1), array_to_string(stages, chr(2)), chr(1), cut, chr(1), scope)"
_SPARSE = 4  # times as many rows as are wanted may be read
_VERY_FEW = 32  # segments, of which no table has many rows
_STAGES = pa.schema(
    [
        *(("video_id", pa.string()), ("segment", pa.int32()), ("position", pa.int32())),
        *(("stage", pa.string()), ("size_bytes", pa.int64()), ("gflops", pa.float64())),
    ]
)
_ROUTES = pa.schema(
    [
        *(("video_id", pa.string()), ("segment", pa.int32()), ("fidelity", pa.float64())),
        *(("gflops", pa.float64()), ("bytes", pa.int64()), ("kind", pa.string()), ("route", pa.string())),
        *(("stages", pa.list_(pa.string())), ("cut", pa.string()), ("scope", pa.string())),
        *(("key", pa.string()), ("offset", pa.int64()), ("size_bytes", pa.int64()), ("sha256", pa.string())),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsAt:
    """Rows of `stages` and, of a task, of `routes`: all of some segments, maybe of others too."""

    stages: pa.Table
    routes: pa.Table | None


def read_rows(con: duckdb.DuckDBPyConnection, task: TaskRecord | None, places: Places) -> RowsAt:
    """What is stored of the segments at `places`, at most `SMALL`."""
    assert len(places) <= SMALL, "rows of many segments are not read at once"
    where = _segments_filter(places)
    read = few_rows if len(places) <= _VERY_FEW else rows_of
    stages = read(con, f"SELECT {_names(_STAGES)} FROM idx.store.stages{where}", _STAGES)
    if task is None:
        return RowsAt(stages=stages, routes=None)
    among = f"SELECT * REPLACE (coalesce(bytes, 0) AS bytes), {KIND_SQL} AS kind FROM idx.store.routes{where}"
    routes = f"SELECT {_names(_ROUTES)} FROM ({among} AND task = ? AND version = ?)"
    return RowsAt(stages=stages, routes=read(con, routes, _ROUTES, [task.name, task.version]))


def _names(schema: pa.Schema) -> str:
    return ", ".join(f'"{name}"' for name in schema.names)


def _segments_filter(places: Places) -> str:
    """What follows a table's name, so that an index is not read beyond the videos of `places`."""
    where = videos_filter(places.videos)
    if not len(places):
        return where
    first, last = int(places.segment.min()), int(places.segment.max())
    where += f" AND segment BETWEEN {first} AND {last}"
    if len(places.videos) * (last - first + 1) <= _SPARSE * len(places):
        return where
    videos = ", ".join(quoted(video_id) for video_id, _ in places)
    numbers = ", ".join(map(str, places.segment.tolist()))
    wanted = f"SELECT unnest([{videos}]) AS video_id, unnest([{numbers}]) AS segment"
    return f" SEMI JOIN ({wanted}) USING (video_id, segment){where}"


class BySegment:
    """The rows of a table with `video_id` and `segment` at each of some places, as dicts."""

    def __init__(self, places: Places, table: pa.Table) -> None:
        owner = places.rows(table["video_id"].combine_chunks(), table["segment"].to_numpy())
        here = np.flatnonzero(owner >= 0)
        here = here[np.argsort(owner[here], kind="stable")]
        self._starts: NDArray[np.int64] = np.searchsorted(owner[here], np.arange(len(places) + 1))
        self._rows: list[dict[str, Any]] = table.take(pa.array(here)).to_pylist()

    def at(self, row: int) -> list[dict[str, Any]]:
        start, stop = self._starts[row : row + 2].tolist()
        return self._rows[start:stop]
