"""What a batch has to compute, divided among workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

Key = tuple[str, int]  # video, segment

PARTS_A_WORKER = 8  # so that one that is slow, or lost, costs an eighth of its share at most
MOST_FRAMES = 20_000  # of a part: what is lost with a worker is computed again


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkPart:
    """Segments that one worker computes at a time. `number` counts from 0."""

    number: int
    keys: tuple[Key, ...]
    frames: int


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
    total = sum(work["frames"].to_pylist())
    size = max(1, min(MOST_FRAMES, -(-total // (workers * PARTS_A_WORKER))))
    return [
        WorkPart(number=number, keys=tuple(key for key, _ in rows), frames=sum(f for _, f in rows))
        for number, rows in enumerate(_cut(work, size))
    ]


def _cut(work: pa.Table, size: int) -> Iterator[Sequence[tuple[Key, int]]]:
    part: list[tuple[Key, int]] = []
    frames = 0
    for batch in work.to_batches():
        columns = (batch["video_id"], batch["segment"], batch["frames"])
        for video_id, segment, count in zip(*(column.to_pylist() for column in columns), strict=True):
            if part and frames + count > size:
                yield part
                part, frames = [], 0
            part.append(((video_id, segment), count))
            frames += count
    if part:
        yield part
