"""How a segment's frames are cut into batches, as a function of the frames alone.

A frame's features hang, in the last bit, on the batch that it is decoded in. So batches are what queries
share, and queries that want nearly the same should come to the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BATCH_FRAMES = 32

Frames = NDArray[np.int64]


def batches(frames: Frames, *, start: int, batch_frames: int) -> Iterator[Frames]:
    """`frames` int64 [t], ascending, in batches of at most `batch_frames`, in order.

    Where most frames of a block are wanted (blocks are counted from `start`, the segment's first frame) it
    is a batch, whatever else is asked for; what lies scattered between such blocks is gathered.
    """
    blocks = (frames - start) // batch_frames
    found, first, counts = np.unique(blocks, return_index=True, return_counts=True)
    dense = counts * 2 >= batch_frames
    scattered: list[Frames] = []
    for position in range(len(found)):
        part = frames[first[position] : first[position] + counts[position]]
        if dense[position]:
            yield from _gathered(scattered, batch_frames)
            scattered = []
            yield part
        else:
            scattered.append(part)
    yield from _gathered(scattered, batch_frames)


def _gathered(parts: list[Frames], batch_frames: int) -> Iterator[Frames]:
    if parts:
        frames = np.concatenate(parts)
        yield from np.split(frames, range(batch_frames, len(frames), batch_frames))


def fitting_frames(batch_frames: int, *, frame_bytes: int, room_bytes: int) -> int:
    """How many frames of `frame_bytes` fit into `room_bytes`: 1 … `batch_frames`."""
    return max(1, min(batch_frames, room_bytes // max(1, frame_bytes)))
