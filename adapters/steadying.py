"""Training a stabilizer: clips, corrupted on their way in, against what is right; through all of time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nvpstore.adapters.losses import Distance, check_stability, rmse, steady_loss
from nvpstore.adapters.stabilized import Steady
from nvpstore.errors import CodecError, UsageError

TRIAL_WEIGHTS = (0.7, 0.5, 0.35)  # of the current frame, that a training may begin with
TRIAL_LESSONS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A clip as the net sees it [τ, b, …], and what it should answer [τ, b, …]; `gaps` in frames (1 each)."""

    seen: Tensor
    wanted: Tensor
    gaps: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if len(self.seen) != len(self.wanted) or len(self.seen) < 2:
            raise UsageError(
                f"a lesson of {len(self.seen)} frames with {len(self.wanted)} answers: as many of both are "
                "needed, at least 2"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SteadyTraining:
    """The paper's settings: Adam at 1e-3, τ = `frames` 8, λ = `stability` 0.4.

    `stability` from 0.5 on warns, above τ − 1 it is refused unless `forced`. With `unfreeze` the base learns
    as well, at `base_rate`. `clip_norm` bounds each step's gradient.
    """

    steps: int
    frames: int = 8
    learning_rate: float = 1e-3
    stability: float = 0.4
    forced: bool = False
    unfreeze: bool = False
    base_rate: float = 1e-4
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.frames < 2:
            raise UsageError(f"{self.steps} steps of {self.frames} frames: at least 1 of 2 are needed")
        check_stability(self.stability, frames=self.frames, forced=self.forced)


Report = Callable[[int, float], None]  # (steps done, loss)


def train_stabilizer(
    steady: Steady,
    lessons: Iterator[Lesson],
    training: SteadyTraining,
    *,
    distance: Distance = rmse,
    checkpoint: Path | None = None,
    every: int = 50,
    report: Report | None = None,
) -> Sequence[float]:
    """Teach a stabilizer, and with `training.unfreeze` its net; returns the loss of each step.

    `lessons` gives one a step; after a kill the first ones are taken again and left out, so that a generator
    that depends on a seed alone makes a resumed run repeat an undisturbed one. `every` so many steps
    `checkpoint` is written. Raises CodecError where the loss is not finite.
    """
    learning = _Learning(steady, training, distance)
    losses = learning.resume(checkpoint)
    for _ in losses:
        next(lessons)
    while len(losses) < training.steps:
        loss = learning.step(next(lessons), done=len(losses))
        if not math.isfinite(loss):
            raise CodecError(f"the stabilizer diverged at step {len(losses) + 1} (loss is not finite)")
        losses.append(loss)
        if report is not None:
            report(len(losses), loss)
        if checkpoint is not None and (len(losses) % every == 0 or len(losses) == training.steps):
            learning.save(checkpoint, losses)
    learning.end()
    return losses


@torch.no_grad()
def begin_at_best(
    steady: Steady, lessons: Iterator[Lesson], training: SteadyTraining, *, distance: Distance = rmse
) -> float:
    """Let the last place begin with that constant weight of the current frame whose loss on a few lessons is
    the lowest, and return it: from one near 1, where gradients are small, most of the steps would go there.
    """
    few = [next(lessons) for _ in range(TRIAL_LESSONS)]
    name = steady.stabilizer.places[-1].name

    def loss(beta: float) -> float:
        steady.stabilizer.begin_with(name, beta)
        return sum(_loss(steady, lesson, training, distance).item() for lesson in few)

    best = min((steady.stabilizer.shape.beta, *TRIAL_WEIGHTS), key=loss)
    steady.stabilizer.begin_with(name, best)
    return best


def _loss(steady: Steady, lesson: Lesson, training: SteadyTraining, distance: Distance) -> Tensor:
    """The mean over a batch, each video of which has a loss of its own."""
    outputs = steady.trained_on(lesson.seen, gaps=lesson.gaps)
    # txbx… -> b times tx…
    each = [
        steady_loss(own, right, stability=training.stability, distance=distance)
        for own, right in zip(outputs.unbind(1), lesson.wanted.unbind(1), strict=True)
    ]
    return torch.stack(each).mean()


class _Learning:
    """The state of a training: networks and optimiser."""

    def __init__(self, steady: Steady, training: SteadyTraining, distance: Distance) -> None:
        self.steady, self.training, self.distance = steady, training, distance
        steady.net.eval().requires_grad_(training.unfreeze)
        steady.stabilizer.train().requires_grad_(True)
        groups: list[dict[str, Any]] = [
            {"params": list(steady.stabilizer.parameters()), "lr": training.learning_rate}
        ]
        if training.unfreeze:
            groups.append({"params": list(steady.net.parameters()), "lr": training.base_rate})
        groups = [group for group in groups if group["params"]]
        if not groups:
            raise UsageError("a fixed stabilizer on a frozen net has nothing to learn")
        self.optimiser = torch.optim.Adam(groups)
        self.parameters = [p for group in groups for p in group["params"]]
        self.rates = [group["lr"] for group in groups]

    def step(self, lesson: Lesson, *, done: int) -> float:
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done / self.training.steps))
        loss = _loss(self.steady, lesson, self.training, self.distance)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.training.clip_norm)
        self.optimiser.step()
        return float(loss.detach())

    def end(self) -> None:
        self.steady.stabilizer.eval().requires_grad_(False)
        self.steady.net.requires_grad_(False)

    def resume(self, checkpoint: Path | None) -> list[float]:
        """Where `checkpoint` left it; the losses so far."""
        if checkpoint is None or not checkpoint.exists():
            return []
        kept: Mapping[str, Any] = torch.load(checkpoint, weights_only=True)
        self.steady.stabilizer.load_state_dict(kept["stabilizer"])
        if self.training.unfreeze:
            self.steady.net.load_state_dict(kept["net"])
        self.optimiser.load_state_dict(kept["optimiser"])
        return list(kept["losses"])

    def save(self, checkpoint: Path, losses: Sequence[float]) -> None:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        part = checkpoint.with_suffix(".part")
        torch.save(
            {
                "stabilizer": self.steady.stabilizer.state_dict(),
                "net": self.steady.net.state_dict() if self.training.unfreeze else {},
                "optimiser": self.optimiser.state_dict(),
                "losses": list(losses),
            },
            part,
        )
        part.replace(checkpoint)
