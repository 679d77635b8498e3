"""Corruptions: as strong as they say, the same for the same seed, weather that moves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nvpstore.adapters.corruptions import CORRUPTIONS, NOISE_STD, corrupted


def clip(frames: int = 8) -> Tensor:
    """A smooth picture that stands still."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 96), indexing="ij")
    picture = torch.stack([0.2 + 0.6 * x, 0.2 + 0.6 * y, 0.5 + 0 * x])
    return picture.expand(frames, 3, 64, 96).clone()


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_every_corruption_corrupts_within_range_and_repeats_itself(name: str) -> None:
    x = clip()
    once, again, other = (corrupted(x, name, seed=seed) for seed in (3, 3, 4))
    assert once.shape == x.shape
    assert float(once.min()) >= 0
    assert float(once.max()) <= 1
    assert torch.equal(once, again)
    assert float((once - x).abs().mean()) > 0.003
    assert torch.equal(x, clip()), "the source stays"
    if name != "jpeg":
        assert not torch.equal(once, other)


def test_noise_has_its_strength() -> None:
    away = corrupted(clip(), "noise", seed=0) - clip()
    assert float(away.std()) == pytest.approx(NOISE_STD, rel=0.02)


@pytest.mark.parametrize(("name", "share"), [("patch_drop", 0.1), ("salt_and_pepper", 0.1)])
def test_as_much_is_lost_as_is_said(name: str, share: float) -> None:
    lost = (corrupted(clip(32), name, seed=0) != clip(32)).any(1).float().mean()
    assert float(lost) == pytest.approx(share, rel=0.1)


def test_dropped_frames_are_black_as_a_whole() -> None:
    found = corrupted(clip(60), "frame_drop", seed=0)
    black = found.flatten(1).amax(1) == 0
    assert 0 < int(black.sum()) < 20
    assert torch.equal(found[~black], clip(60)[~black])


@pytest.mark.parametrize("name", ["rain", "snow", "fog"])
def test_weather_goes_on_from_frame_to_frame(name: str) -> None:
    """The same drops, moved: how much light there is changes little, where it is changes."""
    added = corrupted(clip(), name, seed=0) - clip()
    light = added.clamp_min(0).flatten(1).sum(1)
    assert float(light.std() / light.mean()) < 0.2
    assert not torch.equal(added[0], added[1])


@pytest.mark.parametrize("size", [(8, 8), (17, 31), (1, 5)])
@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_any_size_is_taken(name: str, size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size)
    assert corrupted(x, name, seed=0).shape == x.shape
