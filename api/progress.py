"""Progress of long commands, on stderr: a line rewritten on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TextIO

SECONDS_BETWEEN_LINES = 5.0  # in a log
SECONDS_BETWEEN_REWRITES = 0.1  # on a terminal
IN_BYTES = frozenset({"read", "copy", "upload"})  # phases whose steps are bytes
FIRST_LOOK = "scan"  # the phase of reading a file through, before anything is fitted
QUIET_SECONDS = 3.0


class ProgressLike(Protocol):
    """What a long operation says about itself now and then.

    `done` of `total` steps of `phase`; `psnr` in dB and `eta_seconds` where they are known.
    """

    @property
    def phase(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def psnr(self) -> float | None: ...
    @property
    def eta_seconds(self) -> float | None: ...


class ProgressLine:
    """Shows the latest progress. Call it with each one, `close` it before anything else is written."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._terminal = stream.isatty()
        self._phase: str | None = None
        self._shown_at = float("-inf")
        self._width = 0

    def __call__(self, progress: ProgressLike) -> None:
        now = self._clock()
        pause = SECONDS_BETWEEN_REWRITES if self._terminal else SECONDS_BETWEEN_LINES
        if progress.phase == self._phase and now - self._shown_at < pause:
            return
        self._phase, self._shown_at = progress.phase, now
        self._show(describe(progress))

    def say(self, text: str) -> None:
        """A line that stays."""
        self.close()
        self._stream.write(text + "\n")
        self._stream.flush()

    def _show(self, line: str) -> None:
        if self._terminal:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        if self._terminal and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0


class AfterEstimate:
    """Shows an estimate once, when there is work to do, then the progress.

    A short first look at the file is not shown: most files that are refused are refused by it, in one line.
    """

    def __init__(
        self,
        line: ProgressLine,
        estimate: Callable[[], str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._line, self._estimate, self._clock = line, estimate, clock
        self._began: float | None = None
        self._shown = False

    def __call__(self, progress: ProgressLike) -> None:
        now = self._clock()
        self._began = now if self._began is None else self._began
        if progress.phase == FIRST_LOOK and now - self._began < QUIET_SECONDS:
            return
        if not self._shown:
            self._shown = True
            self._line.say(self._estimate())
        self._line(progress)


def describe(progress: ProgressLike) -> str:
    """One line: phase, share, PSNR, time left."""
    parts = [progress.phase]
    if progress.total > 0:
        done, total = (
            (size(progress.done), size(progress.total))
            if progress.phase in IN_BYTES
            else (str(progress.done), str(progress.total))
        )
        parts.append(f"{done}/{total} ({100 * progress.done // progress.total} %)")
    if progress.psnr is not None:
        parts.append(f"{progress.psnr:.2f} dB")
    if progress.eta_seconds is not None:
        parts.append(f"{duration(progress.eta_seconds)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(size_bytes: float) -> str:
    """`512 B`, `1.3 MB`; decimal units, as disks and networks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"
