"""Tasks that answer for clips: which frames begin one, and which pictures make it.

Clips of a segment follow one another from its first frame on, and a row's `frame` is the clip's first. Where
a segment ends within a clip, its last picture fills it up.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nvpstore.types import TaskRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """`frames` pictures, every `stride`-th frame."""

    frames: int
    stride: int

    def __str__(self) -> str:
        if self.stride == 1:
            return f"clips of {self.frames} frames"
        return f"clips of {self.frames} pictures {self.stride} frames apart"

    @property
    def span(self) -> int:
        """Frames from one clip to the next."""
        return self.frames * self.stride

    def pictures(self, starts: NDArray[np.int64], *, end: int) -> NDArray[np.int64]:
        """The frames [u · frames] of the clips that begin at `starts` [u]; the segment ends before `end`."""
        steps = np.arange(self.frames, dtype=np.int64) * self.stride
        pictures: NDArray[np.int64] = np.minimum(starts[:, None] + steps, end - 1).reshape(-1)
        return pictures

    def last(self, starts: NDArray[np.int64], *, end: int) -> NDArray[np.int64]:
        """The last frame that each clip stands for, [u]."""
        last: NDArray[np.int64] = np.minimum(starts + self.span, end) - 1
        return last


def clip_of(task: TaskRecord | None) -> Clip | None:
    """How `task` samples; None for tasks that answer frame by frame."""
    return None if task is None else _clip_in(task.spec)


@lru_cache(maxsize=64)
def _clip_in(spec: str) -> Clip | None:
    said = json.loads(spec).get("clip") if spec else None
    return None if said is None else Clip(frames=int(said["frames"]), stride=int(said["stride"]))
