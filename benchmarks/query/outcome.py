"""What every part of the benchmark gives: numbers for JSON, and lines for people."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the table at the end. `met` is None where nothing was aimed at."""

    part: str
    what: str
    found: str
    target: str = ""
    met: bool | None = None

    def cells(self) -> tuple[str, ...]:
        return (
            self.part,
            self.what,
            self.found,
            self.target,
            {None: "", True: "ok", False: "MISSED"}[self.met],
        )


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and extremes of one or more values."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def shown(found: Mapping[str, float], unit: str = "", digits: int = 3) -> str:
    """`spread`'s figures: `0.12 (0.11–0.15) s`."""
    median, least, most = (f"{found[name]:.{digits}g}" for name in ("median", "least", "most"))
    return f"{median} ({least}–{most}){unit}"
