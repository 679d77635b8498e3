"""What a stabilizer learns from: runs of an archive's own frames, disturbed, and what was said without that.

There is no clean source in an archive: what is right is the median of the network's own answers over a few
frames before and after. It follows true changes without delay and drops what lasts a few frames; only what
may look ahead can tell them apart at once, and the stabilizer learns from it to tell them apart soon.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from nvpstore.adapters.corruptions import corrupted
from nvpstore.adapters.losses import Distance, rmse
from nvpstore.adapters.micro import MicroAdapter
from nvpstore.adapters.steady_tail import SteadyTail
from nvpstore.adapters.steadying import Lesson
from nvpstore.catalog import Snapshot
from nvpstore.codec.artifact import content_rgb
from nvpstore.ingest.learning import Reader, StoredSegment
from nvpstore.ingest.units import units_asked
from nvpstore.routing.choice import choose
from nvpstore.storage.ranges import Traffic
from nvpstore.tasks.registry import LoadedTask
from nvpstore.types import RGB_STAGE, ByteRange, SegmentRecord, TaskKind

REACH = 4  # frames before and after that the median looks at
STRENGTHS = (0.5, 2.0)  # of disturbances, in units of what the frames themselves change
SPLICED, LOST, UNDISTURBED = 0.5, 0.08, 0.25  # shares: of lessons, of frames, of lessons
STRIDES = (1, 1, 2, 4)
BATCH = 16  # pictures decoded at a time
PICTURES = ("noise", "jpeg", "patch_drop")


class SteadyReader(Reader, Protocol):
    """A `Reader` that also loads adapters."""

    def adapter(
        self, snapshot: Snapshot, task: LoadedTask, at: ByteRange, *, cut: str, stages: tuple[str, ...]
    ) -> tuple[MicroAdapter, Traffic]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Consecutive units of a segment: `seen` [u, …] as the stabilizer meets them, `ts` [u] in seconds."""

    seen: Tensor
    ts: NDArray[np.float64]

    @property
    def spacing(self) -> float:
        """The median time between two of them."""
        return float(np.median(np.diff(self.ts)))


def run_of_task(
    reader: SteadyReader,
    snapshot: Snapshot,
    video_id: str,
    record: SegmentRecord,
    task: LoadedTask,
    steady: SteadyTail,
    *,
    share: float,
    least: int,
    most: int,
) -> Run | None:
    """The tensors of the late cut in the middle `share` of a segment, by the route that queries take.

    Of `least` to `most` units; None where there are fewer.
    """
    units = units_asked(task.spec, frames=record.frames)
    count = min(max(least, round(share * len(units))), max(least, most))
    if len(units) < least:
        return None
    first = (len(units) - min(count, len(units))) // 2
    units = units[first : first + count]
    with torch.no_grad():
        parts = _late(reader, snapshot, video_id, record, task, steady, units)
    return Run(seen=torch.cat(parts), ts=_times(snapshot, video_id, record)[units[:, 0].numpy()])


