"""Degradations and footage: sizes, determinism, and that each does what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nvpstore.errors import SourceError, UsageError
from nvpstore.upscaling.batches import draw_batch
from nvpstore.upscaling.degrade import CLEAN, Recipe, as_h264, as_jpeg, blurred, degrade, smaller
from nvpstore.upscaling.footage import Photographs, Video, load_footage
from tests.upscaling.clips import moving_clip


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_clean_clip_is_antialiased_bicubic_in_bytes() -> None:
    clip = moving_clip(frames=2, height=32, width=48)
    found = degrade(clip, 4, CLEAN, chance())
    assert found.shape == (2, 3, 8, 12)
    assert (found - smaller(clip, 4).clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(found * 255, (found * 255).round())


def test_blur_takes_contrast_and_keeps_brightness() -> None:
    picture = torch.rand(1, 3, 32, 32)
    soft = blurred(picture, 1.0, 0.5)
    assert soft.std() < 0.6 * picture.std()
    assert abs(float(soft.mean() - picture.mean())) < 0.01


@pytest.mark.parametrize("coded", [lambda x: as_jpeg(x, 60), lambda x: as_h264(x, 26)])
def test_codecs_lose_a_little(coded: object) -> None:
    clip = moving_clip(frames=4, height=33, width=47)
    found = coded(clip)  # type: ignore[operator]
    assert found.shape == clip.shape
    assert 0 < (found - clip).abs().mean() < 0.08


def test_what_a_fitted_network_shows_is_degradation_enough() -> None:
    clip = moving_clip(frames=2, height=32, width=32)
    decoded = clip * 0.5
    recipe = Recipe(decoded=1, blur=1, noise=1, jpeg=1, h264=1)
    found = degrade(clip, 2, recipe, chance(), decoded=decoded)
    assert (found - smaller(decoded, 2).clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(UsageError, match="a share from 0 to 1"):
        Recipe(noise=1.5)


def test_the_same_chance_draws_the_same_batch() -> None:
    footage = [Photographs(pictures=(torch.rand(3, 64, 64),))]
    draws = [
        draw_batch(
            footage,
            [1.0],
            recipe=Recipe(),
            factor=2,
            clips=2,
            frames=3,
            side=32,
            chance=chance(5),
            device="cpu",
        )
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(draws[0].lows, draws[1].lows, strict=True))
    assert draws[0].sharp[0].shape == (2, 3, 32, 32)
    assert draws[0].lows[0].shape == (2, 3, 16, 16)
    assert len(draws[0].steps) == 2
    assert draws[0].steps[0].forward.flow.shape == (2, 2, 16, 16)


def test_a_video_gives_frames_that_follow_one_another() -> None:
    rgb = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 40, 40, 3), np.uint8)
    clip = Video(rgb_thwc=rgb, decoded_thwc=rgb + 10).clip(3, 32, chance())
    values, shown = (
        (x.mean((1, 2, 3)) * 255).round().int().tolist() for x in (clip.sharp, clip.decoded) if x is not None
    )
    assert values == list(range(values[0], values[0] + 3))
    assert shown == [value + 10 for value in values]
    assert Video(rgb_thwc=rgb).clip(3, 32, chance()).decoded is None


def test_decodes_come_beside_the_video_that_they_are_of(tmp_path: Path) -> None:
    path = tmp_path / "clip.gif"
    rng = np.random.default_rng(0)
    first, *others = [Image.fromarray(rng.integers(0, 255, (40, 48, 3), np.uint8)) for _ in range(6)]
    first.save(path, save_all=True, append_images=others)
    decoded = np.full((4, 40, 48, 3), 7, np.uint8)
    batches = iter([decoded, decoded, decoded])
    (found,) = load_footage([path], frames=3, side=32, decodings={path: lambda: batches})
    assert isinstance(found, Video)
    assert found.decoded_thwc is not None
    assert found.decoded_thwc.shape == found.rgb_thwc.shape == (6, 40, 48, 3)
    assert found.decoded_thwc.max() == 7
    (alone,) = load_footage([path], frames=3, side=32)
    assert isinstance(alone, Video)
    assert alone.decoded_thwc is None


def test_folders_hold_photographs_and_other_things(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (80, 90, 3), np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    Image.fromarray(rgb[:20, :20]).save(tmp_path / "small.png")
    (tmp_path / "notes.txt").write_text("no footage")
    (found,) = load_footage([tmp_path], frames=3, side=32)
    assert isinstance(found, Photographs)
    assert len(found.pictures) == 1
    with pytest.raises(UsageError, match="no footage"):
        load_footage([tmp_path / "small.png"], frames=3, side=32)
    with pytest.raises(SourceError):
        load_footage([tmp_path / "notes.txt"], frames=3, side=32)
