"""One net trained: resumable, the same for the same seed on the CPU; products in bf16, weights in fp32."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.nets.families import Family
from benchmarks.nets.footage import Footage
from benchmarks.nets.lessons import EXTRA, LOSSES, draw, prepare
from nvpstore.tasks.backbones.model import Model
from nvpstore.tasks.registry import build_model
from nvpstore.tasks.weights import as_safetensors

SEED = 0
WARM_UP = 0.05  # of the steps
MOMENTUM = 0.1  # of BatchNorm's statistics
SAVED_EVERY_SECONDS = 60.0
CLIP_NORM = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What came of it. `loss` is the mean of the last hundred steps."""

    model: Model
    steps: int
    loss: float
    seconds: float


def train(
    name: str,
    family: Family,
    footage: Footage,
    folder: Path,
    *,
    device: str,
    steps: int,
    told: Callable[[str], None],
) -> Trained:
    """Train `steps` steps, going on where `folder` has a checkpoint; writes NAME.safetensors there."""
    spec = family.spec(name)
    model = build_model(spec)
    net = model.net.to(device).train().requires_grad_(True)
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = MOMENTUM
        elif isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
        elif isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)
    prepare(model, family, device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=family.rate, weight_decay=0.02)
    checkpoint = folder / f"{name}.pt"
    step, seconds, losses = _resume(checkpoint, net, optimizer)
    began = saved = time.perf_counter()
    torch.manual_seed(SEED + step)
    while step < steps:
        lesson = draw(footage, family, spec, random.Random(f"{SEED} {name} {step}"))
        lesson = replace(lesson, x=lesson.x.to(device))
        for group in optimizer.param_groups:
            group["lr"] = family.rate * _schedule(step / steps)
        loss = LOSSES[family.kind](model, lesson, family)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), CLIP_NORM)
        optimizer.step()
        losses = [*losses[-99:], float(loss.detach())]
        step += 1
        if time.perf_counter() - saved > SAVED_EVERY_SECONDS:
            saved = time.perf_counter()
            _save(checkpoint, net, optimizer, step, seconds + saved - began, losses)
            told(f"{name}: step {step} of {steps}, loss {sum(losses) / len(losses):.3f}")
    seconds += time.perf_counter() - began
    net.eval()
    (folder / f"{name}.safetensors").write_bytes(as_safetensors(_stored(net)))
    checkpoint.unlink(missing_ok=True)
    mean = sum(losses) / max(1, len(losses))
    return Trained(model=model, steps=steps, loss=mean, seconds=seconds)


def _stored(net: nn.Module) -> dict[str, torch.Tensor]:
    """Matrices and kernels in fp16, what scales and shifts them as it is; without counters of batches, and
    without the second lesson.
    """
    return {
        name: tensor.cpu().half() if tensor.ndim > 1 and tensor.is_floating_point() else tensor.cpu()
        for name, tensor in net.state_dict().items()
        if not name.startswith(EXTRA) and not name.endswith("num_batches_tracked")
    }


def _schedule(done: float) -> float:
    """A linear warm-up, then half a cosine."""
    if done < WARM_UP:
        return done / WARM_UP + 1e-3
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def _resume(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float, list[float]]:
    if not path.exists():
        return 0, 0.0, []
    kept: dict[str, Any] = torch.load(path, weights_only=True)
    net.load_state_dict(kept["net"])
    optimizer.load_state_dict(kept["optimizer"])
    return kept["step"], kept["seconds"], kept["losses"]


def _save(
    path: Path,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
    losses: list[float],
) -> None:
    part = path.with_suffix(".part")
    torch.save(
        {
            "net": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "seconds": seconds,
            "losses": losses,
        },
        part,
    )
    part.replace(path)
