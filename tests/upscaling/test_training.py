"""Training: it learns, goes on where it was killed, and leaves a diverging game with its average."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from nvpstore.errors import UsageError
from nvpstore.upscaling.adversarial import Adversaries, Diverged
from nvpstore.upscaling.batches import ClipBatch
from nvpstore.upscaling.degrade import CLEAN
from nvpstore.upscaling.footage import Footage, Photographs
from nvpstore.upscaling.losses import reconstruction_loss
from nvpstore.upscaling.net import Upscaler
from nvpstore.upscaling.recurrence import upscale_clip
from nvpstore.upscaling.settings import PHASES, TrainingProgress, TrainingSettings
from nvpstore.upscaling.training import Training
from nvpstore.upscaling.weights import load
from tests.upscaling.clips import moving_clip

QUICK = TrainingSettings(
    preset="micro",
    steps=(3, 2, 6, 4),
    frames=3,
    side=32,
    clips=2,
    pruning=0.0,
    recipe=CLEAN,
    teacher_steps=2,
    cyclic_every=2,
    checkpoint_seconds=1e9,
    sample_every=0,
)


@pytest.fixture(scope="module")
def footage() -> list[Footage]:
    """Edges: bicubic makes them soft."""
    return [Photographs(pictures=tuple(0.25 + 0.5 * (moving_clip(frames=2, height=96, width=96) > 0.5)))]


@torch.no_grad()
def error_on(net: Upscaler, batches: list[ClipBatch]) -> float:
    """Of reconstruction; that of an untrained net is bicubic's."""
    made = [upscale_clip(net, batch.lows, batch.steps, batch.factor) for batch in batches]
    errors = [reconstruction_loss(a, batch.sharp) for a, batch in zip(made, batches, strict=True)]
    return float(torch.stack(errors).mean())


class Killed(Exception):
    """The process ends here."""


def test_all_phases_end_in_weights_that_can_be_read(footage: list[Footage], tmp_path: Path) -> None:
    told: list[TrainingProgress] = []
    settings = replace(QUICK, steps=(20, 1, 1, 1), sample_every=20)
    summary = Training(footage, settings, tmp_path).run(told.append)
    weights = load(summary.weights)
    assert sum(p.numel() for p in weights.net.parameters()) == summary.parameters
    assert not weights.net.timed
    assert not summary.diverged
    assert (told[0].phase, told[0].step, told[0].steps) == ("teacher", 20, 20)
    with Image.open(tmp_path / "samples" / "teacher-000020.png") as sample:
        assert sample.size == (3 * 32, 2 * 32)


@pytest.mark.parametrize("bf16", [False, True])
def test_reconstruction_learns_what_bicubic_lacks(footage: list[Footage], tmp_path: Path, bf16: bool) -> None:
    rates = (1e-3, 1e-3, 5e-3, 1e-4)
    settings = replace(QUICK, steps=(0, 0, 80, 0), frames=1, clips=8, learning_rates=rates, bf16_on_cpu=bf16)
    training = Training(footage, settings, tmp_path)
    training.chance.manual_seed(99)
    unseen = [training._batch() for _ in range(4)]
    before = error_on(training.net, unseen)
    training.run()
    # Eight channels learn little in 80 steps, but what they learn holds on clips that they have not seen.
    assert error_on(training.net, unseen) < 0.999 * before


@pytest.mark.parametrize(("at", "step"), [(0, 2), (1, 1), (2, 3), (3, 2)])
def test_a_killed_training_goes_on_to_the_same_weights(
    footage: list[Footage], tmp_path: Path, at: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Training(footage, QUICK, tmp_path / "whole").run()
    cut = Training(footage, QUICK, tmp_path / "cut")
    one_step = Training._one_step

    def until(training: Training) -> None:
        if (training.at, training.step) == (at, step):
            training._save()
            raise Killed
        one_step(training)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_one_step", until)
        with pytest.raises(Killed):
            cut.run()
    again = Training(footage, QUICK, tmp_path / "cut").run()
    expected, found = load(whole.weights).net.state_dict(), load(again.weights).net.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-3, rtol=2e-3)


