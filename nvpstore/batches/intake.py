"""Many videos stored by many workers: each on its own, so that one that fails fails alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from nvpstore.engine.contract import MOST_TRIES, Engine
from nvpstore.errors import NvpError


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeItem:
    """One video to store, `named` as people know it: a file, an object `key` below `root`, or (to fit what
    is stored) a video's id."""

    number: int
    named: str
    file: str | None = None
    root: str | None = None
    key: str | None = None
    video_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeDone:
    """What became of one: `stored` (a VideoSummary), or why not."""

    number: int
    named: str
    stored: Any = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeFailure:
    """A video that was not stored, and why."""

    named: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeReport:
    """What became of all, in the order in which they were named. `skipped` were known and not looked at."""

    stored: tuple[Any, ...]
    failed: tuple[IntakeFailure, ...]
    skipped: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeProgress:
    """`done` of `total` videos; `eta_seconds` None until a first one is done."""

    done: int
    total: int
    eta_seconds: float | None
    phase: str = "videos"
    psnr: float | None = None


OnIntake = Callable[[IntakeProgress], None]


def run_intake(
    engine: Engine,
    store: Callable[[IntakeItem], Any],
    items: Sequence[IntakeItem],
    *,
    skipped: int = 0,
    on_progress: OnIntake | None = None,
) -> IntakeReport:
    """`store` each of `items` by a worker of `engine`; whatever one of them raises is in the report.

    Nothing of this has to be remembered: what is stored is there for the next run to find.
    """
    began = time.monotonic()
    done: list[IntakeDone] = []
    for one in engine.run(partial(attempt, store), items, lost=_lost):
        done.append(one)
        if on_progress is not None:
            pace = (time.monotonic() - began) / len(done)
            left = pace * (len(items) - len(done))
            on_progress(IntakeProgress(done=len(done), total=len(items), eta_seconds=left))
    done.sort(key=lambda one: one.number)
    return IntakeReport(
        stored=tuple(one.stored for one in done if one.error is None),
        failed=tuple(_failures(done)),
        skipped=skipped,
        seconds=time.monotonic() - began,
    )


def attempt(store: Callable[[IntakeItem], Any], item: IntakeItem) -> IntakeDone:
    """`store` of one item; what it raises as text."""
    try:
        return IntakeDone(number=item.number, named=item.named, stored=store(item))
    except Exception as error:
        # Not ours alone: a driver that runs out of memory on one video must not end thousands of others.
        said = " ".join(str(error).split()) or type(error).__name__
        text = said if isinstance(error, NvpError) else f"{type(error).__name__}: {said}"
        return IntakeDone(number=item.number, named=item.named, error=text)


def _lost(item: IntakeItem) -> IntakeDone:
    return IntakeDone(
        number=item.number, named=item.named, error=f"its worker ended without a word {MOST_TRIES} times"
    )


def _failures(done: Sequence[IntakeDone]) -> Iterator[IntakeFailure]:
    for one in done:
        if one.error is not None:
            yield IntakeFailure(named=one.named, error=one.error)
