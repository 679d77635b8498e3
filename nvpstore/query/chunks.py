"""How a segment's frames are cut into batches, as a function of the frames alone.

Neighbouring queries should ask for the same batches, and a frame's features must not depend on which batch
it was in. On CPUs they do not, bit for bit, where a batch is a multiple of `LANE_FRAMES`: the convolutions
then run through the same code for every frame. Smaller batches go through other code and differ by rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BATCH_FRAMES = 32
LANE_FRAMES = 8
FILLED_FRAMES = 5  # as many are decoded as a whole lane: three more cost less than a batch of their own

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


def lanes(frames: Frames) -> list[tuple[Frames, bool]]:
    """A batch in one or two parts, and whether each is decoded in whole lanes (the last one filled up).

    What is left over is decoded as it is where filling a lane would cost more.
    """
    left = len(frames) % LANE_FRAMES
    whole = len(frames) if left >= FILLED_FRAMES else len(frames) - left
    parts = [(frames[:whole], True), (frames[whole:], False)]
    return [(part, wide) for part, wide in parts if len(part)]


def fitting_frames(batch_frames: int, *, frame_bytes: int, room_bytes: int) -> int:
    """How many frames of `frame_bytes` fit into `room_bytes`: whole lanes if one fits, 1 … `batch_frames`."""
    fit = max(1, min(batch_frames, room_bytes // max(1, frame_bytes)))
    return fit - fit % LANE_FRAMES if fit >= LANE_FRAMES and fit < batch_frames else fit
