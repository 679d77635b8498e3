"""How far a query is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryProgress:
    """`videos` begun so far; frames answered and to answer, a frame counted once a task that reads it.

    `eta_seconds` is None until a first frame is done.
    """

    videos: int
    frames_done: int
    frames_total: int
    eta_seconds: float | None


OnProgress = Callable[[QueryProgress], None]


class Progress:
    """Counts steps as they end and reports each."""

    def __init__(self, frames_total: int, report: OnProgress | None) -> None:
        self._total, self._report = frames_total, report
        self._began = time.monotonic()
        self._videos: set[str] = set()
        self._done = 0

    def step(self, video_id: str, frames: int) -> None:
        """`frames` more of this video are answered."""
        if self._report is None:
            return
        self._videos.add(video_id)
        self._done += frames
        pace = (time.monotonic() - self._began) / self._done if self._done else None
        left = max(0, self._total - self._done)
        self._report(
            QueryProgress(
                videos=len(self._videos),
                frames_done=self._done,
                frames_total=self._total,
                eta_seconds=None if pace is None else pace * left,
            )
        )
