"""Why a stabilizer may come to repeat the first frame of pictures that stand still, and what helps.

Still pictures under noise; wanted is what the network says without it. Repeating the first frame costs its
error and no instability; an average of constant weight β costs less on both counts together (`best`). So
where training ends at the former it is stuck: the weight is a sigmoid, and near 0 there is next to no slope.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from nvpstore.adapters.losses import rmse, steady_loss
from nvpstore.adapters.stabilized import OUTPUT, Stabilized, stabilized
from nvpstore.adapters.stabilizer import LIGHT
from nvpstore.adapters.steadying import Lesson, SteadyTraining, train_stabilizer

FRAMES = 8
NOISE = 0.3
JUDGED = 8
STEPS = 100


def repeating() -> list[dict[str, Any]]:
    """A row a setting: losses of what was learned, of repeating the first frame, of the best constant β."""
    return [
        _row(stability=stability, floor=floor, rate=rate, seed=seed)
        for rate in (4e-3,)
        for seed in (0, 1)
        for stability in (0.4, 0.2)
        for floor in (0.0, 0.05)
    ]


def _row(*, stability: float, floor: float, rate: float, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), nn.ReLU(), nn.Conv2d(6, 3, 3, 1, 1))
    shape = replace(LIGHT["controlled"], floor=floor)
    steady = stabilized(net, ("0", OUTPUT), shape, torch.rand(1, 3, 12, 12))
    training = SteadyTraining(steps=STEPS, frames=FRAMES, learning_rate=rate, stability=stability)
    train_stabilizer(steady, _lessons(net, seed), training)
    judged = list(islice(_lessons(net, seed + 1000), JUDGED))
    learned = [_answers(steady, lesson) for lesson in judged]
    plain = [_alone(net, lesson) for lesson in judged]
    first = [x[:1].expand_as(x) for x in plain]
    constant = {beta: _loss([_averaged(x, beta) for x in plain], judged, stability) for beta in _BETAS}
    change = [
        rmse(x[1:], x[:-1]).mean() / rmse(p[1:], p[:-1]).mean() for x, p in zip(learned, plain, strict=True)
    ]
    return {
        "stability": stability,
        "floor": floor,
        "rate": rate,
        "seed": seed,
        "loss": _loss(learned, judged, stability),
        "loss_base": _loss(plain, judged, stability),
        "loss_repeating": _loss(first, judged, stability),
        "loss_best_constant": min(constant.values()),
        "best_constant": min(constant, key=lambda beta: constant[beta]),
        "change_kept": round(float(torch.stack(change).mean()), 4),  # 0: the first frame is repeated
    }


_BETAS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)


def _lessons(net: nn.Module, seed: int) -> Iterator[Lesson]:
    chance = torch.Generator().manual_seed(seed)
    while True:
        still = torch.rand(1, 1, 3, 12, 12, generator=chance).expand(FRAMES, 1, 3, 12, 12)
        seen = still + NOISE * torch.randn(still.shape, generator=chance)
        with torch.no_grad():
            wanted = torch.stack([net(x) for x in still])
        yield Lesson(seen=seen, wanted=wanted)


@torch.no_grad()
def _answers(steady: Stabilized, lesson: Lesson) -> Tensor:
    return steady.clip(lesson.seen)[0][:, 0]


@torch.no_grad()
def _alone(net: nn.Module, lesson: Lesson) -> Tensor:
    answers: Tensor = net(lesson.seen[:, 0])
    return answers


def _averaged(x: Tensor, beta: float) -> Tensor:
    memory, out = x[0], [x[0]]
    for frame in x[1:]:
        memory = beta * frame + (1 - beta) * memory
        out.append(memory)
    return torch.stack(out)


def _loss(answers: list[Tensor], judged: list[Lesson], stability: float) -> float:
    each = [
        steady_loss(x, lesson.wanted[:, 0], stability=stability)
        for x, lesson in zip(answers, judged, strict=True)
    ]
    return round(float(torch.stack(each).mean()), 4)
