"""python -m benchmarks.routing [--archive demo/archive] [--task labels …] [--videos 2] [--out FILE]: what
ranking by CKA is worth.

For each task and the longest segment of each video: every stage × cut pair whose tail is within the shares
that routing looks at gets an adapter, as ingest trains one, and its fidelity is measured on frames that
training did not see. That is exhaustive search. Beside it: the best of the first 5, 10 and 20 % by CKA ×
saving, by CKA, by held-out R² of ridge regression, by cost, and at random (expected), each with its share of
exhaustive search's time; and the pairs that ingest takes without a joint fit: ranked by CKA × saving, decided
by the answers behind the ridge optimum among the first of each stage. Then the composite feature loss against
MSE alone: held-out error by steps, for the pair that ranks first.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import nvpstore
from benchmarks.machine import ROOT, write_result
from nvpstore.adapters.losses import composite_loss
from nvpstore.adapters.train import AdapterTraining, train_adapter
from nvpstore.api.output import TextOutput, aligned
from nvpstore.archive import Archive
from nvpstore.ingest.named import named_task
from nvpstore.ingest.pairs import Pairs, inputs_of_units
from nvpstore.ingest.references import ReferenceBuilder, References
from nvpstore.ingest.routes import RouteSettings, SegmentRoutes
from nvpstore.ingest.units import units_at_ingest
from nvpstore.routing.select import Candidate
from nvpstore.tasks.registry import LoadedTask
from nvpstore.types import RGB_STAGE, SegmentRecord

SEED = 0
SHARES = (0.05, 0.10, 0.20)
STEPS = (10, 20, 40, 80, 160)
BATCH = 16
SETTINGS = RouteSettings(adapters=1, epochs=8, least_steps=60)
ADAPTERS = RouteSettings().adapters  # that ingest trains


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One pair of exhaustive search. `seconds` of training and measuring it."""

    candidate: Candidate
    ridge_r2: float
    fidelity: float
    seconds: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing", description=__doc__)
    parser.add_argument("--archive", type=Path, default=ROOT / "demo/archive")
    parser.add_argument("--task", action="append", dest="tasks")
    parser.add_argument("--videos", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/routing.json")
    args = parser.parse_args(arguments)
    archive = nvpstore.open(args.archive)
    rows = []
    for name in args.tasks or ["labels"]:
        task = named_task(archive.catalog, name)
        for video in archive.videos_where("state <> 'added'")[: args.videos]:
            rows.append(measured(archive, task, video))
    write_result(args.out, {"question": "routing", "seed": SEED, "rows": rows})
    output = TextOutput()
    for text in aligned(("task", "video", "pairs", "best", *_HEADS), [shown(row) for row in rows]):
        output.text(text)


def measured(archive: Archive, task: LoadedTask, video_id: str) -> dict[str, Any]:
    """Exhaustive search on one segment, and what each ranking would have found."""
    segment = Segment(archive, task, video_id)
    began = time.perf_counter()
    ranked = segment.pairs.ranked()
    cka_seconds = time.perf_counter() - began
    tried = [segment.tried(candidate, of=len(ranked)) for candidate in ranked]
    ridge_seconds = segment.ridge_seconds
    began = time.perf_counter()
    taken = segment.pairs.decided(ranked, ADAPTERS)
    decided_seconds = cka_seconds + time.perf_counter() - began
    return {
        "task": task.spec.name,
        "video": archive.show(video_id)["name"],
        "frames": segment.record.frames,
        "pairs": len(tried),
        "best": max(t.fidelity for t in tried),
        "cka_seconds": cka_seconds,
        "ridge_seconds": ridge_seconds,
        "exhaustive_seconds": sum(t.seconds for t in tried),
        "judged": len(segment.refs.unseen),
        "rankings": rankings(tried, cka_seconds=cka_seconds, ridge_seconds=ridge_seconds),
        "decided": decided(tried, taken, seconds=decided_seconds),
        "tried": [
            {
                "stage": t.candidate.stage,
                "cut": t.candidate.cut,
                "cka": t.candidate.cka,
                "score": t.candidate.score,
                "gflops": t.candidate.gflops,
                "ridge_r2": t.ridge_r2,
                "fidelity": t.fidelity,
                "seconds": t.seconds,
            }
            for t in tried
        ],
        "losses": segment.losses(ranked[0]),
    }


class Segment:
    """The longest segment of a video as it is stored, and what the backbone says of its source frames."""

    def __init__(self, archive: Archive, task: LoadedTask, video_id: str) -> None:
        snapshot = archive.catalog.snapshot()
        reader = archive._new_operators()
        segments = snapshot.segments(video_id)
        self.record: SegmentRecord = max(segments, key=lambda record: (record.frames, -record.segment))
        stored = reader.fetch(snapshot, video_id, self.record.segment, RGB_STAGE)
        plan = units_at_ingest(task.spec, start_frame=self.record.start_frame, frames=self.record.frames)
        builder = ReferenceBuilder(task, plan, size=(stored.height, stored.width), seed=SEED)
        for first in range(0, len(plan.pictures), BATCH):
            positions = plan.pictures[first : first + BATCH]
            frames = np.array(positions, dtype=np.int64) + self.record.start_frame
            builder.add(positions, reader.source(snapshot, video_id, frames)[RGB_STAGE].for_backbone())
        self.refs: References = builder.build()
        self.task, self.decoder, self.latents, self.arch = task, stored.decoder, stored.latents, stored.arch
        self.pairs = Pairs(self.decoder, self.latents, self.refs, self.arch, seed=SEED)
        self.routes = SegmentRoutes(
            self.decoder,
            self.latents,
            self.refs,
            segment=self.record.segment,
            arch=self.arch,
            settings=SETTINGS,
            seed=SEED,
        )
        self.ridge_seconds = 0.0

    def tried(self, candidate: Candidate, *, of: int) -> Tried:
        began = time.perf_counter()
        r2 = [fit.r2 for fit in self.pairs.ridge(candidate)]
        self.ridge_seconds += time.perf_counter() - began
        began = time.perf_counter()
        route = self.routes.adapter_route(candidate, self.pairs.from_ridge(candidate), sum(r2) / len(r2))
        assert route.fidelity is not None, "the longest segment of a demo's clip has frames to judge by"
        seconds = time.perf_counter() - began
        sys.stderr.write(f"{candidate.stage} → {candidate.cut}: {route.fidelity:.3f}, one of {of}\n")
        return Tried(
            candidate=candidate, ridge_r2=sum(r2) / len(r2), fidelity=route.fidelity, seconds=seconds
        )

    def losses(self, candidate: Candidate) -> dict[str, list[dict[str, float]]]:
        """Held-out loss of the kind and agreement, by steps, for two feature losses."""
        inputs = self._inputs(candidate, self.refs.frames[self.refs.seen])
        return {
            name: [self._error(candidate, inputs, loss, steps) for steps in STEPS]
            for name, loss in (("composite", composite_loss), ("mse", F.mse_loss))
        }

    def _inputs(self, candidate: Candidate, frames: Tensor) -> tuple[Tensor, ...]:
        return inputs_of_units(self.decoder, self.latents, frames, self.pairs.from_ridge(candidate))

    def _error(
        self,
        candidate: Candidate,
        inputs: Sequence[Tensor],
        loss: Callable[[Tensor, Tensor], Tensor],
        steps: int,
    ) -> dict[str, float]:
        refs, settings = self.refs, AdapterTraining()
        batches = math.ceil(int(refs.seen.sum()) / settings.batch_frames)
        epochs = max(1, round(steps / batches))
        targets = refs.targets(candidate.cut)
        start = self.pairs.from_ridge(candidate)
        for conv in start.convolutions:
            torch.nn.init.kaiming_uniform_(conv.weight, a=math.sqrt(5))  # from scratch: ridge is the optimum
        tail = refs.task.backbone.tail(candidate.cut)
        trained = train_adapter(
            start,
            inputs,
            targets=targets,
            reference=refs.output[refs.seen],
            tail=tail,
            output_loss=refs.task.head.loss,
            settings=AdapterTraining(epochs=epochs),
            seed=SEED,
            feature_loss=loss,
        )
        with torch.inference_mode():
            output = tail(*trained.from_inputs(self._inputs(candidate, refs.frames[refs.unseen])))
            error = refs.task.head.loss(output, refs.output[refs.unseen])
            same = refs.task.head.agreement(output, refs.output[refs.unseen])
        return {
            "steps": epochs * batches,
            "held_out_loss": float(error),
            "agreement": float(same.mean()),
        }


# ---------------------------------------------------------------- rankings


def rankings(tried: Sequence[Tried], *, cka_seconds: float, ridge_seconds: float) -> list[dict[str, Any]]:
    """For each ranking and share: the best fidelity among its first, what is missing, its share of time."""
    everything = sum(t.seconds for t in tried)
    best = max(t.fidelity for t in tried)
    orders: Mapping[str, tuple[list[Tried], float]] = {
        "score": (sorted(tried, key=lambda t: -t.candidate.score), cka_seconds),
        "cka": (sorted(tried, key=lambda t: -t.candidate.cka), cka_seconds),
        "ridge": (sorted(tried, key=lambda t: -t.ridge_r2), ridge_seconds),
        "cost": (sorted(tried, key=lambda t: t.candidate.gflops), 0.0),
    }
    found = []
    for share in SHARES:
        count = max(1, math.ceil(share * len(tried)))
        for name, (order, seconds) in orders.items():
            taken = order[:count]
            reached = max(t.fidelity for t in taken)
            spent = seconds + sum(t.seconds for t in taken)
            found.append(_found(name, share, count, reached, best, spent / everything))
        found.append(_found("random", share, count, expected_best(tried, count), best, count / len(tried)))
    return found


def decided(tried: Sequence[Tried], taken: Sequence[Candidate], *, seconds: float) -> dict[str, Any]:
    """The same of the pairs that ingest would have taken, after it had looked at answers for `seconds`."""
    own = [t for t in tried if t.candidate in taken]
    everything = sum(t.seconds for t in tried)
    best = max(t.fidelity for t in tried)
    share = (seconds + sum(t.seconds for t in own)) / everything
    return _found("decided", len(own) / len(tried), len(own), max(t.fidelity for t in own), best, share)


def _found(
    name: str, share: float, count: int, reached: float, best: float, time_share: float
) -> dict[str, Any]:
    return {
        "ranking": name,
        "share": share,
        "pairs": count,
        "fidelity": reached,
        "missing": best - reached,
        "time_share": time_share,
    }


def expected_best(tried: Sequence[Tried], count: int) -> float:
    """The expected maximum fidelity of `count` pairs drawn without replacement."""
    ascending = sorted(t.fidelity for t in tried)
    draws = math.comb(len(ascending), count)
    return sum(f * math.comb(i, count - 1) for i, f in enumerate(ascending)) / draws


_HEADS = ("ingest", "time", "score 10 %", "cka 10 %", "ridge 10 %", "random 10 %")


def shown(row: Mapping[str, Any]) -> tuple[str, ...]:
    ten = {r["ranking"]: r for r in row["rankings"] if r["share"] == 0.10}
    reached = (f"{ten[name]['fidelity']:.3f}" for name in ("score", "cka", "ridge", "random"))
    return (
        row["task"],
        row["video"],
        str(row["pairs"]),
        f"{row['best']:.3f}",
        f"{row['decided']['fidelity']:.3f}",
        f"{row['decided']['time_share']:.0%}",
        *reached,
    )


if __name__ == "__main__":
    main()
