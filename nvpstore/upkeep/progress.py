"""What long upkeep says about itself now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_FIRST_GUESS_SECONDS = 2.0  # before this, the time left is anybody's guess


@dataclass(frozen=True, slots=True, kw_only=True)
class UpkeepProgress:
    """`done` of `total` bytes in phases "read" and "copy", of frames in phase "decode"."""

    phase: str
    done: int
    total: int
    eta_seconds: float | None = None
    psnr: float | None = None


OnProgress = Callable[[UpkeepProgress], None]


class Counter:
    """Adds up one phase's work from any number of threads and reports it. `done` is how much so far."""

    def __init__(self, phase: str, total: int, report: OnProgress | None) -> None:
        self._phase, self._total, self._report = phase, total, report
        self.done = 0
        self._began = time.monotonic()
        self._one_thread = threading.Lock()

    def add(self, amount: int) -> None:
        with self._one_thread:
            self.done += amount
            if self._report is not None:
                self._report(self._progress())

    def _progress(self) -> UpkeepProgress:
        elapsed = time.monotonic() - self._began
        left = None
        if elapsed > _FIRST_GUESS_SECONDS and self.done:
            left = elapsed * max(0, self._total - self.done) / self.done
        return UpkeepProgress(phase=self._phase, done=self.done, total=self._total, eta_seconds=left)
