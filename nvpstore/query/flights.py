"""Steps in flight: what a step's readers see of it, and decodes, which others may take frames from."""

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
    """A decode that a query needs: `frames` int64 [t] of one segment, ascending, at `taps`.

    `stages` are the segment's in decode order, `taps` too. `wide`: whether a frame is the same in whatever
    batch it is decoded, so that it may be taken from any; else only from one of exactly these frames.
    """

    handle: Any
    frames: NDArray[np.int64]
    taps: tuple[str, ...]
    stages: tuple[str, ...]
    wide: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Features of a decode of `all_frames`, and those of them that are wanted: `frames`, at `positions`."""

    features: Any
    all_frames: NDArray[np.int64]
    positions: NDArray[np.int64]
    frames: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A step's value. `made`: this query carried the step out, and counts what it took."""

    value: Any
    made: bool


class Piece(Flight):
    """A decode of int64 frames [t], ascending, to `taps`. While it is idle it may be made deeper."""

    def __init__(self, ask: Ask, frames: NDArray[np.int64]) -> None:
        super().__init__()
        self.frames, self.ask = frames, ask

    def serves(self, ask: Ask) -> bool:
        """Whether this holds features of its frames that `ask` wants, bit for bit, or can yet."""
        if self.ask.wide != ask.wide or self.state is State.FAILED:
            return False
        if not ask.wide and not np.array_equal(self.frames, ask.frames):
            return False
        if set(ask.taps) <= set(self.ask.taps):
            return True
        # Only where the other query needs all of it so deep: no frame is decoded deeper than anybody asked.
        return self.state is State.IDLE and bool(np.isin(self.frames, ask.frames).all())

    def deepen(self, ask: Ask) -> None:
        """Adds the taps of `ask`, whose handle is the deeper one then."""
        if not set(ask.taps) <= set(self.ask.taps):
            deeper = max(self.ask, ask, key=lambda one: one.stages.index(one.taps[-1]))
            taps = tuple(stage for stage in ask.stages if stage in {*ask.taps, *self.ask.taps})
            self.ask = replace(deeper, taps=taps)

    def is_for(self, ask: Ask) -> bool:
        """Whether this is what `ask` alone would decode."""
        return self.ask.taps == ask.taps and np.array_equal(self.frames, ask.frames)

    def part(self, frames: NDArray[np.int64]) -> Part:
        """The features of `frames`, once decoded. Raises what the decode raised."""
        positions = np.searchsorted(self.frames, frames)
        return Part(features=self.result(), all_frames=self.frames, positions=positions, frames=frames)


def weights_key(identity: Hashable, stage: str) -> Hashable:
    """The key of a segment's weights up to `stage`."""
    return (identity, "weights", stage)
