"""The order in which frames are handed over: a pure function of seed and epoch, divided among workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nvpstore.errors import UsageError

NEEDED = ("video_id", "segment", "frame")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Frames of one segment that are decoded together: `rows` int64 [t] of the table, by frame."""

    video_id: str
    segment: int
    rows: NDArray[np.int64]


def chunks_of(rows: pa.Table, *, most: int) -> list[Chunk]:
    """The rows of a table with NEEDED columns, by video, segment and frame, at most `most` ≥ 1 a chunk.

    Raises UsageError where columns are missing or nothing is asked for.
    """
    if missing := [name for name in NEEDED if name not in rows.schema.names]:
        raise UsageError(
            f"rows without {', '.join(missing)}: a query such as SELECT video_id, segment, frame FROM frames"
        )
    if not rows.num_rows:
        raise UsageError("no frames: the query that chose them has no rows")
    keyed = rows.select(list(NEEDED)).append_column("row", pa.array(np.arange(rows.num_rows)))
    ordered = keyed.sort_by([(name, "ascending") for name in NEEDED])
    codes = ordered["video_id"].combine_chunks().dictionary_encode()
    video, segment = codes.indices.to_numpy(), ordered["segment"].to_numpy()
    row = ordered["row"].to_numpy()
    ends = np.flatnonzero((np.diff(video) != 0) | (np.diff(segment) != 0)) + 1
    names = codes.dictionary.to_pylist()
    return [
        Chunk(video_id=names[video[start]], segment=int(segment[start]), rows=row[start:stop])
        for first, last in _runs(ends, len(row))
        for start, stop in _pieces(first, last, most)
    ]


def _runs(ends: NDArray[np.int64], count: int) -> Iterator[tuple[int, int]]:
    yield from zip([0, *ends.tolist()], [*ends.tolist(), count], strict=True)


def _pieces(first: int, last: int, most: int) -> Iterator[tuple[int, int]]:
    for start in range(first, last, most):
        yield start, min(last, start + most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """How chunks become batches: groups of `mix` chunks, whose frames are dealt into batches of `batch`.

    With a `seed` chunks are shuffled in each epoch, and frames within their group; without, neither.
    """

    batch: int
    mix: int
    seed: int | None

    def __post_init__(self) -> None:
        if self.batch < 1 or self.mix < 1:
            raise UsageError(f"batch {self.batch}, mix {self.mix}: at least 1 is needed")

    def groups(self, count: int, epoch: int) -> list[NDArray[np.int64]]:
        """Numbers of chunks, group by group."""
        order = np.arange(count)
        if self.seed is not None:
            order = np.random.default_rng((self.seed, epoch)).permutation(count)
        return np.split(order, range(self.mix, count, self.mix))

    def deal(self, frames: int, group: int, epoch: int) -> list[NDArray[np.int64]]:
        """The places of a group's `frames` frames, batch by batch."""
        places = np.arange(frames)
        if self.seed is not None:
            places = np.random.default_rng((self.seed, epoch, group)).permutation(frames)
        return np.split(places, range(self.batch, frames, self.batch))

    def batches(self, frames: int) -> int:
        """How many batches a group of so many frames gives."""
        return -(-frames // self.batch)


def given_out(batches: Sequence[int], done: int) -> tuple[list[int], int]:
    """How many of its `batches` each worker has given, once `done` were taken from them in turn, and whose
    turn it is then.

    Who has none left is passed over, as torch's DataLoader does.
    """
    given, turn = [0] * len(batches), 0
    done = min(done, sum(batches))
    while done > 0:
        if given[turn] < batches[turn]:
            given[turn] += 1
            done -= 1
        turn = (turn + 1) % len(batches)
    return given, turn
