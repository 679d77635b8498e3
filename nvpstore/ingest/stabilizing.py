"""A stabilizer of archive scope: taught by runs of stored frames, measured on others, stored in one entry."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from nvpstore.adapters.stabilizer import VARIANTS, Variant
from nvpstore.adapters.steadying import SteadyTraining, begin_at_best, train_stabilizer
from nvpstore.adapters.stored_steady import SteadyRecord, decode_stabilizer, encode_stabilizer
from nvpstore.catalog import Catalog, Snapshot
from nvpstore.errors import SourceError, UsageError
from nvpstore.ingest.named import named_task, register_once
from nvpstore.ingest.pipeline import SEED, IngestProgress, OnProgress
from nvpstore.ingest.steady_lessons import Run, SteadyReader
from nvpstore.ingest.steady_subjects import FRAMES, Answers, Judged, Pictures, Subject
from nvpstore.ingest.writer import usable_device
from nvpstore.steadiness import flips
from nvpstore.storage.commit import commit_stabilizer
from nvpstore.types import SegmentRecord

JUDGED_EVERY = 4  # runs: the others teach
MOST_RUNS = 128
TRIAL_STEPS = 2

Pair = tuple[float, float]  # before and after


@dataclass(frozen=True, slots=True, kw_only=True)
class StabilizeRequest:
    """A `share` of the frames of at most MOST_RUNS segments, `steps` on windows of so many `frames`.

    λ is `stability`. `variant` None: controlled for tasks, spatial for pictures.
    """

    share: float = 0.25
    steps: int = 200
    frames: int = 8
    stability: float = 0.2
    variant: Variant | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(f"share {self.share}: it must be above 0 and at most 1")
        if self.variant is not None and self.variant not in VARIANTS[1:]:
            raise UsageError(f"variant {self.variant!r}: {', '.join(VARIANTS[1:])} can be learned")
        self.training(self.steps)

    def training(self, steps: int, *, learning_rate: float = 1e-3) -> SteadyTraining:
        """Raises UsageError for settings that no training can have."""
        return SteadyTraining(
            steps=steps, frames=self.frames, stability=self.stability, learning_rate=learning_rate
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StabilizerSummary:
    """A stabilizer that was "trained", or what training it would take ("estimated").

    `change`, `error` and `flips` are measured on runs that did not teach, before and after: by how much
    answers differ from the one before, and from what is right; how often a second the first label changes.
    None where no run is left to judge by, and flips of kinds without a first label. `frames` taught it.
    """

    name: str
    version: str
    state: Literal["trained", "estimated"]
    variant: str
    cut: str
    parameters: int
    bytes: int
    segments: int
    judged_segments: int
    frames: int
    steps: int
    seconds: float
    change: Pair | None = None
    error: Pair | None = None
    flips: Pair | None = None


def stabilize(
    catalog: Catalog,
    name: str,
    video_ids: Sequence[str],
    request: StabilizeRequest,
    *,
    reader: SteadyReader,
    dry_run: bool,
    on_progress: OnProgress | None,
) -> StabilizerSummary:
    """Train a stabilizer of the task called `name`, or of pictures ("frames"), and store it.

    `dry_run` takes a few steps and scales them up. Raises TaskError for an unknown task and for one without
    cuts, UsageError where no segment is long enough.
    """
    reader.device = usable_device(request.device)
    began = time.monotonic()
    task = None if name == FRAMES else named_task(catalog, name, device=reader.device)
    subject: Subject = (
        Pictures(reader, request.variant) if task is None else Answers(task, reader, request.variant)
    )
    school = _School(subject, request, catalog.snapshot(), video_ids)
    if dry_run:
        return school.estimate(began)
    school.learn(request.steps, on_progress or _ignored)
    data = school.encoded()
    if task is not None:
        register_once(catalog, task)
    commit_stabilizer(
        catalog.log,
        name=subject.name,
        version=subject.version,
        data=data,
        later_than=catalog.snapshot().latest_attempt,
    )
    return school.told("trained", data, seconds=time.monotonic() - began)


class _School:
    """One stabilizer, the runs that teach it and those that judge it."""

    def __init__(
        self, subject: Subject, request: StabilizeRequest, snapshot: Snapshot, video_ids: Sequence[str]
    ) -> None:
        self.subject, self.request = subject, request
        places = [(video, record) for video in video_ids for record in snapshot.segments(video)]
        spread = np.unique(np.linspace(0, len(places) - 1, MOST_RUNS).astype(int)) if places else ()
        runs = [run for i in spread if (run := self._run(snapshot, *places[i])) is not None]
        if not runs:
            raise UsageError(
                f"{subject.name}: of {len(places)} segments none can be read and has {request.frames} frames "
                "to learn from"
            )
        self.judges = runs[JUDGED_EVERY - 1 :: JUDGED_EVERY]
        self.teachers = [run for i, run in enumerate(runs) if i % JUDGED_EVERY != JUDGED_EVERY - 1]
        self.seconds = float(np.median([run.spacing for run in self.teachers]))

    def _run(self, snapshot: Snapshot, video_id: str, record: SegmentRecord) -> Run | None:
        try:
            return self.subject.run(
                snapshot, video_id, record, share=self.request.share, frames=self.request.frames
            )
        except SourceError:  # an original that is gone teaches nothing
            return None

    def learn(self, steps: int, on_progress: OnProgress) -> float:
        """Seconds that the steps took, without what comes before them."""
        lessons = self.subject.lessons(
            self.teachers, frames=self.request.frames, seconds=self.seconds, seed=SEED
        )
        training = self.request.training(steps, learning_rate=self.subject.learning_rate)
        begin_at_best(self.subject.steady, lessons, training, distance=self.subject.distance)
        began = time.monotonic()

        def report(done: int, _: float) -> None:
            left = (time.monotonic() - began) / done * (steps - done)
            on_progress(IngestProgress(phase="train", done=done, total=steps, eta_seconds=left))

        train_stabilizer(
            self.subject.steady, lessons, training, distance=self.subject.distance, report=report
        )
        return time.monotonic() - began

    def estimate(self, began: float) -> StabilizerSummary:
        """What gathering took, and so many steps would take. Nothing is measured."""
        step = self.learn(TRIAL_STEPS, _ignored) / TRIAL_STEPS
        before = time.monotonic() - began - TRIAL_STEPS * step
        data = encode_stabilizer(self._record({}), self.subject.steady.stabilizer)
        return self.told("estimated", data, seconds=before + step * self.request.steps)

    def encoded(self) -> bytes:
        """What is to be stored, with figures of how well it does."""
        training = {**asdict(self.request), "segments": len(self.teachers), **self._figures()}
        return encode_stabilizer(self._record(training), self.subject.steady.stabilizer)

    def told(
        self, state: Literal["trained", "estimated"], data: bytes, *, seconds: float
    ) -> StabilizerSummary:
        record, stabilizer = decode_stabilizer(data)
        figures = {name: record.training.get(name) for name in ("change", "error", "flips")}
        return StabilizerSummary(
            name=record.name,
            version=record.version,
            state=state,
            variant=record.shape.variant,
            cut=record.cut,
            parameters=sum(p.numel() for p in stabilizer.parameters()),
            bytes=len(data),
            segments=len(self.teachers),
            judged_segments=len(self.judges),
            frames=sum(len(run.ts) for run in self.teachers),
            steps=self.request.steps,
            seconds=seconds,
            **{name: None if pair is None else (pair[0], pair[1]) for name, pair in figures.items()},
        )

    def _record(self, training: dict[str, object]) -> SteadyRecord:
        subject, stabilizer = self.subject, self.subject.steady.stabilizer
        return SteadyRecord(
            kind=subject.kind,
            name=subject.name,
            version=subject.version,
            cut=subject.cut,
            seconds=self.seconds,
            shape=stabilizer.shape,
            places=stabilizer.places,
            picture_channels=stabilizer.picture_channels,
            training=training,
        )

    def _figures(self) -> dict[str, Pair | None]:
        """On the runs that judge, each counted alike."""
        judged = [self.subject.judged(run, seconds=self.seconds) for run in self.judges]
        if not judged:
            return {"change": None, "error": None, "flips": None}
        return {
            "change": _mean([self._change(own) for own in judged]),
            "error": _mean([self._error(own) for own in judged]),
            "flips": None if judged[0].labels is None else _flips(judged, self.judges),
        }

    def _change(self, own: Judged) -> Pair:
        distance = self.subject.distance
        return float(distance(own.plain[1:], own.plain[:-1]).mean()), float(
            distance(own.steady[1:], own.steady[:-1]).mean()
        )

    def _error(self, own: Judged) -> Pair:
        distance = self.subject.distance
        return float(distance(own.plain, own.wanted).mean()), float(distance(own.steady, own.wanted).mean())


def _flips(judged: Sequence[Judged], runs: Sequence[Run]) -> Pair:
    seconds = sum(float(run.ts[-1] - run.ts[0]) for run in runs)
    before, after = (
        sum(flips(own.labels[i].tolist()) for own in judged if own.labels is not None) for i in (0, 1)
    )
    return before / seconds, after / seconds


def _mean(pairs: Sequence[Pair]) -> Pair:
    before, after = np.mean(pairs, axis=0).tolist()
    return before, after


def _ignored(_: IngestProgress) -> None:
    pass
