"""Training stabilizers: flicker goes, the picture stays, a kill costs nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nvpstore.adapters.losses import rmse
from nvpstore.adapters.stabilized import OUTPUT, Stabilized, stabilized
from nvpstore.adapters.stabilizer import LIGHT, PAPER, Shape
from nvpstore.adapters.steadying import Lesson, SteadyTraining, begin_at_best, train_stabilizer
from nvpstore.errors import CodecError, UsageError

FRAMES = 4


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), nn.ReLU(), nn.Conv2d(6, 3, 3, 1, 1))


def lessons(net: nn.Module, *, seed: int = 0, std: float = 0.3) -> Iterator[Lesson]:
    """Pictures that stand still under noise; wanted is what the net says of them without it."""
    chance = torch.Generator().manual_seed(seed)
    while True:
        still = torch.rand(1, 1, 3, 12, 12, generator=chance).expand(FRAMES, 1, 3, 12, 12)
        seen = still + std * torch.randn(still.shape, generator=chance)
        with torch.no_grad():
            wanted = torch.stack([net(x) for x in still])
        yield Lesson(seen=seen, wanted=wanted)


def made(shape: Shape, net: nn.Module | None = None) -> Stabilized:
    torch.manual_seed(1)
    return stabilized(net or network(), ("0", OUTPUT), shape, torch.rand(1, 3, 12, 12))


def judged(steady: Stabilized) -> tuple[float, float]:
    """(error, instability) on lessons that training did not see."""
    errors, changes = [], []
    for lesson in islice(lessons(network(), seed=99), 6):
        with torch.no_grad():
            outputs, _ = steady.clip(lesson.seen)
        errors.append(float(rmse(outputs[:, 0], lesson.wanted[:, 0]).mean()))
        changes.append(float(rmse(outputs[1:, 0], outputs[:-1, 0]).mean()))
    return sum(errors) / 6, sum(changes) / 6


@pytest.mark.parametrize(("variant", "rate"), [("learned", 0.1), ("controlled", 0.004), ("spatial", 0.004)])
def test_what_flickers_is_steadied_and_nearer_to_the_truth(variant: str, rate: float) -> None:
    steady = made(LIGHT[variant])  # type: ignore[index]
    before = judged(steady)
    losses = train_stabilizer(
        steady,
        lessons(steady.net),
        SteadyTraining(steps=80, frames=FRAMES, learning_rate=rate, stability=0.2),
    )
    after = judged(steady)
    assert len(losses) == 80
    assert after[0] < before[0]
    assert after[1] < 0.7 * before[1]
    assert all(
        torch.equal(a, b) for a, b in zip(steady.net.parameters(), network().parameters(), strict=True)
    )


def test_a_training_may_begin_with_the_best_constant_weight() -> None:
    training = SteadyTraining(steps=1, frames=FRAMES, stability=0.4)
    noisy, calm = made(LIGHT["controlled"]), made(LIGHT["controlled"])
    assert begin_at_best(noisy, lessons(noisy.net), training) < 0.98
    assert begin_at_best(calm, lessons(calm.net, std=0.0), training) == 0.98
    before = judged(made(LIGHT["controlled"]))
    assert judged(noisy)[1] < before[1]


def test_a_base_that_may_learn_does() -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    steady = made(PAPER["fixed"], net)
    training = SteadyTraining(steps=3, frames=FRAMES, unfreeze=True)
    train_stabilizer(steady, lessons(network()), training)
    assert any(not torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(p.requires_grad for p in net.parameters())


def test_training_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    def run(steps: int, checkpoint: Path | None) -> tuple[list[float], list[Tensor]]:
        steady = made(LIGHT["controlled"])
        training = SteadyTraining(steps=8, frames=FRAMES)
        source = lessons(network())
        if steps < 8:
            source = islice(source, steps)
        try:
            losses = train_stabilizer(steady, source, training, checkpoint=checkpoint, every=2)
        except StopIteration:
            losses = []
        return list(losses), [p.detach() for p in steady.stabilizer.parameters()]

    whole = run(8, None)
    run(5, tmp_path / "steady.pt")  # as if killed during the sixth step
    resumed = run(8, tmp_path / "steady.pt")
    assert resumed[0] == pytest.approx(whole[0])
    for own, other in zip(whole[1], resumed[1], strict=True):
        torch.testing.assert_close(own, other)


def test_divergence_is_said() -> None:
    net = network()

    def broken() -> Iterator[Lesson]:
        yield Lesson(seen=torch.full((2, 1, 3, 12, 12), torch.nan), wanted=torch.zeros(2, 1, 3, 12, 12))

    with pytest.raises(CodecError, match="diverged at step 1"):
        train_stabilizer(made(LIGHT["learned"], net), broken(), SteadyTraining(steps=1))


def test_nothing_to_learn_is_said() -> None:
    with pytest.raises(UsageError, match="nothing to learn"):
        train_stabilizer(made(PAPER["fixed"]), lessons(network()), SteadyTraining(steps=1))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="repeat the first one"):
        SteadyTraining(steps=1, stability=8)
    with pytest.raises(UsageError, match="at least 1 of 2"):
        SteadyTraining(steps=0)
    with pytest.raises(UsageError, match="as many of both"):
        Lesson(seen=torch.zeros(3, 1), wanted=torch.zeros(2, 1))
