"""python -m benchmarks.upscale_ablations [--steps 400] [--frames 6] [--begun FILE] [--folder F] [-o JSON]:
what each part of the upscaler is good for.

Every variant has the same number of steps on the footage of benchmarks.upscale_training, and is judged on
clips that no training has seen (benchmarks.upscale). Four groups, each compared within itself:

    pruned     from nothing, on single frames: a quarter of the channels taken away before, against none
    diffusion  from nothing, on single frames: a flow-matching teacher in four steps, its one-step student
               after as many steps more, and regression for the steps of both
    recurrence from --begun (default: the shipped weights): all of it; neighbours as they are, without flow;
               without the cyclic second pass
    rivals     from `recurrence: all`: both discriminators, without that of features, without that of pixels

Rows that are in the JSON already are not measured again; a training that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import ROOT, write_result
from benchmarks.upscale import clips, measures, recurrent, steps_of
from benchmarks.upscale_rivals import bicubic
from benchmarks.upscale_training import ADVERSARIAL, CLIPS, STILLS, drawn_from, told
from nvpstore.upscaling.build import FACTORS, preset
from nvpstore.upscaling.degrade import in_bytes, smaller
from nvpstore.upscaling.flow import Motion, Step
from nvpstore.upscaling.net import Upscaler, count_parameters, to_cells
from nvpstore.upscaling.recurrence import Held, coloured_like, softened, window
from nvpstore.upscaling.settings import TrainingProgress, TrainingSettings
from nvpstore.upscaling.teacher import SCALE, sample
from nvpstore.upscaling.training import Training
from nvpstore.upscaling.weights import load, shipped

RESULT = Path(__file__).with_name("results") / "upscale-ablations.json"
TEACHER_STEPS = 4
NEVER = 10**9
Method = Callable[[Tensor, int], Tensor]


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    result = _begun(args)
    for name, variant in _variants(args):
        if name in result["rows"]:
            continue
        method, parameters, seconds = variant()
        judged = [
            _judged(method, sharp, clip, factor)
            for clip, sharp in clips(args.frames, scenes=1)
            for factor in FACTORS
        ]
        result["rows"][name] = {"parameters": parameters, "training_seconds": seconds, "measured": judged}
        write_result(args.out, result)
        psnr, near = (statistics.fmean(row[key] for row in judged) for key in ("psnr", "perceptual"))
        sys.stdout.write(f"{name}: {psnr:.2f} dB, perceptual distance {near:.3f}\n")


Variant = Callable[[], tuple[Method, int, float]]


def _variants(args: argparse.Namespace) -> Iterator[tuple[str, Variant]]:
    """In the order in which one begins with another's weights."""
    n, folder = args.steps, args.folder
    stills = replace(STILLS, steps=(0, 0, n, 0))
    moving = replace(CLIPS, steps=(0, 0, n, 0))
    rivals = replace(ADVERSARIAL, steps=(0, 0, 0, n))
    whole = folder / "recurrence-all" / "upscaler.safetensors"
    yield "bicubic", lambda: (bicubic, 0, 0.0)
    yield "pruned: a quarter", lambda: _trained(folder / "pruned", stills)
    yield "pruned: nothing", lambda: _trained(folder / "unpruned", replace(stills, pruning=0.0))
    twice = replace(stills, steps=(0, 0, 2 * n, 0), pruning=0.0)
    yield "diffusion: teacher, four steps", lambda: _teacher(folder / "diffusion", n)
    yield "diffusion: its student, one step", lambda: _student(folder / "diffusion", n)
    yield "diffusion: regression instead, as many steps", lambda: _trained(folder / "regression", twice)
    yield "recurrence: all", lambda: _trained(folder / "recurrence-all", moving, args.begun)
    yield "recurrence: no flow", lambda: _trained(folder / "no-flow", moving, args.begun, flow=False)
    yield (
        "recurrence: no cyclic pass",
        lambda: _trained(folder / "no-cyclic", replace(moving, cyclic_every=NEVER), args.begun),
    )
    yield "rivals: both", lambda: _trained(folder / "rivals", rivals, whole)
    yield (
        "rivals: no features",
        lambda: _trained(folder / "no-features", replace(rivals, feature_weight=0.0), whole),
    )
    yield (
        "rivals: no pixels",
        lambda: _trained(folder / "no-pixels", replace(rivals, pixel_weight=0.0), whole),
    )


# ---------------------------------------------------------------- variants


