"""python -m benchmarks.models [TASK …] [--units 1] [--out FILE]: every built-in model at full size: its cuts,
the equality of its tails with the whole, and what it costs in four ways.

Weights are drawn at random where no package brings them (cost and equality do not hang on them), and every
row says so. GFLOPs are 2 × MAC of one unit (a picture, or a clip with all its pictures decoded): the backbone
alone, full decode + backbone, partial decode + adapter + tail, and the tail alone. The pair is the cheapest
that routing would look at (tail of 10 to 50 % of the backbone, adapter of at most 1 % of its parameters or
40,000, stage past the stem); which pair an archive really uses is decided by CKA on its frames. Two codecs:
`demo` on 640×272 and `hnerv-1.5m` on 1280×640.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import ROOT, write_result
from nvpstore.api.output import TextOutput, aligned
from nvpstore.codec.build import Architecture, build_architecture, find_preset, stage_gflops
from nvpstore.errors import TaskError
from nvpstore.routing.select import adapter_gflops, adapter_parameters, most_parameters, worthwhile_cuts
from nvpstore.tasks.recipes import RECIPES
from nvpstore.tasks.registry import LoadedTask, builtin_spec, load, packaged_weights, spec_of
from nvpstore.types import RGB_STAGE

SEED = 0
CODECS = {"demo": (272, 640, 160), "hnerv-1.5m": (640, 1280, 132)}  # height, width, frames of a segment


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--units", type=int, default=1, help="that equality is checked on")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/models.json")
    args = parser.parse_args(arguments)
    rows = [measured(name, args.units) for name in args.tasks or list(RECIPES)]
    write_result(args.out, {"question": "models", "seed": SEED, "units": args.units, "models": rows})
    output = TextOutput()
    for text in aligned(("task", "cuts", "tail = whole", "backbone", *CODECS), [shown(row) for row in rows]):
        output.text(text)


def measured(name: str, units: int) -> dict[str, Any]:
    """One model's row."""
    task = load_full_size(name)
    found, said = len(task.backbone.cuts), RECIPES[name].cuts
    if found != said:
        raise TaskError(f"task {name}: {found} cuts, its recipe says {said}")
    began = time.perf_counter()
    worst = worst_tail(task, units)
    return {
        "task": name,
        "kind": task.spec.kind,
        "weights": "random" if task.spec.random else "published",
        "input": list(task.spec.input_shape),
        "parameters": task.backbone.parameters,
        "cuts": [{"name": cut.name, "shapes": cut.shapes} for cut in task.backbone.cuts],
        "tail_max_difference": worst,
        "tail_seconds": time.perf_counter() - began,
        "backbone_gflops": task.backbone.whole_gflops(),
        "codecs": {codec: dict(costs(task, codec)) for codec in CODECS},
    }


def load_full_size(name: str) -> LoadedTask:
    if packaged_weights(RECIPES[name].provider, RECIPES[name].model) is not None:
        return load(builtin_spec(name))
    return load(spec_of(name, RECIPES[name], weights_sha256="", options={"seed": SEED}))


@torch.inference_mode()
def worst_tail(task: LoadedTask, units: int) -> float:
    """The largest difference of any cut's tail from the whole, as a share of the output's largest value."""
    x = torch.randn(units, *task.spec.input_shape, generator=torch.Generator().manual_seed(SEED))
    names = [cut.name for cut in task.backbone.cuts]
    features, output = task.backbone.features(x, names)
    scale = float(output.abs().max())
    return max(
        float((task.backbone.tail(name)(*features[name]) - output).abs().max()) / scale for name in names
    )


def costs(task: LoadedTask, codec: str) -> Iterator[tuple[str, Any]]:
    """The four columns, and the pair that the third and fourth are of."""
    arch = build_architecture(*CODECS[codec], find_preset(codec))
    frames = task.spec.frames
    decode = [frames * each for each in stage_gflops(arch)]
    full = decode[-1] + task.backbone.whole_gflops()
    yield "full_decode_and_backbone_gflops", full
    pairs = list(_pairs(task, arch, decode))
    if not pairs:
        return
    partial, tail, stage, cut, parameters = min(pairs)
    yield "partial_and_tail_gflops", partial
    yield "tail_gflops", tail
    yield "saved", 1 - partial / full
    yield "stage", stage
    yield "cut", cut
    yield "adapter_share_of_parameters", parameters / task.backbone.parameters


def _pairs(
    task: LoadedTask, arch: Architecture, decode: Sequence[float]
) -> Iterator[tuple[float, float, str, str, int]]:
    for cut in worthwhile_cuts(task.backbone):
        tail = task.backbone.tail_gflops(cut.name)
        for i, stage in enumerate(arch.stage_names):
            if i == 0 or stage == RGB_STAGE:
                continue
            stages = arch.stage_names[: i + 1]
            parameters = adapter_parameters(arch, stages, cut)
            if parameters <= most_parameters(task.backbone):
                yield decode[i] + adapter_gflops(arch, stages, cut) + tail, tail, stage, cut.name, parameters


def shown(row: dict[str, Any]) -> tuple[str, ...]:
    saved = [
        f"{c['full_decode_and_backbone_gflops']:.1f} → {c['partial_and_tail_gflops']:.1f} (−{c['saved']:.0%})"
        if "saved" in c
        else f"{c['full_decode_and_backbone_gflops']:.1f} → no pair"
        for c in row["codecs"].values()
    ]
    equal = f"{row['tail_max_difference']:.0e}"
    return row["task"], str(len(row["cuts"])), equal, f"{row['backbone_gflops']:.1f} GFLOPs", *saved


if __name__ == "__main__":
    main()
