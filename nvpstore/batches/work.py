"""What a batch has to compute, divided among workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Key = tuple[str, int]  # video, segment

PARTS_A_WORKER = 8  # so that one that is slow, or lost, costs an eighth of its share at most
MOST_FRAMES = 20_000  # of a part: what is lost with a worker is computed again


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WorkPart:
    """Segments that one worker computes at a time: `segments` int32 [n] of `videos[codes]`, codes int32 [n]
    ascending. `number` counts from 0. Columns, since a million keys as objects are hundreds of megabytes.
    """

    number: int
    videos: tuple[str, ...]
    codes: NDArray[np.int32]
    segments: NDArray[np.int32]
    frames: int

    @property
    def keys(self) -> tuple[Key, ...]:
        pairs = zip(self.codes.tolist(), self.segments.tolist(), strict=True)
        return tuple((self.videos[code], segment) for code, segment in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartDone:
    """What a worker did of a part: frames it decoded, those it found stored, its seconds."""

    number: int
    decoded_frames: int
    answered_frames: int
    seconds: float


def divide(work: pa.Table, *, workers: int) -> list[WorkPart]:
    """The segments of `work` (query.part.WORK_SCHEMA) as parts of about equal frames, in order.

    Neighbouring segments of a video stay together where they can: a part commits once a video.
    """
    if not work.num_rows:
        return []
    ids = work["video_id"].combine_chunks().dictionary_encode()
    code, segment = ids.indices.to_numpy(), work["segment"].to_numpy()
    ends = np.cumsum(work["frames"].to_numpy())
    size = max(1, min(MOST_FRAMES, -(-int(ends[-1]) // (workers * PARTS_A_WORKER))))
    parts = []
    for number, (first, stop) in enumerate(_cut(ends, size)):
        codes, own = np.unique(code[first:stop], return_inverse=True)
        parts.append(
            WorkPart(
                number=number,
                videos=tuple(ids.dictionary.take(pa.array(codes)).to_pylist()),
                codes=own.astype(np.int32),
                segments=segment[first:stop].copy(),
                frames=int(ends[stop - 1] - (ends[first - 1] if first else 0)),
            )
        )
    return parts


def _cut(ends: NDArray[np.int64], size: int) -> Iterator[tuple[int, int]]:
    """Rows [first, stop) of at most `size` frames each, or of one row; `ends` are their frames added up."""
    first, before = 0, 0
    while first < len(ends):
        stop = max(first + 1, int(np.searchsorted(ends, before + size, side="right")))
        yield first, stop
        first, before = stop, int(ends[stop - 1])
