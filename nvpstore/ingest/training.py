"""A task learned by videos that are fitted already: their stored segments, a share of their pictures, routes.

Each video is one commit: killed anywhere, nothing is half visible, and a rerun goes on with the next one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nvpstore.catalog import Catalog, IndexedVideo, Snapshot
from nvpstore.errors import CommitDropped, NvpError, UsageError
from nvpstore.ingest.layout import adapter_ranges, laid_out
from nvpstore.ingest.learning import Learned, Learning, Reader, Reference
from nvpstore.ingest.named import named_task, register_once
from nvpstore.ingest.pipeline import IngestProgress, OnProgress
from nvpstore.ingest.writer import one_at_a_time, usable_device
from nvpstore.routing.choice import choose
from nvpstore.storage.commit import commit_routes
from nvpstore.tasks.registry import LoadedTask
from nvpstore.types import SegmentRecord, TaskRoutes


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRequest:
    """A `share` of each segment's frames to learn from, at most `measured` others to judge by, on `device`
    ("auto", "cpu" or "cuda"). With `again` videos that have routes of the task are trained, too.
    """

    share: float
    measured: int
    device: str
    again: bool

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(f"share {self.share}: it must be above 0 and at most 1")
        if self.measured < 0:
            raise UsageError(f"measured {self.measured}: at least 0 frames")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedVideo:
    """What became of one video. `fidelity` is that of the routes that queries take by default, by frames;
    None without an original to compare with. `reference` says whose pictures the backbone was asked about.

    Of a video that is "estimated" nothing was written: the figures are a sample's, scaled. `why` says what
    came between where it was "dropped" (fitted anew, erased or trained by others) or "failed".
    """

    video_id: str
    name: str
    state: Literal["trained", "estimated", "dropped", "failed"]
    segments: int
    frames: int
    fidelity: float | None = None
    reference: Reference | None = None
    trained_frames: int = 0
    measured_frames: int = 0
    adapter_bytes: int = 0
    seconds: float = 0.0
    why: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """A video to train on. `lengths` are its segments' frames."""

    video_id: str
    name: str
    lengths: tuple[int, ...]

    @property
    def frames(self) -> int:
        return sum(self.lengths)


def train_task(
    catalog: Catalog,
    name: str,
    video_ids: Sequence[str],
    request: TrainingRequest,
    *,
    reader: Reader,
    dry_run: bool,
    on_progress: OnProgress | None,
) -> list[TrainedVideo]:
    """Train the task called `name` on those of the videos that need it, or only estimate that.

    A built-in task is registered. Raises TaskError for an unknown one, UsageError for a device that is not
    there.
    """
    reader.device = usable_device(request.device)
    task = named_task(catalog, name, device=reader.device)
    training = Training(catalog, task, reader, request, on_progress)
    if dry_run:
        return training.estimate(video_ids)
    register_once(catalog, task)
    return training.run(video_ids)


