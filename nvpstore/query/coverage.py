"""How far stored answers reach: which frames of which videos a task was asked, and which are left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from nvpstore.catalog import Snapshot
from nvpstore.query.answers import Known, Question
from nvpstore.storage.results import Intervals, intervals
from nvpstore.types import TaskRecord

_VIDEOS = 1024  # looked up at once


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoCoverage:
    """Of a video's `frames` those that are `covered` by stored answers, by whatever route."""

    video_id: str
    frames: int
    covered: Intervals

    @property
    def left(self) -> Intervals:
        """The frames that no stored answer covers."""
        starts = np.concatenate([[0], self.covered.stops])
        stops = np.append(self.covered.starts, self.frames)
        some = starts < stops
        return Intervals(starts=starts[some], stops=stops[some])


def coverage(snapshot: Snapshot, task: TaskRecord, *, top: int = 0) -> Iterator[VideoCoverage]:
    """Every video's coverage by answers to `task` that are in use today, by video.

    `top` as in `Question`: how many labels were asked, where that matters.
    """
    known = Known(snapshot, Question(task=task, top=top))
    found = snapshot.ask("SELECT video_id, frames FROM idx.store.videos ORDER BY video_id", {})
    rows = iter(found)
    while some := list(islice(rows, _VIDEOS)):
        known.load([row["video_id"] for row in some])
        for row in some:
            listed = [part.covered.listed() for part in known.all_parts(row["video_id"])]
            covered = intervals(np.concatenate([np.empty(0, dtype=np.int64), *listed]))
            yield VideoCoverage(video_id=row["video_id"], frames=row["frames"], covered=covered)
