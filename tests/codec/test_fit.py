"""Fitting: it learns, stops, resumes exactly, and brings task terms in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nvpstore.codec.artifact import coded_frames
from nvpstore.codec.balance import LOSS_SCALE, Balance
from nvpstore.codec.build import PRESETS, build_architecture
from nvpstore.codec.checkpoint import write_state
from nvpstore.codec.fit import FitProgress, SegmentFit
from nvpstore.codec.hnerv import Decoder
from nvpstore.errors import CodecError

MICRO = PRESETS["micro"]


def moving_square(frames: int = 12) -> Tensor:
    """float16 [t, 3, 32, 48]: a bright square that moves over a gradient."""
    clip = torch.linspace(0.1, 0.6, 48).expand(frames, 3, 32, 48).clone()
    for t in range(frames):
        clip[t, :, 8:20, 2 * t : 2 * t + 12] = 0.9
    return clip.half()


class FeatureTerm:
    """Wants stage 1, averaged over positions, to tell the frame's number."""

    stages = ("1",)
    clips: Tensor | None = None

    def __init__(self, channels: int, choice: str) -> None:
        self.choice = choice
        self.net = nn.Linear(channels, 1)

    def parameters(self) -> Sequence[nn.Parameter]:
        return list(self.net.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.net.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> object:
        return self.net.load_state_dict(state)

    def sees(self, frames: Tensor) -> Tensor:
        return frames % 2 == 0

    def losses(self, taps: Mapping[str, Tensor], frames: Tensor) -> tuple[Tensor, Tensor]:
        assert (frames % 2 == 0).all()
        error = (self.net(taps["1"].mean((2, 3))).squeeze(1) - frames / 12).square().mean()
        return error, error * 1000

    def view_losses(self, taps: Mapping[str, Tensor], views: Tensor) -> tuple[Tensor, Tensor]:
        assert views.shape[1:] == (3, 32, 48)
        nothing = self.net(taps["1"].mean((2, 3))).sum() * 0
        return nothing, nothing


class MakeTerms:
    def __init__(self) -> None:
        self.asked: list[Sequence[str] | None] = []

    def __call__(
        self, decoder: Decoder, latents: Tensor, *, choices: Sequence[str] | None
    ) -> Sequence[FeatureTerm]:
        self.asked.append(choices)
        torch.manual_seed(1)
        return [FeatureTerm(decoder.taps(latents[:1], ("1",))["1"].shape[1], "stage 1")]


@pytest.mark.parametrize("preset", ["micro", "nerv-micro"])
def test_a_fit_learns_its_frames(preset: str) -> None:
    clip = moving_square()
    chosen = replace(PRESETS[preset], epochs=25, target_psnr=None)
    fitted = SegmentFit(clip, build_architecture(32, 48, 24, chosen), chosen).run()
    constant = -10 * torch.log10((clip.float() - clip.float().mean((0, 2, 3), keepdim=True)).square().mean())
    assert fitted.psnr > float(constant) + 3
    assert fitted.latents.shape[0] == 12


def test_a_dark_clip_with_something_bright_does_not_stay_black() -> None:
    frames = torch.zeros(8, 3, 32, 48)
    for t in range(8):
        frames[t, :, 12:16, 4 * t : 4 * t + 6] = 1.0
    preset = replace(MICRO, epochs=60, target_psnr=None)
    fitted = SegmentFit(frames.half(), build_architecture(32, 48, 8, preset), preset).run()
    black = -10 * torch.log10(frames.square().mean()).item()
    assert fitted.psnr > black + 3


def test_the_head_begins_with_the_mean_of_what_is_dark_or_full() -> None:
    preset = replace(MICRO, epochs=0)
    frames = torch.tensor([0.0, 0.3, 1.0])[None, :, None, None].expand(4, 3, 32, 48)
    fit = SegmentFit(frames, build_architecture(32, 48, 4, preset), preset)
    head = fit.decoder.stages[-1]
    shown = head(torch.zeros(1, head.conv.in_channels, 2, 2))[0, :, 0, 0]
    torch.testing.assert_close(shown[[0, 2]], torch.tensor([0.5 / 255, 1 - 0.5 / 255]))
    assert 0.4 < float(shown[1].detach()) < 0.6


def test_task_terms_have_their_share_although_the_target_is_met_before_they_join() -> None:
    make = MakeTerms()
    preset = replace(MICRO, epochs=20, target_psnr=5.0)
    epochs: list[int] = []
    SegmentFit(moving_square(), build_architecture(32, 48, 12, preset), preset, terms_factory=make).run(
        lambda progress: epochs.append(progress.epoch)
    )
    assert make.asked == [None]
    assert epochs[-1] >= (1 + preset.terms_from) / 2 * preset.epochs


def test_views_are_of_the_picture_and_not_of_its_padding() -> None:
    seen: list[tuple[int, ...]] = []

    class Term(FeatureTerm):
        def view_losses(self, taps: Mapping[str, Tensor], views: Tensor) -> tuple[Tensor, Tensor]:
            seen.append(tuple(views.shape[2:]))
            return super().losses(taps, torch.zeros(len(views), dtype=torch.long))

    class Make(MakeTerms):
        def __call__(self, *args: object, **named: object) -> Sequence[FeatureTerm]:
            return [Term(arch.widths[1], "stage 1")]

    preset = replace(MICRO, epochs=4)
    arch = build_architecture(30, 44, 12, preset)
    assert (arch.coded_height, arch.coded_width) != (30, 44)
    frames = coded_frames((moving_square()[:, :, :30, :44] * 255).byte(), arch)
    SegmentFit(frames, arch, preset, terms_factory=Make()).run()
    assert set(seen) == {(30, 44)}


def test_a_fit_stops_at_its_target() -> None:
    easy = replace(MICRO, epochs=50, target_psnr=10.0)
    fitted = SegmentFit(moving_square(), build_architecture(32, 48, 24, easy), easy).run()
    assert fitted.epochs < 50
    assert fitted.psnr >= 10.0


def test_an_interrupted_fit_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    preset = replace(MICRO, epochs=6, target_psnr=None)
    arch = build_architecture(32, 48, 24, preset)
    undisturbed = SegmentFit(moving_square(), arch, preset, terms_factory=MakeTerms()).run()

    def stop_after_four(progress: FitProgress) -> None:
        if progress.epoch == 4:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "fit.pt"
    with pytest.raises(KeyboardInterrupt):
        SegmentFit(
            moving_square(),
            arch,
            preset,
            terms_factory=MakeTerms(),
            checkpoint=checkpoint,
        ).run(stop_after_four)
    again = MakeTerms()
    seen: list[int] = []
    resumed = SegmentFit(moving_square(), arch, preset, terms_factory=again, checkpoint=checkpoint).run(
        lambda progress: seen.append(progress.epoch)
    )
    assert seen == [5, 6]
    assert again.asked == [["stage 1"]]
    for mine, theirs in zip(resumed.decoder.parameters(), undisturbed.decoder.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_task_terms_join_and_learn_only_from_the_frames_they_see() -> None:
    preset = replace(MICRO, epochs=60, target_psnr=None)
    make = MakeTerms()
    fit = SegmentFit(moving_square(), build_architecture(32, 48, 24, preset), preset, terms_factory=make)
    fitted = fit.run()
    assert make.asked == [None]
    taps = fitted.decoder.taps(fitted.latents, ("1",))
    frames = torch.arange(0, 12, 2)
    feature, _ = fitted.terms[0].losses({"1": taps["1"][frames]}, frames)
    assert float(feature.detach()) < 0.03  # a constant answer has 0.08
    assert fit.balance.scales.keys() == {"feature-0", "task-0"}


class StoppedWithin(SegmentFit):
    """Is killed before its n-th step."""

    stop_before = 8

    def _train_step(self, frames: Tensor) -> Tensor:
        if self.step == self.stop_before:
            raise KeyboardInterrupt
        return super()._train_step(frames)


def test_a_fit_that_stops_within_an_epoch_goes_on_there(tmp_path: Path) -> None:
    preset = replace(MICRO, epochs=4, target_psnr=None)  # of three steps each
    arch = build_architecture(32, 48, 24, preset)
    undisturbed = SegmentFit(moving_square(), arch, preset, terms_factory=MakeTerms()).run()
    kept = {"terms_factory": MakeTerms(), "checkpoint": tmp_path / "fit.pt", "checkpoint_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        StoppedWithin(moving_square(), arch, preset, **kept).run()
    again = StoppedWithin(moving_square(), arch, preset, **kept)
    again.stop_before = 100
    resumed = again.run()
    assert again.step == 12
    assert resumed.psnr == pytest.approx(undisturbed.psnr)
    for mine, theirs in zip(resumed.decoder.parameters(), undisturbed.decoder.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_of_frames_that_are_alike_one_is_learned_at_a_time(tmp_path: Path) -> None:
    seen: list[list[int]] = []

    class Watched(SegmentFit):
        def _train_step(self, frames: Tensor) -> Tensor:
            seen.append(frames.tolist())
            return super()._train_step(frames)

    preset = replace(MICRO, epochs=40, batch_frames=2, target_psnr=None)
    arch, alike = build_architecture(32, 48, 24, preset), torch.tensor([3, 1, 8])
    undisturbed = Watched(moving_square(), arch, preset, alike=alike).run()
    assert [int((undisturbed.latents == latent).all((1, 2, 3)).sum()) for latent in undisturbed.latents] == (
        [3] * 3 + [1] + [8] * 8
    )
    epochs = [sorted(a + b) for a, b in zip(seen[::2], seen[1::2], strict=True)]
    assert len(epochs) == 40  # of six steps each, were all frames different
    assert all(a < 3 and b == 3 and c > 3 for a, b, c in epochs)
    assert {c for *_, c in epochs} == set(range(4, 12))
    kept = {"alike": alike, "checkpoint": tmp_path / "fit.pt", "checkpoint_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        StoppedWithin(moving_square(), arch, preset, **kept).run()
    assert Watched(moving_square(), arch, preset, **kept).run().psnr == pytest.approx(undisturbed.psnr)


def test_another_releases_checkpoint_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "segment.pt"
    write_state(path, {"layout": -1, "position": "elsewhere"})
    preset = replace(MICRO, epochs=1, target_psnr=None)
    arch = build_architecture(32, 48, 24, preset)
    found = SegmentFit(moving_square(), arch, preset, checkpoint=path).run()
    assert found.psnr == SegmentFit(moving_square(), arch, preset).run().psnr


def test_divergence_at_every_learning_rate_is_an_error_that_says_so() -> None:
    frames = moving_square().clone()
    frames[3] = float("nan")
    with pytest.raises(CodecError, match=r"diverged in epoch 1 .* rates 0\.005, 0\.0015, 0\.0005"):
        SegmentFit(frames, build_architecture(32, 48, 24, MICRO), MICRO).run()


class Unstable(SegmentFit):
    """Diverges in its third epoch at the first learning rate."""

    def _train_step(self, frames: Tensor) -> Tensor:
        error = super()._train_step(frames)
        return error * float("nan") if self.attempt == 0 and self.epoch == 2 else error


def test_a_fit_that_diverges_begins_anew_with_a_lower_learning_rate(tmp_path: Path) -> None:
    preset = replace(MICRO, epochs=4, target_psnr=None)
    arch = build_architecture(32, 48, 24, preset)
    seen: list[int] = []
    make = MakeTerms()
    fit = Unstable(moving_square(), arch, preset, terms_factory=make, checkpoint=tmp_path / "fit.pt")
    fitted = fit.run(lambda progress: seen.append(progress.epoch))
    assert seen == [1, 2, 1, 2, 3, 4]
    assert make.asked == [None, None]  # the terms of the first attempt went with its networks
    lower = replace(preset, learning_rate=0.3 * preset.learning_rate)
    calm = SegmentFit(moving_square(), arch, lower, terms_factory=MakeTerms()).run()
    for mine, theirs in zip(fitted.decoder.parameters(), calm.decoder.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_fit_that_is_killed_after_it_diverged_goes_on_with_the_lower_rate(tmp_path: Path) -> None:
    preset = replace(MICRO, epochs=4, target_psnr=None)
    arch = build_architecture(32, 48, 24, preset)

    def stop(progress: FitProgress) -> None:
        if fit.attempt == 1 and progress.epoch == 2:
            raise KeyboardInterrupt

    fit = Unstable(moving_square(), arch, preset, checkpoint=tmp_path / "fit.pt", checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        fit.run(stop)
    again = Unstable(moving_square(), arch, preset, checkpoint=tmp_path / "fit.pt")
    seen: list[int] = []
    again.run(lambda progress: seen.append(progress.epoch))
    assert (again.attempt, seen) == (1, [3, 4])


class ClipTerm(FeatureTerm):
    """Wants stage 1 of a clip's frames, averaged, to tell the clip's number."""

    clips = torch.tensor([[0, 2, 4], [5, 6, 7], [11, 9, 8]])

    def __init__(self, channels: int) -> None:
        super().__init__(channels, "clips of stage 1")
        self.asked: list[int] = []

    def sees(self, frames: Tensor) -> Tensor:
        raise AssertionError("a term of clips sees no single frames")

    def losses(self, taps: Mapping[str, Tensor], units: Tensor) -> tuple[Tensor, Tensor]:
        assert taps["1"].shape[0] == 3
        self.asked.append(int(units))
        error = (self.net(taps["1"].mean((0, 2, 3))) - units / 3).square().mean()
        return error, error * 1000


def test_clips_join_a_fit_beside_frames() -> None:
    made: list[FeatureTerm] = []

    def terms(decoder: Decoder, latents: Tensor, *, choices: Sequence[str] | None) -> Sequence[FeatureTerm]:
        torch.manual_seed(1)
        channels = decoder.taps(latents[:1], ("1",))["1"].shape[1]
        made.extend([FeatureTerm(channels, "stage 1"), ClipTerm(channels)])
        return made

    settings = replace(MICRO, epochs=24, target_psnr=None)
    arch = build_architecture(32, 48, 24, settings)
    fit = SegmentFit(moving_square(), arch, settings, terms_factory=terms)
    fit.run()
    clips = made[1]
    assert isinstance(clips, ClipTerm)
    assert set(clips.asked) == {0, 1, 2}
    assert set(fit.balance.scales) == {"feature-0", "task-0", "feature-1", "task-1"}
    plain = SegmentFit(moving_square(), arch, settings).run()
    assert fit.psnr > plain.psnr - 3


def test_a_resumed_fit_with_clips_repeats_an_undisturbed_one(tmp_path: Path) -> None:
    def terms(decoder: Decoder, latents: Tensor, *, choices: Sequence[str] | None) -> Sequence[FeatureTerm]:
        torch.manual_seed(1)
        return [ClipTerm(decoder.taps(latents[:1], ("1",))["1"].shape[1])]

    settings = replace(MICRO, epochs=8, target_psnr=None)
    arch = build_architecture(32, 48, 24, settings)
    whole = SegmentFit(moving_square(), arch, settings, terms_factory=terms).run()
    half = SegmentFit(moving_square(), arch, settings, terms_factory=terms, checkpoint=tmp_path / "fit.pt")
    while half.epoch < 5:
        half._join_terms()
        half.run_epoch()
        half.epoch += 1
    half._save()
    rest = SegmentFit(
        moving_square(), arch, settings, terms_factory=terms, checkpoint=tmp_path / "fit.pt"
    ).run()
    for own, resumed in zip(
        whole.decoder.state_dict().values(), rest.decoder.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(own, resumed)


@pytest.mark.parametrize("tasks", [1, 4])
def test_many_tasks_weigh_as_much_as_one_that_points_elsewhere(tasks: int) -> None:
    shared = torch.eye(5)[0].requires_grad_()  # reconstruction and each task pull along an axis of their own
    terms = {f"task-{i}": (1e-3 * (i + 1) * shared[i + 1], shared) for i in range(tasks)}
    balance = Balance((1.0, 0.5, 0.2))
    loss = balance.weigh(shared[0], shared, terms, tasks=tasks, step=0)
    (gradient,) = torch.autograd.grad(loss, shared)
    assert gradient[0] == pytest.approx(LOSS_SCALE)
    assert gradient[1:].norm() == pytest.approx(0.5 * LOSS_SCALE, rel=1e-5)
