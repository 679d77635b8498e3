"""What tasks add to fitting a segment, counted in passes through their backbones; a pass is timed here."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass

import torch

from nvpstore.codec.build import Preset
from nvpstore.codec.fit import CLIP_EVERY
from nvpstore.ingest.pairs import RANK_UNITS, SHORT_LIST
from nvpstore.ingest.segment import route_settings
from nvpstore.ingest.units import units_at_ingest
from nvpstore.routing.select import HELD_OUT_EVERY, worthwhile_cuts
from nvpstore.tasks.registry import LoadedTask
from nvpstore.tasks.spec import TaskSpec

LEARNING = 2  # passes that a step through a frozen tail takes: forward, and the gradient of its input
VIEW = 0.25  # of an epoch's time on a frame: a view is decoded to the stages that are tapped alone
TIMED_UNITS, TIMED_GFLOPS = 8, 16.0  # a pass is timed on so many units, on fewer where they would be dearer


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCost:
    """Seconds of one unit through the whole backbone, and through the tail of a cut that pays, on average;
    `tail` is 0 where the backbone cannot be cut. `tail_gflops` of one unit.
    """

    spec: TaskSpec
    whole: float
    tail: float
    tail_gflops: float

    def seconds(
        self, preset: Preset, *, frames: int, distinct: int, epochs: int, epoch_seconds: float
    ) -> float:
        """What the task would add to a segment of so many frames, of which so many are learned from, in
        epochs that take so many seconds each for the picture alone.
        """
        plan = units_at_ingest(self.spec, start_frame=0, frames=frames)
        units, seen = len(plan.seen), int(plan.seen.sum())
        answering = units * self.whole
        if not self.tail or not seen:
            return answering
        joint = max(0, epochs - math.ceil(preset.terms_from * preset.epochs_for(frames, distinct=distinct)))
        looked = 2 * min(seen, RANK_UNITS) * SHORT_LIST / HELD_OUT_EVERY * self.tail
        learning = joint * self._joint_epoch(preset, seen / units, distinct, epoch_seconds)
        return answering + learning + looked + self._routes(preset, seen, units - seen)

    def _joint_epoch(self, preset: Preset, share: float, distinct: int, epoch_seconds: float) -> float:
        each = LEARNING * self.tail
        if self.spec.clip is None:
            # Frames that the task may see, and a view of each, which is decoded and answered too.
            return share * (distinct * (2 * each + self.whole) + VIEW * epoch_seconds)
        clips = math.ceil(distinct / preset.batch_frames) / CLIP_EVERY
        return clips * (each + self.spec.frames * epoch_seconds / distinct)

    def _routes(self, preset: Preset, seen: int, unseen: int) -> float:
        settings = route_settings(preset)
        epochs = settings.training(seen, tail_gflops=self.tail_gflops).epochs
        each = seen * (self.whole + epochs * LEARNING * self.tail) + unseen * self.tail
        return settings.adapters * each + unseen * self.whole


def task_cost(task: LoadedTask) -> TaskCost:
    """Times a few units through the task's backbone, where it is; tails by their share of its GFLOPs."""
    backbone = task.backbone
    units = max(1, min(TIMED_UNITS, int(TIMED_GFLOPS / max(backbone.whole_gflops(), 1e-6))))
    x = torch.rand(units, *backbone.input_shape, device=backbone.device)
    with torch.inference_mode():
        backbone.whole(x).cpu()  # warms up
        began = time.monotonic()
        backbone.whole(x).cpu()
        whole = (time.monotonic() - began) / units
    gflops = [backbone.tail_gflops(cut.name) for cut in worthwhile_cuts(backbone)] if backbone.cuts else []
    tail = statistics.fmean(gflops) if gflops else 0.0
    share = tail / max(backbone.whole_gflops(), 1e-6)
    return TaskCost(spec=task.spec, whole=whole, tail=whole * share, tail_gflops=tail)