def run_of_pictures(
    reader: Reader, snapshot: Snapshot, video_id: str, record: SegmentRecord, *, frames: int, crop: int
) -> Run | None:
    """Pictures [t, 3, crop, crop] in 0 … 1 of the middle of a segment, as they are decoded."""
    if record.frames < frames:
        return None
    positions = torch.arange(frames) + (record.frames - frames) // 2
    with torch.no_grad():
        pictures = [
            _pixels(reader, snapshot, video_id, record, part) / 255 for part in positions.split(BATCH)
        ]
    x = torch.cat(pictures)
    top, left = (max(0, side - crop) // 2 for side in x.shape[2:])
    x = x[:, :, top : top + crop, left : left + crop].clone()
    return Run(seen=x, ts=_times(snapshot, video_id, record)[positions.numpy()])


def _late(
    reader: SteadyReader,
    snapshot: Snapshot,
    video_id: str,
    record: SegmentRecord,
    task: LoadedTask,
    steady: SteadyTail,
    units: Tensor,
) -> list[Tensor]:
    """[u, n] of `units` [u, t], some at a time."""
    some = units.split(max(1, BATCH // units.shape[1]))
    late = steady.cut.name
    found = [
        each for each in snapshot.routes(video_id, task.spec.version) if each.route.segment == record.segment
    ]
    chosen = choose([each.route for each in found])
    at = next((each.row_group for each in found if each.route is chosen), None)
    if not record.fitted or chosen is None or at is None or chosen.route != "adapter":
        video = snapshot.video(video_id)
        size = (video.height, video.width)
        pictures = (_pixels(reader, snapshot, video_id, record, part.flatten()) for part in some)
        prepared = (task.spec.prepare(x, size=size) for x in pictures)
        return [steady.packed(task.backbone.features(x, [late])[0][late]) for x in prepared]
    stored = reader.fetch(snapshot, video_id, record.segment, RGB_STAGE)
    adapter, _ = reader.adapter(snapshot, task, at, cut=chosen.cut, stages=chosen.stages)
    between = task.backbone.between(chosen.cut, late)
    taps = (_taps(stored, part.flatten(), chosen.stages) for part in some)
    return [steady.packed(between(*adapter(each))) for each in taps]


def _taps(stored: StoredSegment, positions: Tensor, stages: tuple[str, ...]) -> dict[str, Tensor]:
    return dict(stored.decoder.taps(stored.latents[positions.to(stored.latents.device)], stages))


def _pixels(
    reader: Reader, snapshot: Snapshot, video_id: str, record: SegmentRecord, positions: Tensor
) -> Tensor:
    """[t, 3, h, w] in 0 … 255: what is stored, else the original."""
    if not record.fitted:
        frames = np.unique(positions.numpy() + record.start_frame)
        source: Any = reader.source(snapshot, video_id, frames)[RGB_STAGE]
        shown: Tensor = source.for_backbone().to(reader.device).float()
        return shown[torch.from_numpy(np.searchsorted(frames, positions.numpy() + record.start_frame))]
    stored = reader.fetch(snapshot, video_id, record.segment, RGB_STAGE)
    return content_rgb(_taps(stored, positions, (RGB_STAGE,))[RGB_STAGE], stored.arch)


def _times(snapshot: Snapshot, video_id: str, record: SegmentRecord) -> NDArray[np.float64]:
    return record.pts.astype(np.float64) * float(snapshot.video(video_id).time_base)


# ---------------------------------------------------------------- lessons


def distance_of(kind: TaskKind) -> Distance:
    """How far answers are apart: a norm of the difference of what people read, not of what is behind it.

    Of classes, of their log-odds: shares of an unsure network hardly differ, however often its first label
    changes, and a stabilizer would learn to leave it alone.
    """
    if kind in ("classification", "action"):
        return _between_odds
    if kind == "embedding":
        return _between_directions
    return rmse


def _between_odds(a: Tensor, b: Tensor) -> Tensor:
    change = a - b
    return rmse(change - change.mean(1, keepdim=True), torch.zeros_like(change))


def _between_directions(a: Tensor, b: Tensor) -> Tensor:
    change = torch.nn.functional.normalize(a, dim=1) - torch.nn.functional.normalize(b, dim=1)
    return change.flatten(1).square().sum(1).clamp_min(1e-12).sqrt()


@torch.no_grad()
def wanted_of(answers: Tensor) -> Tensor:
    """The median of [t, …] over REACH frames before and after each."""
    padded = torch.cat(
        [
            answers[:1].expand(REACH, *answers.shape[1:]),
            answers,
            answers[-1:].expand(REACH, *answers.shape[1:]),
        ]
    )
    return padded.unfold(0, 2 * REACH + 1, 1).median(-1).values


@torch.no_grad()
def answers_of(steady: SteadyTail, seen: Tensor) -> Tensor:
    """What the tail says of [t, n] without memory."""
    return torch.cat([steady.net(*steady.unpacked(part)) for part in seen.split(BATCH)])


def task_lessons(
    runs: Sequence[Run], wanted: Sequence[Tensor], *, frames: int, batch: int, seconds: float, seed: int
) -> Iterator[Lesson]:
    """Endless lessons of `batch` windows of `frames`; `wanted` [u, …] stands beside each run.

    Windows skip frames, end in another run without notice, lose frames, and carry noise of up to twice what
    changes from frame to frame.
    """
    chance = Generator().manual_seed(seed)
    levels = [_level(run.seen) for run in runs]
    while True:
        stride = STRIDES[_below(len(STRIDES), chance)]
        stride = stride if all(len(run.seen) >= frames * stride for run in runs) else 1
        windows = [_window(runs, wanted, levels, frames, stride, chance) for _ in range(batch)]
        seen, right, spacing = zip(*windows, strict=True)
        gap = max(1e-3, float(np.median(spacing)) / seconds)
        yield Lesson(seen=torch.stack(seen, 1), wanted=torch.stack(right, 1), gaps=[gap] * frames)


def _window(
    runs: Sequence[Run],
    wanted: Sequence[Tensor],
    levels: Sequence[Tensor],
    frames: int,
    stride: int,
    chance: Generator,
) -> tuple[Tensor, Tensor, float]:
    own = _below(len(runs), chance)
    at = _places(runs[own], frames, stride, chance)
    seen, right = runs[own].seen[at].clone(), wanted[own][at]
    if _share(chance) < SPLICED and len(runs) > 1:
        other, cut = _below(len(runs), chance), 1 + _below(frames - 1, chance)
        there = _places(runs[other], frames, stride, chance)[cut:]
        seen[cut:], right = runs[other].seen[there], torch.cat([right[:cut], wanted[other][there]])
    if _share(chance) >= UNDISTURBED:
        low, high = STRENGTHS
        strength = low + (high - low) * _share(chance)
        noise = torch.randn(seen.shape, generator=chance).to(seen.device)
        lost = torch.rand(frames, generator=chance) < LOST
        strange = runs[_below(len(runs), chance)].seen
        seen = seen + strength * levels[own] * noise
        seen[lost] = strange[torch.randint(len(strange), (int(lost.sum()),), generator=chance)]
    return seen, right, runs[own].spacing * stride


def _places(run: Run, frames: int, stride: int, chance: Generator) -> Tensor:
    first = _below(len(run.seen) - (frames - 1) * stride, chance)
    return torch.arange(frames) * stride + first


def _level(seen: Tensor) -> Tensor:
    """How much each element [n] changes from frame to frame, its typical (median) change, but no silence."""
    change = (seen[1:] - seen[:-1]).abs().median(0).values
    return change.clamp_min(0.1 * float(change.mean()) + 1e-6)


def picture_lessons(runs: Sequence[Run], *, frames: int, seed: int) -> Iterator[Lesson]:
    """Endless lessons of one window of pictures, disturbed on their way."""
    chance = Generator().manual_seed(seed)
    while True:
        run = runs[_below(len(runs), chance)]
        at = _places(run, frames, 1, chance)
        clean = run.seen[at]
        seen = clean
        if _share(chance) >= UNDISTURBED:
            name = PICTURES[_below(len(PICTURES), chance)]
            seen = corrupted(clean, name, seed=_below(1 << 30, chance)).to(clean.device)
        yield Lesson(seen=seen[:, None], wanted=clean[:, None])


def _below(count: int, chance: Generator) -> int:
    return int(torch.randint(count, (1,), generator=chance))


def _share(chance: Generator) -> float:
    return float(torch.rand((), generator=chance))
