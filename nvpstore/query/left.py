"""What stored answers leave of a plan to compute, known before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nvpstore.query.details import Details
from nvpstore.query.plan import Chosen, Key, Plan, Scan, Step
from nvpstore.query.rules import improve
from nvpstore.query.sample import Scoped, videos_filter

# Of each step the frames [t] that a scan asks for, and whether each is stored, by scan.
Answered = Iterator[tuple[Step, Mapping[int, tuple[NDArray[np.int64], NDArray[np.bool_]]]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Left:
    """`plan` computes only what is not stored; `scans` are its scans by their position in the whole plan,
    also those of which nothing is left."""

    plan: Plan
    scans: tuple[Scan, ...]


def what_is_left(plan: Plan, answered: Answered, check: Callable[[], None]) -> Left:
    """`plan` without the frames that `answered` says are stored (`Answers.answered`).

    `check` is called at each step, and may raise.
    """
    narrowings = [_Narrowing(scan) for scan in plan.scans]
    for step, by_scan in answered:
        check()
        for index, (frames, stored) in by_scan.items():
            if stored.any():
                narrowings[index].keep((step.video_id, step.segment), frames[~stored])
    scans = tuple(narrowing.narrowed() for narrowing in narrowings)
    changed = any(some is not scan for some, scan in zip(scans, plan.scans, strict=True))
    return Left(plan=improve(replace(plan, scans=scans)) if changed else plan, scans=scans)


class _Narrowing:
    """A scan of which fewer frames are left in some segments: a bit a frame, as in its scope."""

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self._rows: list[int] = []
        self._masks: list[NDArray[np.uint8]] = []
        self._counts: list[int] = []

    @cached_property
    def _extent(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return _extent(self._scan)

    def keep(self, key: Key, frames: NDArray[np.int64]) -> None:
        """Just `frames` [t] of a segment are left."""
        row = self._scan.scoped.places.row(key)
        starts, counts = self._extent
        bits = np.zeros(counts[row], dtype=np.bool_)
        bits[frames - starts[row]] = True
        self._rows.append(row)
        self._masks.append(np.packbits(bits))
        self._counts.append(len(frames))

    def narrowed(self) -> Scan:
        if not self._rows:
            return self._scan
        scan, scoped = self._scan, self._scoped()
        some = np.flatnonzero(scoped.frames > 0)
        scoped = scoped.only(some)
        chosen = Chosen(
            kinds=scan.chosen.kinds,
            kind=scan.chosen.kind[some],
            fidelity=scan.chosen.fidelity[some],
            gflops=scan.chosen.gflops[some],
        )
        details = Details(scan.details.con, scan.task, scan.options, scoped)
        return replace(scan, scoped=scoped, chosen=chosen, details=details)

    def _scoped(self) -> Scoped:
        scoped = self._scan.scoped
        frames, mask_at, sizes = scoped.frames.copy(), scoped.mask_at.copy(), scoped.mask_bytes.copy()
        lengths = np.array([len(mask) for mask in self._masks], dtype=np.int64)
        frames[self._rows], sizes[self._rows] = self._counts, lengths
        mask_at[self._rows] = len(scoped.masks) + np.cumsum(lengths) - lengths
        masks = np.concatenate([scoped.masks, *self._masks])
        return replace(scoped, frames=frames, mask_at=mask_at, mask_bytes=sizes, masks=masks)


def _extent(scan: Scan) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first frame of each segment of a scan, and how many it has, in scope or not: int64 [n]."""
    places = scan.scoped.places
    table = scan.details.con.sql(
        "SELECT video_id, segment, start_frame::BIGINT AS start, frames::BIGINT AS frames"
        f" FROM idx.store.segments{videos_filter(places.videos)}"
    ).to_arrow_table()
    owner = places.rows(table["video_id"].combine_chunks(), table["segment"].to_numpy())
    start, count = np.zeros(len(places), dtype=np.int64), np.zeros(len(places), dtype=np.int64)
    for values, name in ((start, "start"), (count, "frames")):
        values[owner[owner >= 0]] = table[name].to_numpy()[owner >= 0]
    return start, count
