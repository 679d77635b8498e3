"""`nvpstore.upscale`: any size, tiles without seams, cuts, and what it refuses."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import settings
from torch import Tensor

import nvpstore
from nvpstore.errors import UsageError
from nvpstore.upscaling.build import WINDOW
from nvpstore.upscaling.tiles import HALO_CELLS, cell_bytes, in_tiles, tile_side
from nvpstore.upscaling.upscaler import frame_upscaler, upscale
from nvpstore.upscaling.weights import shipped
from tests.upscaling.clips import moving_clip

CASES = 200 if settings.get_current_profile_name() == "soak" else 20


def random_cases(count: int) -> list[tuple[int, int, int, int, int]]:
    """(frames, height, width, factor, memory)."""
    chance = random.Random(9)
    return [
        (
            chance.randint(1, 6),
            chance.randint(1, 40),
            chance.randint(1, 40),
            chance.choice([2, 4]),
            chance.choice([1, 1 << 30]),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(("frames", "height", "width", "factor", "memory"), random_cases(CASES))
def test_any_size_comes_out_that_many_times_larger(
    frames: int, height: int, width: int, factor: int, memory: int
) -> None:
    clip = torch.rand(frames, 3, height, width)
    found = nvpstore.upscale(clip, factor=factor, memory_bytes=memory)
    assert found.shape == (frames, 3, factor * height, factor * width)
    assert found.dtype == torch.float32
    assert 0 <= found.min() <= found.max() <= 1


def test_no_frames_give_none() -> None:
    assert nvpstore.upscale(torch.zeros(0, 3, 8, 8)).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("frames", "factor", "why"),
    [
        (torch.zeros(2, 3, 8, 8), 3, "2 or 4"),
        (torch.zeros(3, 8, 8), 2, r"\[t, 3, h, w\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 2, "0 … 1"),
    ],
)
def test_what_it_cannot_do_is_said(frames: Tensor, factor: int, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        nvpstore.upscale(frames, factor)


def test_tiles_have_no_seams() -> None:
    net = shipped().net
    chance = torch.Generator().manual_seed(0)
    shape = (1, WINDOW * net.geometry.picture_channels, 96, 160)
    cells = 0.2 * torch.randn(shape, generator=chance)
    cells[:, : net.geometry.picture_channels] += 0.2
    with torch.inference_mode():
        whole = net(cells)
        tiled = in_tiles(net, cells, side=40)
    assert whole.abs().max() > 0.02
    assert (whole - tiled).abs().max() < 1e-3


def test_a_tile_fits_its_memory() -> None:
    geometry = shipped().net.geometry
    for memory in (64 << 20, 256 << 20, 1 << 30):
        side = tile_side(geometry, memory)
        assert side % geometry.alignment == 0
        assert (side + 2 * HALO_CELLS) ** 2 * cell_bytes(geometry) <= memory
    assert tile_side(geometry, 1) == HALO_CELLS


def test_a_cut_is_where_a_scene_ends() -> None:
    first = moving_clip(frames=10, height=24, width=32, seed=1)
    second = 1 - moving_clip(frames=10, height=24, width=32, seed=7)
    joined = upscale(torch.cat([first * 0.3, 0.6 + 0.4 * second]))
    apart = torch.cat([upscale(first * 0.3), upscale(0.6 + 0.4 * second)])
    assert torch.equal(joined, apart)


def test_frames_stay_on_their_device_and_the_given_ones_unchanged() -> None:
    clip = moving_clip(frames=3, height=16, width=16)
    before = clip.clone()
    assert frame_upscaler(2).device in ("cpu", "cuda")
    assert upscale(clip).device == clip.device
    assert torch.equal(clip, before)


@pytest.mark.gpu
def test_a_gpu_gives_nearly_the_same_pictures() -> None:
    clip = moving_clip(frames=6, height=48, width=64)
    assert (upscale(clip.cuda()).cpu() - upscale(clip)).abs().mean() < 0.01
