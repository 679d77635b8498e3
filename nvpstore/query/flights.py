"""Steps in flight: what a step's readers see of it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

import numpy as np
from numpy.typing import NDArray


class State(Enum):
    IDLE = auto()  # nobody is at it: not begun, or its query was cancelled
    RUNNING = auto()
    DONE = auto()
    FAILED = auto()


class Flight:
    """A step that some query waits for. `readers` are waiting or at it."""

    def __init__(self) -> None:
        self.state = State.IDLE
        self.readers = 0
        self.value: Any = None
        self.error: Exception | None = None

    @property
    def landed(self) -> bool:
        return self.state in (State.DONE, State.FAILED)

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A decode that a query needs: `frames` int64 [t] of one segment at `taps`.

    `stages` are the segment's in decode order, `taps` too.
    """

    handle: Any
    frames: NDArray[np.int64]
    taps: tuple[str, ...]
    stages: tuple[str, ...]

    def with_taps_of(self, other: Ask) -> Ask:
        """One decode for both, of the same frames: by the weights of the deeper one."""
        deeper = max(self, other, key=lambda ask: ask.stages.index(ask.taps[-1]))
        taps = {*self.taps, *other.taps}
        return replace(deeper, taps=tuple(stage for stage in self.stages if stage in taps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A step's value. `made`: this query carried the step out, and counts what it took."""

    value: Any
    made: bool


class Decoding(Flight):
    """A decode. While it is idle it may be given more taps."""

    def __init__(self, ask: Ask) -> None:
        super().__init__()
        self.ask = ask

    def serves(self, ask: Ask) -> bool:
        """Whether this gives the taps of `ask`, or can yet."""
        if self.state in (State.IDLE, State.FAILED):
            return self.state is State.IDLE
        return _within(ask.taps, self.ask.taps)

    def add(self, ask: Ask) -> None:
        if not _within(ask.taps, self.ask.taps):
            self.ask = self.ask.with_taps_of(ask)


def _within(taps: tuple[str, ...], others: tuple[str, ...]) -> bool:
    return set(taps) <= set(others)


def weights_key(identity: Hashable, stage: str) -> Hashable:
    """The key of a segment's weights up to `stage`."""
    return (identity, "weights", stage)
