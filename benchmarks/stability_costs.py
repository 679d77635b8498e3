"""What a stabilizer costs beside its base: parameters, FLOPs and latency, on a CPU and, if any, a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.stability_nets import NETS, PLACES
from nvpstore.adapters.stabilized import OUTPUT, Steady, stabilized
from nvpstore.adapters.stabilizer import LIGHT, PAPER, Shape, State
from nvpstore.adapters.steady_tail import new_tail
from nvpstore.tasks.flops import counting
from nvpstore.tasks.registry import builtin_spec, load

SIZE = 128  # pixels, of pictures
RUNS = 9


def costs() -> list[dict[str, Any]]:
    """A row a base and variant. `whole` is the base as a query without a stabilizer runs it."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [row for device in devices for row in (*_tails(device), *_pictures(device))]


def _tails(device: str) -> list[dict[str, Any]]:
    """EfficientNet-Lite0, entered at its last cut: what `task(stabilize := true)` runs a frame."""
    task = load(builtin_spec("labels"), device)
    cut = task.backbone.cuts[-1]
    features = [torch.randn(1, *shape, device=device) for shape in cut.shapes]
    picture = torch.randn(1, *task.spec.input_shape, device=device)
    whole = _seconds(lambda: task.backbone.whole(picture), device)
    found = []
    for preset, shape in _shapes():
        steady = new_tail(task.backbone.tail(cut.name), cut, shape, with_output=True, device=device)
        found.append(
            {
                "base": "EfficientNet-Lite0",
                "base_parameters": task.backbone.parameters,
                "base_gflops": task.backbone.whole_gflops(),
                "base_ms": 1e3 * whole,
                **_row(steady, steady.packed(features), preset, shape, device),
                "plain_ms": 1e3 * _seconds(partial(steady.net, *features), device),
            }
        )
    return found


def _pictures(device: str) -> list[dict[str, Any]]:
    found = []
    x = torch.rand(1, 3, SIZE, SIZE, device=device)
    for name, make in NETS.items():
        net = make().to(device).eval()
        with counting() as spent:
            net(x)
            flops = spent()
        for preset, shape in _shapes():
            steady = stabilized(net, (*PLACES[name], OUTPUT), shape, x)
            steady.stabilizer.to(device)
            plain = 1e3 * _seconds(partial(net, x), device)
            found.append(
                {
                    "base": name,
                    "base_parameters": sum(p.numel() for p in net.parameters()),
                    "base_gflops": flops / 1e9,
                    "base_ms": plain,
                    **_row(steady, x, preset, shape, device),
                    "plain_ms": plain,
                }
            )
    return found


def _shapes() -> list[tuple[str, Shape]]:
    return [("light", s) for s in LIGHT.values()] + [("paper", s) for s in PAPER.values() if s.looks]


@torch.inference_mode()
def _row(steady: Steady, x: torch.Tensor, preset: str, shape: Shape, device: str) -> dict[str, Any]:
    steady.stabilizer.requires_grad_(False)  # what counts FLOPs asks for the graph of what is trained
    _, state = steady.step(x, State())
    with counting() as spent:
        steady.step(x, state)
        flops = spent()
    return {
        "device": device,
        "preset": preset,
        "variant": shape.variant,
        "parameters": sum(p.numel() for p in steady.stabilizer.parameters()),
        "gflops": flops / 1e9,  # of a step, the network behind it included
        "step_ms": 1e3 * _seconds(lambda: steady.step(x, state), device),
    }


@torch.inference_mode()
def _seconds(run: Callable[[], object], device: str) -> float:
    """The median of RUNS."""
    taken = []
    for _ in range(RUNS + 2):
        began = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:])
