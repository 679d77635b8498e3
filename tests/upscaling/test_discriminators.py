"""Discriminators: what passes gradient, what stays frozen, and what each head may see."""

from __future__ import annotations

import torch

from nvpstore.upscaling.adversarial import FEATURES
from nvpstore.upscaling.build import preset
from nvpstore.upscaling.discriminators import (
    Discriminator,
    FeatureSpace,
    Pairs,
    PixelSpace,
    augmented,
    mismatched,
)
from nvpstore.upscaling.features import distance, frozen
from nvpstore.upscaling.net import Upscaler
from tests.upscaling.clips import moving_clip


def rivals() -> list[Discriminator]:
    torch.manual_seed(0)
    spaces = (FeatureSpace(Upscaler(preset("micro").geometry)), PixelSpace(frozen(FEATURES, "cpu")))
    return [Discriminator(space) for space in spaces]


def test_gradient_reaches_pictures_and_heads_and_nothing_frozen() -> None:
    for rival in rivals():
        pictures = torch.rand(2, 3, 32, 32, requires_grad=True)
        scores = rival(pictures, torch.rand(2, 3, 32, 32))
        torch.stack([s.mean() for s in (*scores.detail, *scores.consistency)]).sum().backward()
        assert pictures.grad is not None
        assert pictures.grad.abs().sum() > 0
        trained = {id(p) for p in rival.trained()}
        for parameter in rival.parameters():
            assert (parameter.grad is not None) == (id(parameter) in trained)


def test_detail_heads_see_no_past() -> None:
    for rival in rivals():
        rival.eval()
        frames = torch.rand(1, 3, 32, 32)
        one, other = rival(frames, torch.rand(1, 3, 32, 32)), rival(frames, frames)
        assert all(torch.equal(a, b) for a, b in zip(one.detail, other.detail, strict=True))
        assert any((a - b).abs().max() > 0 for a, b in zip(one.consistency, other.consistency, strict=True))


def test_a_frame_and_its_past_are_augmented_alike() -> None:
    frames = torch.rand(3, 3, 32, 32, requires_grad=True)
    shown = augmented(Pairs(frames=frames, before=frames), torch.Generator().manual_seed(1))
    assert torch.equal(shown.frames, shown.before)
    assert (shown.frames - frames).abs().max() > 0
    shown.frames.sum().backward()
    assert frames.grad is not None


def test_a_mismatched_past_is_not_the_past() -> None:
    frames, before = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    for seed in range(6):
        odd = mismatched(Pairs(frames=frames, before=before), torch.Generator().manual_seed(seed))
        assert torch.equal(odd.frames, frames)
        assert not torch.equal(odd.before, before)


def test_the_distance_grows_with_damage() -> None:
    clip = moving_clip(frames=1, height=64, width=64)
    features = frozen(FEATURES, "cpu")
    chance = torch.Generator().manual_seed(0)
    noise = torch.randn(clip.shape, generator=chance)
    ladder = [distance(features(clip), features(clip + s * noise)).item() for s in (0, 0.02, 0.05, 0.1)]
    assert ladder[0] < 1e-6
    assert ladder == sorted(ladder)