class Training:
    """One task, on many videos: each as it is stored when its turn comes."""

    def __init__(
        self,
        catalog: Catalog,
        task: LoadedTask,
        reader: Reader,
        request: TrainingRequest,
        on_progress: OnProgress | None = None,
    ) -> None:
        """`task` and `reader` are on one device."""
        self.catalog, self.task, self.request = catalog, task, request
        self.on_progress = on_progress or _ignored
        self.learning = Learning(task, reader, share=request.share, measured=request.measured)

    def run(self, video_ids: Sequence[str]) -> list[TrainedVideo]:
        """Those of the videos that are fitted and have no routes of the task yet, each committed when done.

        One that fails is reported, and the others go on.
        """
        waiting = self._waiting(self.catalog.snapshot(), video_ids)
        progress = _Progress(sum(video.frames for video in waiting), self.on_progress)
        return [self._alone(video, progress) for video in waiting]

    def estimate(self, video_ids: Sequence[str]) -> list[TrainedVideo]:
        """What `run` would take and give, by a segment of middling length. Nothing is written."""
        snapshot = self.catalog.snapshot()
        waiting = self._waiting(snapshot, video_ids)
        places = sorted(
            (frames, video.video_id, segment)
            for video in waiting
            for segment, frames in enumerate(video.lengths)
        )
        if not places:
            return []
        _, video_id, segment = places[len(places) // 2]
        began = time.monotonic()
        video, record = snapshot.video(video_id), snapshot.segment(video_id, segment)
        reference = self.learning.reference(snapshot, video)
        learned = self.learning.segment(snapshot, video, record, reference)
        seconds = time.monotonic() - began
        routes = self._routes(video, [learned])
        return [
            self._scaled(other, routes, record, reference, seconds=seconds * other.frames / record.frames)
            for other in waiting
        ]

    # ------------------------------------------------------------ videos

    def _waiting(self, snapshot: Snapshot, video_ids: Sequence[str]) -> list[_Waiting]:
        rows = snapshot.ask(
            """
            SELECT v.video_id, v.name, list(s.frames ORDER BY s.segment) AS lengths
            FROM idx.store.videos v JOIN idx.store.segments s USING (video_id)
            WHERE v.state <> 'added' AND v.video_id IN (SELECT unnest($ids::VARCHAR[]))
              AND ($again OR NOT EXISTS (
                  FROM idx.store.routes r WHERE r.video_id = v.video_id AND r.version = $version))
            GROUP BY ALL ORDER BY ALL
            """,
            {"ids": list(video_ids), "again": self.request.again, "version": self.task.spec.version},
        )
        found = [
            _Waiting(video_id=row["video_id"], name=row["name"], lengths=tuple(row["lengths"]))
            for row in rows
        ]
        return sorted(found, key=lambda video: (video.name, video.video_id))

    def _alone(self, video: _Waiting, progress: _Progress) -> TrainedVideo:
        """Whoever fits or trains the same video on this machine waits."""
        try:
            with one_at_a_time(self.catalog.folder / "fits" / f"{video.video_id}.lock"):
                return self._train(video, progress)
        except CommitDropped as cause:
            return self._not(video, "dropped", cause)
        except NvpError as cause:
            return self._not(video, "failed", cause)
        finally:
            progress.past(video.frames)

    def _train(self, waiting: _Waiting, progress: _Progress) -> TrainedVideo:
        began = time.monotonic()
        snapshot = self.catalog.snapshot()
        if not self._waiting(snapshot, [waiting.video_id]):
            raise CommitDropped(f"video {waiting.video_id} was erased or trained by others meanwhile")
        video, records = snapshot.video(waiting.video_id), snapshot.segments(waiting.video_id)
        reference = self.learning.reference(snapshot, video)
        learned = []
        for record in records:
            learned.append(self.learning.segment(snapshot, video, record, reference))
            progress.add(record.frames)
        routes = self._routes(video, learned)
        commit_routes(self.catalog.log, routes, snapshot.base(video.video_id))
        return TrainedVideo(
            video_id=video.video_id,
            name=video.name,
            state="trained",
            segments=len(records),
            frames=video.frames,
            fidelity=_fidelity(routes, {record.segment: record.frames for record in records}),
            reference=reference,
            trained_frames=sum(own.taught for own in learned),
            measured_frames=sum(own.judged for own in learned),
            adapter_bytes=_adapter_bytes(routes),
            seconds=time.monotonic() - began,
        )

    def _scaled(
        self,
        video: _Waiting,
        routes: TaskRoutes,
        sampled: SegmentRecord,
        reference: Reference,
        *,
        seconds: float,
    ) -> TrainedVideo:
        """What a sampled segment says of `video`. Which pictures would be asked about is known."""
        plans = [self.learning.plan(frames, reference) for frames in video.lengths]
        return TrainedVideo(
            video_id=video.video_id,
            name=video.name,
            state="estimated",
            segments=len(video.lengths),
            frames=video.frames,
            fidelity=_fidelity(routes, {sampled.segment: sampled.frames}),
            reference=reference,
            trained_frames=sum(plan.taught for plan in plans),
            measured_frames=sum(plan.judged for plan in plans),
            adapter_bytes=_adapter_bytes(routes) * len(video.lengths),
            seconds=seconds,
        )

    def _not(self, video: _Waiting, state: Literal["dropped", "failed"], why: NvpError) -> TrainedVideo:
        return TrainedVideo(
            video_id=video.video_id,
            name=video.name,
            state=state,
            segments=len(video.lengths),
            frames=video.frames,
            why=str(why),
        )

    def _routes(self, video: IndexedVideo, learned: Sequence[Learned]) -> TaskRoutes:
        spec = self.task.spec
        return laid_out(
            TaskRoutes(
                video_id=video.video_id,
                task=spec.name,
                version=spec.version,
                attempt=video.attempt,
                routes=tuple(route for own in learned for route in own.routes),
            )
        )


class _Progress:
    """Frames done with, over all videos."""

    def __init__(self, total: int, report: OnProgress) -> None:
        self._total, self._report = total, report
        self._done = self._before = 0
        self._began = time.monotonic()

    def add(self, frames: int) -> None:
        self._done += frames
        each = (time.monotonic() - self._began) / self._done
        left = each * (self._total - self._done)
        self._report(IngestProgress(phase="train", done=self._done, total=self._total, eta_seconds=left))

    def past(self, frames: int) -> None:
        """A video of so many frames is done with, however it went."""
        self._before += frames
        self._done = self._before


def _fidelity(routes: TaskRoutes, frames: Mapping[int, int]) -> float | None:
    """Of each segment's default route, weighted by the segments' `frames`; None where none was measured."""
    chosen = {n: choose([r for r in routes.routes if r.segment == n]) for n in frames}
    known = [(r.fidelity, frames[n]) for n, r in chosen.items() if r is not None and r.fidelity is not None]
    return sum(f * n for f, n in known) / sum(n for _, n in known) if known else None


def _adapter_bytes(routes: TaskRoutes) -> int:
    return sum(part.size_bytes for part in set(adapter_ranges(routes)) if part is not None)


def _ignored(_: IngestProgress) -> None:
    pass
