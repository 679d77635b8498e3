"""What a run is asked for and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`seed` decides everything random; `scale` (> 0) multiplies the counts; `s3`: on SeaweedFS too."""

    seed: int = 0
    scale: float = 1.0
    s3: bool = False

    def count(self, full: int) -> int:
        """So many at this scale, at least one."""
        return max(1, round(full * self.scale))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`figures` go into the result's JSON. `broken` has a line for each promise that did not hold."""

    question: str
    figures: Mapping[str, Any]
    broken: tuple[str, ...] = ()
