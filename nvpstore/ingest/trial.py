"""What tasks add to fitting a segment, tried on a few of its pictures."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nvpstore.codec.build import Architecture, Preset
from nvpstore.codec.fit import SegmentFit
from nvpstore.codec.hnerv import Decoder
from nvpstore.ingest.pairs import RANK_UNITS
from nvpstore.ingest.references import References
from nvpstore.ingest.routes import RouteSettings, SegmentRoutes, TaskTerms
from nvpstore.ingest.segment import gathered, route_settings
from nvpstore.ingest.units import MEASURED_EVERY
from nvpstore.tasks.registry import LoadedTask
from nvpstore.types import FrameBatch, RouteRecord, SegmentSpan

Made = TypeVar("Made")
EPOCHS = 3  # that are timed, of the picture alone and of joint ones
LONGER = 3  # epochs that adapters are trained for the second time


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutesTrial:
    """Seconds of one task's routes: of all but training (`ranking`), and of one epoch of its adapters
    (`training`), which have `tail_gflops` behind them on average."""

    ranking: float
    training: float
    tail_gflops: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTrial:
    """Seconds that tasks took on a segment of so many `frames`: backbones on source frames (`references`),
    choosing the pairs that join (`joining`), what a joint epoch takes more than one of the picture alone
    (`epoch`), and each task's routes.
    """

    frames: int
    references: float
    joining: float
    epoch: float
    routes: tuple[RoutesTrial, ...]

    def seconds(self, preset: Preset, *, frames: int, distinct: int, epochs: int) -> float:
        """What the tasks would add to a segment of so many frames, of which so many are learned from."""
        joint = (1 - preset.terms_from) * epochs * self.epoch * distinct / self.frames
        joining = self.joining * min(frames, RANK_UNITS) / min(self.frames, RANK_UNITS)
        routes = sum(self._routes(one, route_settings(preset), frames) for one in self.routes)
        return self.references * frames / self.frames + joining + joint + routes

    def _routes(self, one: RoutesTrial, settings: RouteSettings, frames: int) -> float:
        ranking = one.ranking * frames / self.frames
        if not one.training:
            return ranking
        training = settings.training(_learned(frames), tail_gflops=one.tail_gflops)
        steps, tried = (math.ceil(_learned(n) / training.batch_frames) for n in (frames, self.frames))
        return ranking + training.epochs * steps * one.training / tried


def try_tasks(
    rgb_thwc: NDArray[np.uint8], arch: Architecture, preset: Preset, tasks: Sequence[LoadedTask], device: str
) -> TaskTrial:
    """Fit `tasks` jointly to uint8 [t, h, w, 3] for a moment, and train their adapters for a moment."""
    count, height, width, _ = rgb_thwc.shape
    span = SegmentSpan(segment=0, scene=0, start_frame=0, frames=count)
    batch = FrameBatch(first_frame=0, rgb_thwc=rgb_thwc, pts=np.arange(count))
    (frames, _, references), answering = _timed(
        lambda: gathered(lambda: iter([batch]), span, preset, tasks, size=(height, width), seed=0)
    )
    teaching = [refs for refs in references if refs.can_teach]
    terms = TaskTerms(teaching, arch, device=device, seed=0) if teaching else None
    fit = SegmentFit(frames, arch, preset, terms_factory=terms, device=device)
    fit.run_epoch()  # warms up
    alone = _seconds_an_epoch(fit)
    _, joining = _timed(fit.join_terms)
    fit.run_epoch()
    joint = _seconds_an_epoch(fit)
    decoder, latents = fit.decoder.cpu().eval(), fit.all_latents().cpu()
    return TaskTrial(
        frames=count,
        references=answering,
        joining=joining,
        epoch=max(0.0, joint - alone),
        routes=tuple(_try_routes(decoder, latents, refs, arch, preset) for refs in references),
    )


def _try_routes(
    decoder: Decoder, latents: Tensor, refs: References, arch: Architecture, preset: Preset
) -> RoutesTrial:
    def measured(epochs: int) -> Sequence[RouteRecord]:
        settings = replace(route_settings(preset), epochs=epochs, least_steps=0)
        routes = SegmentRoutes(decoder, latents, refs, segment=0, arch=arch, settings=settings, seed=0)
        return routes.measure(None)

    made, short = _timed(lambda: measured(1))
    _, longer = _timed(lambda: measured(LONGER))
    training = max(0.0, longer - short) / (LONGER - 1)
    tails = [refs.task.backbone.tail_gflops(route.cut) for route in made if route.route == "adapter"]
    return RoutesTrial(
        ranking=max(0.0, short - training),
        training=training if tails else 0.0,
        tail_gflops=statistics.fmean(tails) if tails else 0.0,
    )


def _seconds_an_epoch(fit: SegmentFit) -> float:
    began = time.monotonic()
    for _ in range(EPOCHS):
        fit.run_epoch()
    return (time.monotonic() - began) / EPOCHS


def _learned(frames: int) -> int:
    """Of so many frames those that adapters learn from, about."""
    return max(1, frames - frames // MEASURED_EVERY)


def _timed(work: Callable[[], Made]) -> tuple[Made, float]:
    began = time.monotonic()
    return work(), time.monotonic() - began