def _trained(
    folder: Path, settings: TrainingSettings, initial: Path | None = None, *, flow: bool = True
) -> tuple[Method, int, float]:
    footage, shares = drawn_from(settings)
    with _seen(flow):
        summary = Training(footage, settings, folder, shares=shares, initial=initial).run(told)
    method = recurrent(load(summary.weights))
    return method if flow else _without_flow(method), summary.parameters, summary.seconds


def _seen(flow: bool) -> AbstractContextManager[object]:
    """Where training looks for motion: with `flow` as ever, else there is none."""
    return nullcontext() if flow else patch("nvpstore.upscaling.batches.step_between", _still)


def _without_flow(method: Method) -> Method:
    def blind(low: Tensor, factor: int) -> Tensor:
        with patch("nvpstore.upscaling.recurrence.step_between", _still):
            return method(low, factor)

    return blind


def _still(first_chw: Tensor, second_chw: Tensor) -> Step:
    """Nothing moves, and all is visible."""
    height, width = first_chw.shape[1:]
    motion = Motion(flow=torch.zeros(1, 2, height, width), visible=torch.ones(1, 1, height, width))
    return Step(forward=motion, backward=motion)


def _diffusion(folder: Path, steps: int) -> tuple[Upscaler, Path, float]:
    """A teacher after `steps`, the weights of the student that it then taught for as many, the seconds."""
    settings = replace(STILLS, steps=(steps, steps, 0, 0), teacher_steps=TEACHER_STEPS, pruning=0.0)
    footage, shares = drawn_from(settings)
    training, kept = Training(footage, settings, folder, shares=shares), folder / "teacher.pt"

    def report(progress: TrainingProgress) -> None:
        told(progress)
        if training.teacher is not None and not kept.exists():
            torch.save(training.teacher.state_dict(), kept)

    summary = training.run(report)
    teacher = Upscaler(preset(settings.preset).geometry, timed=True)
    teacher.load_state_dict(torch.load(kept, weights_only=True))
    return teacher.requires_grad_(False).eval(), summary.weights, summary.seconds


def _teacher(folder: Path, steps: int) -> tuple[Method, int, float]:
    teacher, _, seconds = _diffusion(folder, steps)
    return partial(_sampled, teacher), count_parameters(teacher), seconds / 2


def _student(folder: Path, steps: int) -> tuple[Method, int, float]:
    _, path, seconds = _diffusion(folder, steps)
    weights = load(path)
    return recurrent(weights), count_parameters(weights.net), seconds


@torch.inference_mode()
def _sampled(teacher: Upscaler, low: Tensor, factor: int) -> Tensor:
    """Each frame by itself, from noise."""
    geometry, chance = teacher.geometry, torch.Generator().manual_seed(0)
    pictures = []
    for frame in low[:, None]:
        soft = softened(frame, factor)
        height, width = soft.shape[2:]
        cells = to_cells(window(soft, [Held(low=frame, picture=soft)], [], 0), geometry)
        noise = torch.randn(1, geometry.picture_channels, *cells.shape[2:], generator=chance)
        residual = F.pixel_shuffle(sample(teacher, cells, noise, steps=TEACHER_STEPS), geometry.patch) / SCALE
        pictures.append(coloured_like(soft + residual[..., :height, :width], frame))
    return torch.cat(pictures).clamp(0, 1)


# ---------------------------------------------------------------- the run


def _judged(method: Method, sharp: Tensor, clip: str, factor: int) -> dict[str, Any]:
    low = in_bytes(smaller(sharp, factor))
    began = time.perf_counter()
    made = method(low, factor)
    seconds = (time.perf_counter() - began) / len(low)
    figures = measures(made, sharp, steps_of(sharp))
    return {"clip": clip, "factor": factor, "seconds_a_frame": seconds, **figures}


def _begun(args: argparse.Namespace) -> dict[str, Any]:
    """What an earlier run has measured of the same, or nothing yet."""
    digest = (load(args.begun) if args.begun else shipped()).digest
    fresh: dict[str, Any] = {
        "question": "what each part of the upscaler is good for",
        "steps": args.steps,
        "frames": args.frames,
        "begun_with": digest,
        "rows": {},
    }
    if not args.out.exists():
        return fresh
    known: dict[str, Any] = json.loads(args.out.read_text(encoding="utf-8"))
    same = all(known.get(name) == fresh[name] for name in ("steps", "frames", "begun_with"))
    return {name: known[name] for name in fresh} if same else fresh


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400, help="of each variant (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=6, help="of each clip (default: %(default)s)")
    parser.add_argument(
        "--begun", type=Path, help="weights that recurrence begins with (default: the shipped)"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "upscale-ablations")
    parser.add_argument("-o", "--out", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
