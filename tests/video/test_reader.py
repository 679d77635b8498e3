"""Chosen frames of a file, however they are asked for, against all of them in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nvpstore.errors import SourceError
from nvpstore.types import SourceScan
from nvpstore.video import reader
from nvpstore.video.reader import FrameReader, IdleReaders
from nvpstore.video.source import read_frames, scan
from tests.video.conftest import Clip, write_clip

FRAMES = 60
KINDS = {
    "indexed": Clip(options={"bf": "3", "g": "12", "preset": "veryfast"}),
    "no-index": Clip(name="clip.ts", options={"bf": "3", "g": "12", "preset": "veryfast"}),
    "one-keyframe": Clip(),
}


@pytest.fixture(params=KINDS)
def found(request: pytest.FixtureRequest, tmp_path: Path) -> SourceScan:
    return scan(str(write_clip(tmp_path, KINDS[request.param])), max_segment_frames=FRAMES)


@pytest.fixture
def pictures(found: SourceScan) -> NDArray[np.uint8]:
    return np.concatenate([batch.rgb_thwc for batch in read_frames(found.info.path)])


def frames(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, dtype=np.int64)


@pytest.mark.parametrize(
    "asked",
    [
        [frames(*range(FRAMES))],
        [frames(0, 1, 2), frames(3, 4), frames(5)],
        [frames(0, 25, 50), frames(59)],
        [frames(30), frames(10, 11), frames(40, 59), frames(0)],
        [frames(59), frames(59)],
    ],
    ids=["all", "batches", "sparse", "back-and-forth", "the-last-twice"],
)
def test_frames_are_those_of_reading_in_order(
    found: SourceScan, pictures: NDArray[np.uint8], asked: list[NDArray[np.int64]]
) -> None:
    source = FrameReader(found)
    for wanted in asked:
        assert np.array_equal(source.read(wanted), pictures[wanted])
    source.close()


def test_goes_on_instead_of_opening_again(
    found: SourceScan, pictures: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []

    def noted(path: str, start: int, of: SourceScan) -> object:
        opened.append(start)
        return checked(path, start, of)

    checked = reader.checked_frames
    monkeypatch.setattr(reader, "checked_frames", noted)
    source = FrameReader(found)
    for start in range(0, 12, 3):
        source.read(frames(start, start + 1))
    assert opened == [0]
    assert np.array_equal(source.read(frames(50)), pictures[[50]])
    indexed = found.info.path.endswith(".mp4")
    many_keyframes = KINDS["indexed"].name == Path(found.info.path).name and len(source._keyframes) > 1
    assert opened == ([0, 50] if indexed and many_keyframes else [0])
    source.close()


def test_a_frame_past_the_end_is_refused(found: SourceScan) -> None:
    source = FrameReader(found)
    with pytest.raises(ValueError, match="frames 60 to 60 of 60"):
        source.read(frames(FRAMES))
    source.close()


def test_another_file_is_noticed(found: SourceScan, tmp_path: Path) -> None:
    other = found.pts.copy()
    other[20:] += 7
    changed = SourceScan(info=found.info, sha256=found.sha256, pts=other, segments=())
    source = FrameReader(changed)
    with pytest.raises(SourceError, match="has changed since"):
        source.read(frames(30))
    source.close()


class TestIdleReaders:
    def test_gives_the_one_that_stands_nearest(self, found: SourceScan) -> None:
        idle = IdleReaders(most=3)
        at = {}
        for number in (5, 20, 40):
            at[number] = FrameReader(found)
            at[number].read(frames(number))
            idle.give_back("v", at[number])
        assert idle.take("v", 30) is at[20]
        assert idle.take("v", 50) is at[40]
        assert idle.take("other", 0) is None
        assert idle.take("v", 0) is at[5]
        assert idle.take("v", 0) is None

    def test_keeps_no_more_than_it_may(self, found: SourceScan) -> None:
        idle = IdleReaders(most=1)
        first, second = FrameReader(found), FrameReader(found)
        first.read(frames(0))
        idle.give_back("v", first)
        idle.give_back("v", second)
        assert first._frames is None
        assert idle.take("v", 0) is second
        assert idle.take("v", 0) is None

    def test_one_of_a_file_that_was_replaced_is_not_given(self, found: SourceScan) -> None:
        idle = IdleReaders(most=1)
        source = FrameReader(found)
        source.read(frames(0))
        idle.give_back("v", source)
        Path(found.info.path).unlink()
        assert idle.take("v", 1) is None
