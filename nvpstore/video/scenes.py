"""Where one scene ends and the next begins: a streaming detector of hard cuts.

A cut is a frame from which on everything looks different. Two things also look different and are none: a
flash (the picture comes back after a few frames) and camera motion (every frame differs from the one before,
about equally). So for a frame k, with d(a, b) the mean absolute difference of two thumbnails,

    across = min d(k - i, k + j)    over i = 1 … w, j = 0 … w - 1: all before against all after
    motion = median d(n - 1, n)     over the neighbours n of k, k itself left out
    cut    ⇔ across ≥ threshold, across ≥ 2 · motion, and across ≥ d(k - 1, k) / 2

`across` is the flash test: it falls where the picture comes back, though moved a little. `motion` is the
adaptive threshold that PySceneDetect's AdaptiveDetector uses too
(https://www.scenedetect.com/docs/latest/api/detectors.html), with a median for the mean so that two cuts
close together do not hide each other. Fades and dissolves have no such frame and are not cuts here: a maximum
segment length bounds what they cost.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

THUMBNAIL_WIDTH = 64
THUMBNAIL_HEIGHT = 36
DEFAULT_CUT_THRESHOLD = 12.0
"""Mean absolute difference over luma and chroma, 0 … 255. Cuts lie above 15, most motion below 8."""

_WINDOW = 4  # frames on either side that are looked at: a flash may last _WINDOW - 1 frames
_MOTION_RATIO = 2.0
_RETURN_RATIO = 0.5


class CutDetector:
    """Feed thumbnails in frame order; cuts come out `_WINDOW - 1` frames later. Memory is constant.

    A thumbnail is any array of one shape, uint8; `video.source` gives YUV 4:4:4 [3, 36, 64].
    """

    def __init__(self, threshold: float = DEFAULT_CUT_THRESHOLD) -> None:
        if not threshold > 0:
            raise ValueError(f"cut threshold {threshold} must be positive")
        self._threshold = threshold
        self._thumbnails: deque[NDArray[np.int16]] = deque(maxlen=2 * _WINDOW)
        self._steps: deque[float] = deque(maxlen=2 * _WINDOW)  # d(n - 1, n) of each; 0 for the first
        self._fed = 0

    def feed(self, thumbnail: NDArray[np.uint8]) -> int | None:
        """The frame that starts a new scene, if one was just decided, else None."""
        frame = thumbnail.astype(np.int16)
        self._steps.append(_difference(self._thumbnails[-1], frame) if self._fed else 0.0)
        self._thumbnails.append(frame)
        self._fed += 1
        return self._decide(self._fed - _WINDOW)

    def finish(self) -> list[int]:
        """The cuts among the last frames, for which no more frames to look ahead at will come."""
        tail = range(max(self._fed - _WINDOW + 1, 1), self._fed)
        return [frame for frame in tail if self._decide(frame) is not None]

    def _decide(self, frame: int) -> int | None:
        if frame < 1:
            return None
        at = frame - (self._fed - len(self._thumbnails))
        if self._steps[at] < self._threshold:
            return None
        across = self._across(at)
        needed = max(self._threshold, _MOTION_RATIO * self._motion(at), _RETURN_RATIO * self._steps[at])
        return frame if across >= needed else None

    def _across(self, at: int) -> float:
        held = list(self._thumbnails)
        before, after = held[max(at - _WINDOW, 0) : at], held[at : at + _WINDOW]
        return min(_difference(a, b) for a in before for b in after)

    def _motion(self, at: int) -> float:
        steps = list(self._steps)
        first = 1 if self._fed == len(steps) else 0  # the video's first frame has no step
        around = steps[max(at - _WINDOW + 1, first) : at] + steps[at + 1 : at + _WINDOW]
        return float(np.median(around)) if around else 0.0


def _difference(a: NDArray[np.int16], b: NDArray[np.int16]) -> float:
    return float(np.abs(a - b).mean())
