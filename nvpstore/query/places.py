"""Which row of a table of segments holds a segment: for whole columns at once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Segments in order of video and number: `videos` in order, of each segment its video's place in them
    (int32 [n], ascending) and its number (int32 [n], ascending within a video)."""

    videos: pa.Array
    code: NDArray[np.int32]
    segment: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.code)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        names = self.videos.to_pylist()
        yield from ((names[c], s) for c, s in zip(self.code.tolist(), self.segment.tolist(), strict=True))

    def only(self, rows: NDArray[np.int64]) -> Places:
        """Just the segments at `rows`, which ascend, and their videos."""
        # Ids that nothing refers to any more would still be looked for in the index.
        codes, code = np.unique(self.code[rows], return_inverse=True)
        videos = self.videos.take(pa.array(codes))
        return Places(videos=videos, code=code.astype(np.int32), segment=self.segment[rows])

    def key(self, row: int) -> tuple[str, int]:
        return str(self.videos[int(self.code[row])].as_py()), int(self.segment[row])

    def row(self, key: tuple[str, int]) -> int:
        """The row of one segment. Raises KeyError."""
        video_id, segment = key
        videos = self.videos
        code = bisect_left(range(len(videos)), video_id, key=lambda place: videos[place].as_py())
        low, high = np.searchsorted(self.code, [code, code + 1])
        row = int(low + np.searchsorted(self.segment[low:high], segment))
        if row >= high or self.key(row) != key:
            raise KeyError(key)
        return row

    def rows(self, video_ids: pa.Array, segments: NDArray[np.int32]) -> NDArray[np.int64]:
        """The row of each (video, segment), int64 [m]; -1 for those that are not here."""
        codes = self.codes(video_ids)
        if len(self) == 0 or len(codes) == 0:
            return np.full(len(codes), -1, dtype=np.int64)
        starts = np.searchsorted(self.code, np.arange(len(self.videos)))
        # Mostly a video's segments are here one after another: then there is nothing to search for.
        guess = np.clip(starts[codes] + segments - self.segment[starts[codes]], 0, len(self) - 1)
        hit = (self.code[guess] == codes) & (self.segment[guess] == segments)
        missed = np.flatnonzero(~hit & (codes >= 0))
        found = np.where(hit, guess, -1)
        if len(missed):
            numbers = _numbers(self.code, self.segment)
            wanted = _numbers(codes[missed], segments[missed])
            at = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
            found[missed] = np.where(numbers[at] == wanted, at, -1)
        return found

    def codes(self, video_ids: pa.Array) -> NDArray[np.int64]:
        """The place of each id in `videos`, -1 for those that are not there."""
        if len(video_ids) == 0:
            return np.empty(0, dtype=np.int64)
        # An index is in order of videos: whole runs of equal ids are looked up at once.
        starts = run_starts(video_ids)
        codes = pc.fill_null(pc.index_in(video_ids.take(pa.array(starts)), value_set=self.videos), -1)
        return np.repeat(codes.to_numpy().astype(np.int64), np.diff(np.append(starts, len(video_ids))))

    def dictionary(self) -> pa.DictionaryArray:
        """The segments' video ids."""
        return pa.DictionaryArray.from_arrays(pa.array(self.code, pa.int32()), self.videos)


def run_starts(values: pa.Array) -> NDArray[np.int64]:
    """Where runs of equal neighbours begin, int64; `values` has no nulls and is not empty."""
    changed = pc.not_equal(values.slice(1), values.slice(0, len(values) - 1))
    return np.concatenate([[0], np.flatnonzero(changed.to_numpy(zero_copy_only=False)) + 1])


def in_order(table: pa.Table) -> tuple[pa.Table, Places]:
    """`table` by video_id and segment, and its places; without copying where it is in order already."""
    places = _places(table)
    ordered = _numbers(places.code, places.segment)
    if len(ordered) and (np.diff(ordered) <= 0).any():
        at = np.argsort(ordered, kind="stable")
        table = table.take(pa.array(at))
        places = Places(videos=places.videos, code=places.code[at], segment=places.segment[at])
    return table, places


def _places(table: pa.Table) -> Places:
    segment = table["segment"].to_numpy()
    column = table["video_id"].combine_chunks()
    if len(segment) == 0:
        return Places(videos=pa.array([], pa.string()), code=np.empty(0, np.int32), segment=segment)
    starts = run_starts(column)
    firsts = column.take(pa.array(starts))
    videos = pc.unique(firsts)
    videos = videos.take(pc.sort_indices(videos))
    codes = pc.index_in(firsts, value_set=videos).to_numpy().astype(np.int32)
    return Places(
        videos=videos, code=np.repeat(codes, np.diff(np.append(starts, len(segment)))), segment=segment
    )


def _numbers(code: NDArray[Any], segment: NDArray[np.int32]) -> NDArray[np.int64]:
    """One number a segment, in the order of video and number."""
    return (code.astype(np.int64) << 32) + segment
