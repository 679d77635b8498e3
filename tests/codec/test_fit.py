"""Fitting: it learns, stops, resumes exactly, and brings task terms in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nvpstore.codec.build import PRESETS, build_architecture
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

    def losses(
        self, taps: Mapping[str, Tensor], frames: Tensor, *, with_task: bool
    ) -> tuple[Tensor, Tensor | None]:
        assert (frames % 2 == 0).all()
        error = (self.net(taps["1"].mean((2, 3))).squeeze(1) - frames / 12).square().mean()
        return error, error * 1000 if with_task else None

    def view_losses(
        self, taps: Mapping[str, Tensor], views: Tensor, *, with_task: bool
    ) -> tuple[Tensor, Tensor | None]:
        assert views.shape[1:] == (3, 32, 48)
        nothing = self.net(taps["1"].mean((2, 3))).sum() * 0
        return nothing, nothing if with_task else None


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


def test_a_fit_stops_at_its_target() -> None:
    easy = replace(MICRO, epochs=50, target_psnr=10.0)
    fitted = SegmentFit(moving_square(), build_architecture(32, 48, 24, easy), easy).run()
    assert fitted.epochs < 50
    assert fitted.psnr >= 10.0


def test_an_interrupted_fit_ends_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvpstore.codec.fit.CHECKPOINT_SECONDS", 0.0)
    preset = replace(MICRO, epochs=6, target_psnr=None)
    arch = build_architecture(32, 48, 24, preset)
    undisturbed = SegmentFit(moving_square(), arch, preset, terms_factory=MakeTerms()).run()

    def stop_after_three(progress: FitProgress) -> None:
        if progress.epoch == 4:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "fit.pt"
    with pytest.raises(KeyboardInterrupt):
        SegmentFit(moving_square(), arch, preset, terms_factory=MakeTerms(), checkpoint=checkpoint).run(
            stop_after_three
        )
    again = MakeTerms()
    seen: list[int] = []
    resumed = SegmentFit(moving_square(), arch, preset, terms_factory=again, checkpoint=checkpoint).run(
        lambda progress: seen.append(progress.epoch)
    )
    assert seen == [4, 5, 6]  # epoch 4 was run, but the kill came before its checkpoint
    assert again.asked == [["stage 1"]]
    for mine, theirs in zip(resumed.decoder.parameters(), undisturbed.decoder.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_task_terms_join_and_learn_only_from_the_frames_they_see() -> None:
    preset = replace(MICRO, epochs=30, target_psnr=None)
    make = MakeTerms()
    fit = SegmentFit(moving_square(), build_architecture(32, 48, 24, preset), preset, terms_factory=make)
    fitted = fit.run()
    assert make.asked == [None]
    taps = fitted.decoder.taps(fitted.latents, ("1",))
    frames = torch.arange(0, 12, 2)
    feature, task = fitted.terms[0].losses({"1": taps["1"][frames]}, frames, with_task=True)
    assert float(feature.detach()) < 0.03  # a constant answer has 0.08
    assert task is not None
    assert fit.scales.keys() == {"feature-0", "task-0"}


def test_divergence_is_an_error_that_says_so() -> None:
    frames = moving_square().clone()
    frames[3] = float("nan")
    with pytest.raises(CodecError, match="diverged in epoch 1"):
        SegmentFit(frames, build_architecture(32, 48, 24, MICRO), MICRO).run()


class ClipTerm(FeatureTerm):
    """Wants stage 1 of a clip's frames, averaged, to tell the clip's number."""

    clips = torch.tensor([[0, 2, 4], [5, 6, 7], [11, 9, 8]])

    def __init__(self, channels: int) -> None:
        super().__init__(channels, "clips of stage 1")
        self.asked: list[int] = []

    def sees(self, frames: Tensor) -> Tensor:
        raise AssertionError("a term of clips sees no single frames")

    def losses(
        self, taps: Mapping[str, Tensor], units: Tensor, *, with_task: bool
    ) -> tuple[Tensor, Tensor | None]:
        assert taps["1"].shape[0] == 3
        self.asked.append(int(units))
        error = (self.net(taps["1"].mean((0, 2, 3))) - units / 3).square().mean()
        return error, error * 1000 if with_task else None


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
    assert set(fit.scales) == {"feature-0", "task-0", "feature-1", "task-1"}
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
