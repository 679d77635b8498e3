"""How far stored answers reach: which frames of which videos a task was asked, and which are left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from nvpstore.catalog import Snapshot
from nvpstore.catalog.answers import IndexedAnswers
from nvpstore.query.answers import Known, Question
from nvpstore.query.clips import Clip, clip_of
from nvpstore.storage.results import Intervals, intervals
from nvpstore.types import TaskRecord

_VIDEOS = 1024  # looked up at once
_STOPS = """
SELECT video_id, segment, start_frame + frames AS stop FROM idx.store.segments
WHERE video_id IN (SELECT unnest($ids::VARCHAR[]))
"""


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
    known, reach = Known(snapshot, Question(task=task, top=top)), _Reach(snapshot, clip_of(task))
    found = snapshot.ask("SELECT video_id, frames FROM idx.store.videos ORDER BY video_id", {})
    rows = iter(found)
    while some := list(islice(rows, _VIDEOS)):
        known.load([row["video_id"] for row in some])
        reach.load([row["video_id"] for row in some])
        for row in some:
            listed = [reach.frames(part) for part in known.all_parts(row["video_id"])]
            covered = intervals(np.unique(np.concatenate([np.empty(0, dtype=np.int64), *listed])))
            yield VideoCoverage(video_id=row["video_id"], frames=row["frames"], covered=covered)


class _Reach:
    """The frames that the answers of a part are about: of a task of clips more than their first ones."""

    def __init__(self, snapshot: Snapshot, clip: Clip | None) -> None:
        self._snapshot, self._clip = snapshot, clip
        self._stops: dict[tuple[str, int], int] = {}

    def load(self, video_ids: Sequence[str]) -> None:
        """Look up these videos, and forget those before."""
        if self._clip is not None:
            found = self._snapshot.ask(_STOPS, {"ids": list(video_ids)})
            self._stops = {(row["video_id"], row["segment"]): row["stop"] for row in found}

    def frames(self, part: IndexedAnswers) -> NDArray[np.int64]:
        """Of a part of a video that was looked up."""
        answered = part.covered.listed()
        if self._clip is None:
            return answered
        reached = (answered[:, None] + np.arange(self._clip.span)).reshape(-1)
        return reached[reached < self._stops[(part.video_id, part.segment)]]
