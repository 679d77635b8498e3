"""What can be made steady: the answers of a task, and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from nvpstore.adapters.losses import Distance, rmse
from nvpstore.adapters.stabilized import OUTPUT, Stabilized, Steady
from nvpstore.adapters.stabilizer import LIGHT, LIGHT_TAIL, Place, Stabilizer, State, Variant
from nvpstore.adapters.steady_tail import new_tail
from nvpstore.adapters.steadying import Lesson
from nvpstore.catalog import Snapshot
from nvpstore.errors import TaskError
from nvpstore.ingest.learning import Reader
from nvpstore.ingest.steady_lessons import (
    Run,
    SteadyReader,
    answers_of,
    distance_of,
    picture_lessons,
    run_of_pictures,
    run_of_task,
    task_lessons,
    wanted_of,
)
from nvpstore.storage.keys import PICTURES
from nvpstore.tasks.registry import LoadedTask
from nvpstore.types import SegmentRecord, TaskKind

FRAMES = "frames"
BATCH = 4  # windows a step
RUN_BYTES = 256 << 20  # of a run's answers: those of dense kinds are large
PICTURE_RUN, CROP = 24, 96
# Boxes and words of one frame are not those of the next: only what is behind them may be fused.
FUSED: frozenset[TaskKind] = frozenset({"classification", "embedding", "segmentation", "depth", "action"})
LABELLED: frozenset[TaskKind] = frozenset({"classification", "action"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Answers [t, …] on one run: `plain`, made `steady`, and what is right; `labels` of all three [3, t]."""

    plain: Tensor
    steady: Tensor
    wanted: Tensor
    labels: Tensor | None = None


class Subject(Protocol):
    """What a stabilizer is taught for. `steady` is what learns."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def kind(self) -> Literal["tail", "pictures"]: ...
    @property
    def cut(self) -> str: ...
    @property
    def steady(self) -> Steady: ...
    @property
    def distance(self) -> Distance: ...
    @property
    def learning_rate(self) -> float: ...

    def run(
        self, snapshot: Snapshot, video_id: str, record: SegmentRecord, *, share: float, frames: int
    ) -> Run | None:
        """Frames of one segment, at least `frames`; None where it has fewer."""

    def lessons(self, runs: Sequence[Run], *, frames: int, seconds: float, seed: int) -> Iterator[Lesson]: ...

    def judged(self, run: Run, *, seconds: float) -> Judged: ...


class Answers:
    """A task's answers, from the backbone's last cut on: whatever route led there, it has these tensors."""

    kind: Literal["tail", "pictures"] = "tail"
    learning_rate = 1e-2  # a memory begins with a fiftieth of the weight, where gradients are small

    def __init__(self, task: LoadedTask, reader: SteadyReader, variant: Variant | None) -> None:
        self.task, self.reader = task, reader
        self.name, self.version = task.spec.name, task.spec.version
        if not task.backbone.cuts:
            raise TaskError(
                f"task {self.name}: its backbone has no cuts, so that no memory can be put behind one"
            )
        with torch.no_grad():
            answer = task.backbone.whole(torch.zeros(1, *task.spec.input_shape, device=reader.device))
        self._most = RUN_BYTES // answer.nbytes
        cut = task.backbone.cuts[-1]
        self.cut, self.distance = cut.name, distance_of(task.spec.kind)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.steady = new_tail(
                task.backbone.tail(cut.name),
                cut,
                LIGHT_TAIL[variant or "controlled"],
                with_output=task.spec.kind in FUSED,
                device=reader.device,
            )

    def run(
        self, snapshot: Snapshot, video_id: str, record: SegmentRecord, *, share: float, frames: int
    ) -> Run | None:
        return run_of_task(
            self.reader,
            snapshot,
            video_id,
            record,
            self.task,
            self.steady,
            share=share,
            least=frames,
            most=self._most,
        )

    def lessons(self, runs: Sequence[Run], *, frames: int, seconds: float, seed: int) -> Iterator[Lesson]:
        wanted = [wanted_of(answers_of(self.steady, run.seen)) for run in runs]
        return task_lessons(runs, wanted, frames=frames, batch=BATCH, seconds=seconds, seed=seed)

    def judged(self, run: Run, *, seconds: float) -> Judged:
        plain = answers_of(self.steady, run.seen)
        steady, wanted = _steadied(self.steady, run, seconds=seconds), wanted_of(plain)
        labels = None
        if self.task.spec.kind in LABELLED:
            labels = torch.stack([x.argmax(1) for x in (plain, steady, wanted)])
        return Judged(plain=plain, steady=steady, wanted=wanted, labels=labels)


class Pictures:
    """Decoded pictures. Right is what is stored: disturbances are put on top of it, and are to go."""

    kind: Literal["tail", "pictures"] = "pictures"
    learning_rate = 3e-3
    name, version, cut = FRAMES, PICTURES, ""

    def __init__(self, reader: Reader, variant: Variant | None) -> None:
        self.reader, self.distance = reader, rmse
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            stabilizer = Stabilizer(LIGHT[variant or "spatial"], (Place(name=OUTPUT, channels=3),))
        self.steady: Steady = Stabilized(nn.Identity(), stabilizer.to(reader.device))

    def run(
        self, snapshot: Snapshot, video_id: str, record: SegmentRecord, *, share: float, frames: int
    ) -> Run | None:
        count = min(record.frames, max(frames, min(PICTURE_RUN, round(share * record.frames))))
        if record.frames < frames:
            return None
        return run_of_pictures(self.reader, snapshot, video_id, record, frames=count, crop=CROP)

    def lessons(self, runs: Sequence[Run], *, frames: int, seconds: float, seed: int) -> Iterator[Lesson]:
        return picture_lessons(runs, frames=frames, seed=seed)

    def judged(self, run: Run, *, seconds: float) -> Judged:
        """On the first lesson's disturbance of all of it."""
        lesson = next(picture_lessons([run], frames=len(run.seen), seed=2))
        disturbed = Run(seen=lesson.seen[:, 0], ts=run.ts)
        return Judged(
            plain=disturbed.seen,
            steady=_steadied(self.steady, disturbed, seconds=seconds),
            wanted=lesson.wanted[:, 0],
        )


@torch.no_grad()
def _steadied(steady: Steady, run: Run, *, seconds: float) -> Tensor:
    state, outputs = State(), []
    for t, frame in enumerate(run.seen[:, None]):
        gap = 1.0 if t == 0 else max(1e-3, float(run.ts[t] - run.ts[t - 1]) / seconds)
        output, state = steady.step(frame, state, gap=gap)
        outputs.append(output)
    return torch.cat(outputs)
