"""The recurrence: what the window sees, state as a value, and pictures that do not depend on who asks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from nvpstore.upscaling import recurrence
from nvpstore.upscaling.build import REACH, STRETCH, WARM_UP, preset
from nvpstore.upscaling.flow import Step, step_between
from nvpstore.upscaling.net import Upscaler, to_cells
from nvpstore.upscaling.playback import Playback, Scene, play
from nvpstore.upscaling.recurrence import (
    Held,
    State,
    coloured_like,
    fed,
    finished,
    softened,
    stretches,
    upscale_again,
    upscale_clip,
    window,
)
from nvpstore.upscaling.upscaler import FrameUpscaler, frame_upscaler
from tests.upscaling.clips import moving_clip
from tests.upscaling.test_net import trained_like

GEOMETRY = preset("micro").geometry


@pytest.fixture(scope="module")
def net() -> Upscaler:
    torch.manual_seed(0)
    return trained_like(Upscaler(GEOMETRY)).requires_grad_(False)


@pytest.fixture(scope="module")
def upscaler(net: Upscaler) -> FrameUpscaler:
    return FrameUpscaler(net=net, factor=2, device="cpu", tile=1 << 20)


@pytest.fixture(scope="module")
def clip() -> Tensor:
    return moving_clip(frames=7, height=24, width=32)


def steps_of(clip: Tensor) -> list[Step]:
    return [step_between(a, b) for a, b in pairwise(clip)]


def one_by_one(net: Upscaler, clip: Tensor) -> list[Tensor]:
    state, pictures = State(), list[Tensor]()
    for low in clip:
        state, done = fed(net, net, state, low[None], 2)
        pictures += done
    return pictures + finished(net, net, state)


def test_one_frame_at_a_time_is_the_whole_clip(net: Upscaler, clip: Tensor) -> None:
    found = one_by_one(net, clip)
    expected = upscale_clip(net, [low[None] for low in clip], steps_of(clip), 2)
    assert len(found) == len(clip)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_a_kept_state_goes_on_as_if_never_left(net: Upscaler, clip: Tensor) -> None:
    whole = one_by_one(net, clip)
    state, pictures = State(), list[Tensor]()
    for low in clip[:4]:
        state, done = fed(net, net, state, low[None], 2)
        pictures += done
    kept = replace(state)
    for low in clip[4:]:
        kept, done = fed(net, net, kept, low[None], 2)
        pictures += done
    pictures += finished(net, net, kept)
    for a, b in zip(pictures, whole, strict=True):
        assert torch.equal(a, b)


def test_a_state_holds_no_more_than_its_window(net: Upscaler) -> None:
    state = State()
    for low in moving_clip(frames=12, height=16, width=16):
        state, _ = fed(net, net, state, low[None], 2)
        assert len(state.frames) <= 2 * REACH + 1
        assert len(state.steps) == max(0, len(state.frames) - 1)


def test_upscaled_frames_take_the_place_of_soft_ones(clip: Tensor) -> None:
    seen: list[Tensor] = []

    def residual(cells: Tensor) -> Tensor:
        seen.append(cells)
        return torch.full((1, 3, 48, 64), 0.25)

    marked = Upscaler(GEOMETRY)
    marked.forward = residual  # type: ignore[method-assign, assignment]
    still = clip[:1].expand(3, -1, -1, -1)
    lows = [low[None] for low in still]
    pictures = upscale_clip(marked, lows, steps_of(still), 2)
    soft = softened(lows[0], 2)
    before = to_cells((pictures[1] - soft).clone(), GEOMETRY)
    picture = GEOMETRY.picture_channels
    # The third frame's window: two before, the centre first. What was upscaled is seen as such.
    assert torch.allclose(seen[2][:, 2 * picture : 3 * picture], before, atol=1e-4)
    # The first frame's: nothing has been upscaled yet, and all frames are alike.
    assert seen[0][:, picture:].abs().max() < 1e-4


def test_a_second_pass_sees_upscaled_frames_ahead(net: Upscaler, clip: Tensor) -> None:
    lows, steps = [low[None] for low in clip], steps_of(clip)
    first = upscale_clip(net, lows, steps, 2)
    again = upscale_again(net, lows, first, steps)
    held = [Held(low=low, picture=picture) for low, picture in zip(lows, first, strict=True)]
    expected = net(to_cells(window(softened(lows[0], 2), held, steps, 0), GEOMETRY))[..., :48, :64]
    torch.testing.assert_close(again[0], coloured_like(softened(lows[0], 2) + expected, lows[0]))
    assert (again[0] - first[0]).abs().max() > 1e-4


def test_the_gradient_passes_through_the_recurrence(clip: Tensor) -> None:
    lows = [low[None].clone().requires_grad_(True) for low in clip[:3]]
    torch.manual_seed(0)
    net = trained_like(Upscaler(GEOMETRY))
    upscale_clip(net, lows, steps_of(clip[:3]), 2)[2].sum().backward()
    assert lows[0].grad is not None
    assert lows[0].grad.abs().sum() > 0


def test_colours_are_those_of_the_frame_that_came() -> None:
    low = moving_clip(frames=1, height=32, width=32)
    tinted = softened(low, 2) * 1.05 + torch.tensor([0.1, -0.05, 0.0])[None, :, None, None]
    found = coloured_like(tinted, low)
    assert (found - softened(low, 2)).abs().mean() < 0.01


@pytest.mark.parametrize(("first", "end"), [(0, 100), (17, 18), (31, 33), (64, 65), (99, 100), (5, 97)])
def test_stretches_keep_each_frame_once(first: int, end: int) -> None:
    kept: list[int] = []
    for part in stretches(first, end, scene_start=3, scene_end=100) if first >= 3 else ():
        kept += range(part.keep_from, part.keep_to)
        assert 3 <= part.read_from <= part.keep_from < part.keep_to <= part.read_to <= 100
        assert part.read_to - part.read_from <= WARM_UP + STRETCH + REACH
        # They begin at the same places whatever was asked for.
        assert (part.read_from - 3) % STRETCH in (0, STRETCH - WARM_UP)
    assert kept == (list(range(first, end)) if first >= 3 else [])


class _Clip:
    """A scene that counts what is read of it."""

    def __init__(self, clip: Tensor) -> None:
        self.frames = (clip * 255).round().byte().permute(0, 2, 3, 1).numpy()
        self.read = 0

    def __call__(self, first: int, end: int) -> Iterator[NDArray[np.uint8]]:
        for frame in self.frames[first:end]:
            self.read += 1
            yield frame


def test_any_order_of_asking_gives_the_sequential_pictures(
    upscaler: FrameUpscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrence, "STRETCH", 10)
    clip = _Clip(moving_clip(frames=24, height=16, width=24))
    scene = Scene(key="clip", start=0, end=len(clip.frames), read=clip)
    whole = np.stack(list(play(upscaler, scene, 0, scene.end)))
    assert whole.shape == (24, 32, 48, 3)
    for asked in ([0, 1, 2], [8, 9, 10, 11], [17], [3, 12, 23]):
        found = np.stack(list(Playback().pictures(upscaler, scene, np.array(asked))))
        assert np.array_equal(found, whole[asked])


def test_the_next_batch_goes_on_where_the_last_one_ended(upscaler: FrameUpscaler) -> None:
    clip = _Clip(moving_clip(frames=12, height=16, width=24))
    scene, playback = Scene(key="clip", start=0, end=12, read=clip), Playback()
    for at in range(0, 12, 4):
        assert len(list(playback.pictures(upscaler, scene, np.arange(at, at + 4)))) == 4
    assert clip.read == 12


def test_a_stretch_begins_as_if_playback_had_never_stopped() -> None:
    upscaler = frame_upscaler(2)
    clip = moving_clip(frames=STRETCH + 6, height=24, width=32)
    frames = (clip * 255).round().byte().permute(0, 2, 3, 1).numpy()
    onward = np.stack(list(upscaler.bytes_of(frames))).astype(int)
    scene = Scene(key=None, start=0, end=len(frames), read=lambda a, b: iter(frames[a:b]))
    played = np.stack(list(play(upscaler, scene, 0, len(frames)))).astype(int)
    assert np.array_equal(onward[: STRETCH - REACH], played[: STRETCH - REACH])
    apart = np.abs(onward[STRETCH:] - played[STRETCH:])
    # On footage it is a ten-thousandth of this moving noise's.
    assert apart.mean() < 0.25, "of 255 levels: nobody sees where a stretch begins"
    assert np.quantile(apart, 0.999) <= 3


def test_frames_may_come_in_any_batches(upscaler: FrameUpscaler) -> None:
    clip = moving_clip(frames=9, height=16, width=16)
    lazily = partial(iter, list(clip))
    one, other = list(upscaler.scene(lazily())), list(upscaler.scene(clip))
    assert len(one) == 9
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
