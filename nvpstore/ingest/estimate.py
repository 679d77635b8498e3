"""What fitting a file will take, before it starts: a look at its footage, a short trial fit on this machine,
scaled up to the file and to an hour of such footage.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np
import torch
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from torch import Tensor

from nvpstore.codec.alike import alike_runs
from nvpstore.codec.artifact import coded_frames
from nvpstore.codec.build import (
    Architecture,
    Preset,
    build_architecture,
    stage_gflops,
    stage_parameters,
)
from nvpstore.codec.fit import Diverged, SegmentFit
from nvpstore.ingest.task_costs import TaskCost, task_cost
from nvpstore.tasks.registry import LoadedTask
from nvpstore.types import SourceInfo, SourceScan
from nvpstore.video.converter import Converter
from nvpstore.video.listing import list_frames
from nvpstore.video.scenes import THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH, CutDetector
from nvpstore.video.source import checked_frames

OVERHEAD = 1.1  # reading, rounding, measuring: over bare fitting
TRIAL_FRAMES = 8
ADAPTER_BYTES = 40_000  # a segment's adapters for one task, about

Footage = Literal["static", "moving", "film"]

STRETCHES, STRETCH_FRAMES = 4, 128  # of the file are looked at
STATIC_DIFFERENCE = 1.0  # of neighbouring thumbnails, 0 … 255: below it the camera stands still
PROBE_FRAMES = 24  # that the trial fits
PROBE_SECONDS = 15.0  # that it takes at most, about
HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """`seconds` at most (a fit that meets its target stops early); `stored_bytes` about."""

    frames: int
    segments: int
    seconds: float
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HourCost:
    """What an hour of video takes, of `frames_a_second`: hours of the device, and bytes that are stored."""

    frames_a_second: float
    device_hours: float
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestEstimate:
    """What storing a file would take on this machine, and an hour of footage like it.

    `kind`: "film" where cuts were seen, else "static" or "moving" by `motion`, the median difference of
    neighbouring thumbnails (0 … 255). `distinct` is the share of frames that show something new, where it was
    tried; only these are learned from. `epochs` is what a segment of the file's usual length takes: at most,
    unless the trial met the PSNR target, which `reached` says.
    """

    path: str
    kind: Footage
    motion: float
    cuts_a_minute: float
    preset: str
    device: str
    frames: int
    distinct: float
    segments: int
    epochs: int
    reached: bool
    seconds: float
    stored_bytes: int
    full_rate: HourCost
    one_a_second: HourCost


def estimate_fit(info: SourceInfo, preset: Preset, *, tasks: Sequence[LoadedTask], device: str) -> Estimate:
    """Time and size of storing `info` with `preset`; segments for cuts inside are not known yet."""
    frames = info.declared_frames or max(1, round(info.duration_seconds * float(info.average_fps)))
    segments = math.ceil(frames / preset.max_segment_frames)
    length = math.ceil(frames / segments)
    arch = build_architecture(info.height, info.width, length, preset)
    epochs = preset.epochs_for(length)
    epoch_seconds = length * _seconds_a_frame(arch, preset, device)
    seconds = frames / length * epochs * epoch_seconds * OVERHEAD
    seconds += segments * sum(
        task_cost(task).seconds(
            preset, frames=length, distinct=length, epochs=epochs, epoch_seconds=epoch_seconds
        )
        for task in tasks
    )
    stored = _bytes(arch, frames, segments, len(tasks))
    return Estimate(frames=frames, segments=segments, seconds=seconds, stored_bytes=stored)


def estimate_ingest(path: str, preset: Preset, *, tasks: Sequence[LoadedTask], device: str) -> IngestEstimate:
    """Look at a file and fit a little of it. Raises SourceError as `video.listing.list_frames` does."""
    scan = list_frames(path, tone_map=True)
    seen = [_look(scan, start) for start in _starts(scan.frames)]
    motion = float(np.median(np.concatenate([one.steps for one in seen])))
    cuts = sum(one.cuts for one in seen)
    minutes = sum(len(one.steps) for one in seen) / float(scan.info.average_fps) / 60
    kind: Footage = "film" if cuts else "static" if motion < STATIC_DIFFERENCE else "moving"
    scene_seconds = 60 * minutes / cuts if cuts else math.inf
    trial = _trial(scan, _starts(scan.frames)[len(seen) // 2], preset, device)
    fps = float(scan.info.average_fps)
    cost = _Cost(
        scan=scan,
        preset=preset,
        tasks=tuple(map(task_cost, tasks)),
        trial=trial,
        scene_seconds=scene_seconds,
        fps=fps,
    )
    return IngestEstimate(
        path=path,
        kind=kind,
        motion=motion,
        cuts_a_minute=cuts / minutes,
        preset=preset.name,
        device=device,
        frames=scan.frames,
        distinct=trial.distinct,
        segments=cost.segments(scan.frames),
        epochs=cost.epochs,
        reached=trial.epochs is not None,
        seconds=cost.seconds(scan.frames),
        stored_bytes=cost.stored_bytes(scan.frames),
        full_rate=cost.hour(),
        one_a_second=replace(cost, fps=min(1.0, fps)).hour(),
    )


# ---------------------------------------------------------------- looking


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stretch:
    steps: NDArray[np.float64]  # differences of neighbours
    cuts: int


def _starts(frames: int) -> Sequence[int]:
    """Where the stretches begin, spread over the file."""
    fitting = max(1, min(STRETCHES, frames // STRETCH_FRAMES))
    return [frames * part // fitting for part in range(fitting)]


def _look(scan: SourceScan, start: int) -> _Stretch:
    detector, steps, cuts = CutDetector(), [0.0], 0
    before: NDArray[np.int16] | None = None
    for converter, frame in _converted(scan, start, STRETCH_FRAMES):
        thumbnail = converter.thumbnail(frame, THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT)
        cuts += detector.feed(thumbnail) is not None
        now = thumbnail.astype(np.int16)
        if before is not None:
            steps.append(float(np.abs(now - before).mean()))
        before = now
    return _Stretch(steps=np.array(steps), cuts=cuts + len(detector.finish()))


def _converted(scan: SourceScan, start: int, frames: int) -> Iterator[tuple[Converter, VideoFrame]]:
    with closing(checked_frames(scan.info.path, start, scan)) as found:
        converter: Converter | None = None
        for _, frame in islice(found, frames):
            converter = converter or Converter(scan.info.path, frame, scan.info)
            yield converter, frame


# ---------------------------------------------------------------- trying


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """`epochs` that the target took, None where it was not met; seconds a frame of one epoch, and GFLOPs.
    `distinct`: the share of frames that do not show what those before them show."""

    epochs: int | None
    seconds_a_frame: float
    gflops: float
    distinct: float


def _trial(scan: SourceScan, start: int, preset: Preset, device: str) -> _Trial:
    height, width = scan.info.height, scan.info.width
    rgb = [
        torch.from_numpy(converter.rgb(frame).copy()).permute(2, 0, 1)
        for converter, frame in _converted(scan, start, PROBE_FRAMES)
    ]
    length = min(scan.frames, preset.max_segment_frames)
    size = build_architecture(height, width, length, preset)  # that frames are coded at, whatever the widths
    frames = torch.cat([coded_frames(one[None], size).half() for one in rgb])
    alike = alike_runs(frames, preset.alike_rms)
    arch = build_architecture(height, width, _distinct(length, len(alike) / len(frames)), preset)
    return _climb(frames, alike, arch, preset, device)


def _distinct(frames: int, share: float) -> int:
    return max(1, round(frames * share))


def _climb(frames: Tensor, alike: Tensor, arch: Architecture, preset: Preset, device: str) -> _Trial:
    fit = SegmentFit(frames, arch, preset, alike=alike, device=device)
    target = math.inf if preset.target_psnr is None else preset.target_psnr
    fit.run_epoch()  # warms up
    began, done = time.monotonic(), 0
    try:
        while fit.psnr < target and time.monotonic() - began < PROBE_SECONDS and done < fit.epochs:
            fit.run_epoch()
            fit.epoch, done = fit.epoch + 1, done + 1
    except Diverged:
        done += 1
    if not done:
        fit.run_epoch()
    seconds = (time.monotonic() - began) / (max(1, done) * len(alike))
    return _Trial(
        epochs=done + 1 if fit.psnr >= target else None,
        seconds_a_frame=seconds,
        gflops=stage_gflops(arch)[-1],
        distinct=len(alike) / len(frames),
    )


def _seconds_a_frame(arch: Architecture, preset: Preset, device: str) -> float:
    """Seconds that one frame of one epoch takes here: the second of two trial epochs."""
    noise = torch.rand(TRIAL_FRAMES, 3, arch.coded_height, arch.coded_width).half()
    fit = SegmentFit(noise, arch, preset, device=device)
    fit.run_epoch()
    began = time.monotonic()
    fit.run_epoch()
    return (time.monotonic() - began) / TRIAL_FRAMES


# ---------------------------------------------------------------- scaling up


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cost:
    """`fps`: of the frames that are stored. Only at the file's own rate neighbours may be alike."""

    scan: SourceScan
    preset: Preset
    tasks: tuple[TaskCost, ...]
    trial: _Trial
    scene_seconds: float
    fps: float

    def hour(self) -> HourCost:
        frames = round(HOUR * self.fps)
        return HourCost(
            frames_a_second=self.fps,
            device_hours=self.seconds(frames) / HOUR,
            stored_bytes=self.stored_bytes(frames),
        )

    @property
    def length(self) -> int:
        """Frames of a usual segment: a scene is divided evenly where it is too long."""
        scene = max(1.0, min(self.scene_seconds * self.fps, HOUR * self.fps))
        return max(1, round(scene / math.ceil(scene / self.preset.max_segment_frames)))

    @property
    def distinct(self) -> int:
        """Frames of a usual segment that differ from those before them."""
        own_rate = self.fps == float(self.scan.info.average_fps)
        return _distinct(self.length, self.trial.distinct if own_rate else 1.0)

    @property
    def epochs(self) -> int:
        """The trial's steps, if they were enough; a short segment makes fewer of them an epoch. Tasks that
        join have their share of the fit even so."""
        most = self.preset.epochs_for(self.length, distinct=self.distinct)
        if self.trial.epochs is None:
            return most
        batch = self.preset.batch_frames
        steps = self.trial.epochs * math.ceil(_distinct(PROBE_FRAMES, self.trial.distinct) / batch)
        least = math.ceil((1 + self.preset.terms_from) / 2 * most) if any(c.tail for c in self.tasks) else 1
        return min(most, max(least, math.ceil(steps / math.ceil(self.distinct / batch))))

    def segments(self, frames: int) -> int:
        return math.ceil(frames / self.length)

    def seconds(self, frames: int) -> float:
        each = self.trial.seconds_a_frame * stage_gflops(self._arch())[-1] / self.trial.gflops
        epoch_seconds = self.distinct * each
        a_segment = self.epochs * epoch_seconds * OVERHEAD + sum(
            cost.seconds(
                self.preset,
                frames=self.length,
                distinct=self.distinct,
                epochs=self.epochs,
                epoch_seconds=epoch_seconds,
            )
            for cost in self.tasks
        )
        return frames / self.length * a_segment

    def stored_bytes(self, frames: int) -> int:
        return _bytes(self._arch(), frames, self.segments(frames), len(self.tasks))

    def _arch(self) -> Architecture:
        return build_architecture(self.scan.info.height, self.scan.info.width, self.distinct, self.preset)


def _bytes(arch: Architecture, frames: int, segments: int, tasks: int) -> int:
    latents = math.prod(arch.latent_shape) * (4 if arch.codec == "nerv" else 1)
    return segments * (sum(stage_parameters(arch)) + tasks * ADAPTER_BYTES) + frames * latents