def test_discriminators_begin_alike_however_the_training_came_there(
    footage: list[Footage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(QUICK, steps=(0, 0, 2, 1))
    made = Training._adversaries
    begun: list[list[dict[str, torch.Tensor]]] = []

    def kept(training: Training) -> Adversaries:
        adversaries = made(training)
        begun.append(copy.deepcopy(adversaries.state_dict()["rivals"]))
        return adversaries

    monkeypatch.setattr(Training, "_adversaries", kept)
    Training(footage, settings, tmp_path / "undisturbed").run()
    Training(footage, replace(settings, sample_every=1), tmp_path / "watched").run()
    cut = Training(footage, settings, tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_enter", lambda training: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            cut.run()
    cut.at, cut.step = cut.at - 1, 2
    cut._save()
    Training(footage, settings, tmp_path / "cut").run()
    first, *others = begun
    assert len(others) == 2
    for other in others:
        for one, tensors in zip(first, other, strict=True):
            for name, tensor in one.items():
                assert torch.equal(tensors[name], tensor), name


def test_a_game_that_diverges_ends_with_the_average(
    footage: list[Footage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(QUICK, steps=(0, 0, 2, 50))
    kept: dict[str, torch.Tensor] = {}
    watch = Adversaries.watch

    def watched(adversaries: Adversaries, loss: float) -> None:
        if training.step == 3:
            kept.update({name: value.clone() for name, value in training.average.items()})
            loss = float("nan")
        watch(adversaries, loss)

    training = Training(footage, settings, tmp_path)
    monkeypatch.setattr(Adversaries, "watch", watched)
    summary = training.run()
    assert summary.diverged
    assert kept
    for name, tensor in load(summary.weights).net.state_dict().items():
        torch.testing.assert_close(tensor, kept[name], atol=1e-3, rtol=1e-3)  # half precision


def test_a_loss_far_above_the_first_is_a_divergence() -> None:
    adversaries = Adversaries.__new__(Adversaries)
    adversaries.first = adversaries.recent = float("nan")
    for _ in range(100):
        adversaries.watch(0.02)
    for _ in range(10):
        adversaries.watch(0.2)
    with pytest.raises(Diverged):
        [adversaries.watch(0.2) for _ in range(100)]


def test_a_folder_of_another_training_is_refused(footage: list[Footage], tmp_path: Path) -> None:
    settings = replace(QUICK, steps=(0, 0, 1, 0))
    Training(footage, settings, tmp_path).run()
    with pytest.raises(UsageError, match="other settings"):
        Training(footage, replace(settings, side=48), tmp_path).run()


def test_training_may_begin_with_weights(footage: list[Footage], tmp_path: Path) -> None:
    first = Training(footage, replace(QUICK, steps=(0, 0, 2, 0)), tmp_path / "a").run()
    settings = replace(QUICK, steps=(0, 0, 1, 0))
    training = Training(footage, settings, tmp_path / "b", initial=first.weights)
    expected = load(first.weights).net.state_dict()
    for name, tensor in training.net.state_dict().items():
        assert torch.equal(tensor, expected[name])
    with pytest.raises(UsageError, match="cannot become a teacher"):
        Training(footage, QUICK, tmp_path / "c", initial=first.weights)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": (0, 0, 0, 0)},
        {"steps": (1, 1, -1, 1)},
        {"frames": 1},
        {"steps": (0, 0, 1, 0), "frames": 0},
        {"side": 30},
    ],
)
def test_settings_say_what_is_wrong(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        replace(QUICK, **wrong)  # type: ignore[arg-type]


def test_phases_are_in_the_order_of_their_steps() -> None:
    assert PHASES == ("teacher", "distil", "recon", "adversarial")
    assert len(TrainingSettings().steps) == len(PHASES)
