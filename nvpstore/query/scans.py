"""The rows of one task that a query needs: which segments and frames, by which routes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nvpstore.query.candidates import RouteKind
from nvpstore.query.details import Details, RoutesBySegment
from nvpstore.query.index import Key
from nvpstore.query.options import TableOptions
from nvpstore.query.parse import FRAMES
from nvpstore.query.relation import RANKED, must_compute
from nvpstore.query.routes import Route
from nvpstore.query.sample import Scoped
from nvpstore.types import StoredObject, TaskRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A segment that `on_error := 'skip'` left out, and why."""

    video_id: str
    segment: int
    table: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The route of each segment of a scan: its kind (int64 [n], of `kinds`), fidelity (float64 [n], NaN:
    unknown) and GFLOPs of a frame (inf: unknown)."""

    kinds: tuple[RouteKind, ...]
    kind: NDArray[np.int64]
    fidelity: NDArray[np.float64]
    gflops: NDArray[np.float64]

    @property
    def from_source(self) -> NDArray[np.bool_]:
        """Whether a segment's frames are read from its original, bool [n]."""
        return np.array([kind.route == "source" for kind in self.kinds], dtype=np.bool_)[self.kind]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scan:
    """The rows of one task (None: of `frames`) that a query needs, computed once for all `relations`.

    `scoped` and `chosen` are columns over its segments. `columns` are those that are read. With a
    `stabilizer`, a segment's frames in scope are all sampled ones up to the last that is needed. What is
    asked of single segments (`routes`, `work_of`) is read from the index some segments at a time.
    """

    relations: tuple[str, ...]
    task: TaskRecord | None
    options: TableOptions
    columns: tuple[str, ...]
    scoped: Scoped
    chosen: Chosen
    details: Details
    skipped: tuple[Skipped, ...] = ()
    stabilizer: StoredObject | None = None

    @property
    def kind(self) -> str:
        return FRAMES if self.task is None else self.task.kind

    @property
    def name(self) -> str:
        return FRAMES if self.task is None else f"{self.task.name}@{self.task.version[:4]}…"

    @property
    def ranks(self) -> bool:
        """Whether a frame's rows are `top_of` labels, best first."""
        return self.kind in RANKED

    @property
    def computes(self) -> bool:
        """Whether anything must be decoded: not where only frames, times and ranks are read."""
        return must_compute(self.kind, self.columns)

    @property
    def frames(self) -> int:
        """How many frames are in scope; of tasks that answer for clips, how many clips."""
        return int(self.scoped.frames.sum())

    @property
    def pictures(self) -> int:
        """How many pictures have to be decoded for each of `frames`."""
        return 1 if self.options.clip is None else self.options.clip.frames

    @property
    def segments(self) -> int:
        """How many segments have frames in scope."""
        return len(self.scoped)

    @property
    def routes(self) -> Mapping[Key, Route]:
        return RoutesBySegment(self.details, self.scoped.places)

    @property
    def work(self) -> pa.Table:
        """All frames (WORK_SCHEMA), by video and frame: for plans whose frames fit in memory."""
        return self.details.all_work()

    def work_of(self, key: Key) -> pa.Table:
        """The frames in scope of one segment (WORK_SCHEMA), ascending. Raises KeyError."""
        return self.details.work(key)

    def frames_by_segment(self) -> dict[Key, tuple[int, int]]:
        """The rows [start, stop) of `work` of every segment."""
        stops = np.cumsum(self.scoped.frames)
        runs = zip((stops - self.scoped.frames).tolist(), stops.tolist(), strict=True)
        return dict(zip(self.scoped.places, runs, strict=True))


def top_of(scan: Scan) -> int:
    """How many labels a frame of a scan that ranks has: `top`, or all where there are fewer."""
    labels = len(scan.task.labels) if scan.task is not None else 0
    return min(scan.options.top, labels) if labels else scan.options.top
