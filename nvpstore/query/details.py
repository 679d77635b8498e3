"""What carrying out a plan needs of each segment, read from the index some segments at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nvpstore.errors import QueryError
from nvpstore.query.frames import enumerate_frames, sampled, work_table
from nvpstore.query.index import Key, SegmentFacts, Stored
from nvpstore.query.options import TableOptions
from nvpstore.query.places import Places
from nvpstore.query.routes import Route, choose
from nvpstore.query.rows_at import RowsAt, read_rows
from nvpstore.query.sample import Scoped, timing_rows
from nvpstore.types import TaskRecord

CHUNK_SEGMENTS = 1024
CHUNK_FRAMES = 1 << 18
_KEPT_CHUNKS = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunk:
    """Neighbouring segments of a scan, `first` being the first one's row. The frames of the n-th are
    `work[starts[n] : starts[n + 1]]`; `routes` are those that were asked for so far."""

    first: int
    stored: Stored
    work: pa.Table
    starts: NDArray[np.int64]
    routes: dict[Key, Route] = field(default_factory=dict)

    def route(self, key: Key, options: TableOptions) -> Route:
        """The route that `options` choose. Raises KeyError where there is none."""
        if key not in self.routes:
            route = choose(self.stored.routes(key), options)
            if route is None:
                raise KeyError(key)
            self.routes[key] = route
        return self.routes[key]


class Details:
    """The segments of one scan. Can be used by several threads, as long as its query's connection is open;
    beyond that only what fits in one chunk, which is read at once."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        task: TaskRecord | None,
        options: TableOptions,
        scoped: Scoped,
        rows: RowsAt | None = None,
    ) -> None:
        """`rows` are those of its segments, where they were read and are few."""
        self.con = con.cursor()
        self._task, self._options, self._scoped = task, options, scoped
        self._rows = rows
        self._bounds = _bounds(scoped.frames)
        self._chunks: OrderedDict[int, Chunk] = OrderedDict()
        self._lock = threading.Lock()
        self.remembered: Any = None  # what others derived from all segments
        if len(self._bounds) == 2:
            self._chunk(0)

    @property
    def at_hand(self) -> Chunk | None:
        """The whole scan where it is one chunk."""
        return self._chunk(0) if len(self._bounds) == 2 else None

    def facts(self, key: Key) -> SegmentFacts:
        return self._chunk(self._scoped.places.row(key)).stored.facts(key)

    def route(self, key: Key) -> Route:
        chunk = self._chunk(self._scoped.places.row(key))
        with self._lock:
            return chunk.route(key, self._options)

    def work(self, key: Key) -> pa.Table:
        """The frames in scope of one segment, WORK_SCHEMA."""
        row = self._scoped.places.row(key)
        chunk = self._chunk(row)
        start, stop = chunk.starts[row - chunk.first : row - chunk.first + 2].tolist()
        return chunk.work.slice(start, stop - start)

    def all_work(self) -> pa.Table:
        """The frames of all segments."""
        if self.at_hand is not None:
            return self.at_hand.work
        return pa.concat_tables([self._chunk(first).work for first in self._bounds[:-1].tolist()])

    def _chunk(self, row: int) -> Chunk:
        number = min(int(np.searchsorted(self._bounds, row, side="right")), len(self._bounds) - 1) - 1
        with self._lock:
            chunk = self._chunks.get(number)
            if chunk is None:
                chunk = self._chunks[number] = self._read(number)
            self._chunks.move_to_end(number)
            if len(self._chunks) > _KEPT_CHUNKS:
                self._chunks.popitem(last=False)
        return chunk

    def _read(self, number: int) -> Chunk:
        low, high = self._bounds[number : number + 2].tolist()
        scoped = self._scoped
        code, segment = scoped.places.code[low:high], scoped.places.segment[low:high]
        first, last = (int(code[0]), int(code[-1]) + 1) if len(code) else (0, 0)
        videos = scoped.places.videos.slice(first, last - first)
        places = Places(videos=videos, code=code - first, segment=segment)
        try:
            return self._read_places(places, low, high)
        except duckdb.ConnectionException as cause:
            raise QueryError("a plan of this size can only be read while its query runs") from cause

    def _read_places(self, places: Places, low: int, high: int) -> Chunk:
        if self._scoped.timing is not None:
            rows = self._scoped.timing.slice(low, high - low)
        else:
            rows = timing_rows(self.con, places, self._options)
        frames = enumerate_frames(rows)
        keep = sampled(rows, frames, self._options)
        keep &= self._mask(rows, frames.owner, low, high)
        counts = np.bincount(frames.owner[keep], minlength=high - low)
        return Chunk(
            first=low,
            stored=Stored(
                places,
                self._task,
                timing=rows,
                rows=read_rows(self.con, self._task, places) if self._rows is None else self._rows,
            ),
            work=work_table(rows, frames, keep),
            starts=np.concatenate([[0], np.cumsum(counts)]),
        )

    def _mask(self, rows: pa.Table, owner: NDArray[np.int64], low: int, high: int) -> NDArray[np.bool_]:
        """Which frames of the segments from `low` to `high`, all enumerated, are in scope."""
        starts = self._scoped.mask_at[low:high][owner]
        counts = rows["frames"].to_numpy().astype(np.int64)
        place = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
        keep = np.ones(len(owner), dtype=np.bool_)
        some = np.flatnonzero(starts >= 0)
        octets = self._scoped.masks[starts[some] + place[some] // 8]
        keep[some] = (octets >> (7 - place[some] % 8).astype(np.uint8)) & 1
        return keep


def _bounds(frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows at which chunks begin, and the number of rows."""
    chunk = np.arange(len(frames)) // CHUNK_SEGMENTS, np.cumsum(frames) // CHUNK_FRAMES
    changed = (np.diff(chunk[0]) != 0) | (np.diff(chunk[1]) != 0)
    return np.concatenate([[0], np.flatnonzero(changed) + 1, [len(frames)]]).astype(np.int64)


class RoutesBySegment(Mapping[Key, Route]):
    """The route of each segment of a scan."""

    def __init__(self, details: Details, places: Places) -> None:
        self._details, self._places = details, places

    def __getitem__(self, key: Key) -> Route:
        return self._details.route(key)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class FactsBySegment(Mapping[Key, SegmentFacts]):
    """Facts of each segment that one of some scans reads."""

    def __init__(self, scans: tuple[tuple[Details, Places], ...]) -> None:
        self._scans = scans

    def __getitem__(self, key: Key) -> SegmentFacts:
        for details, _ in self._scans:
            try:
                return details.facts(key)
            except KeyError:
                continue
        raise KeyError(key)

    def __iter__(self) -> Iterator[Key]:
        return iter(dict.fromkeys(key for _, places in self._scans for key in places))

    def __len__(self) -> int:
        return sum(1 for _ in self)
