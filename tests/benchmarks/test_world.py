"""The labelled world: the same for a seed, with what only `test` has kept out of `train`."""

from __future__ import annotations

import random
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.world import _GROUNDS as GROUNDS
from benchmarks.world import (
    ACTIONS,
    CLASSES,
    HEIGHT,
    SHAPES,
    WIDTH,
    Split,
    World,
    read_truth,
    unseen,
    write_clip,
    write_scripts,
)


def test_a_clip_is_real_video_with_a_truth_a_frame(tmp_path: Path) -> None:
    told = write_clip(tmp_path / "a.mp4", seed=3, split="test", frames=30)
    assert read_truth(tmp_path / "a.json") == told
    assert len(told) == 30
    with av.open(str(tmp_path / "a.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].codec_context.name == "h264"
    assert len(frames) == 30
    assert frames[0].shape == (HEIGHT, WIDTH, 3)
    rendered = [picture for picture, _ in World(seed=3, split="test", frames=30)]
    error = np.mean((np.stack(frames).astype(float) - np.stack(rendered)) ** 2)
    assert 10 * np.log10(255**2 / error) > 28


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_seed_is_one_world_and_another_seed_another(split: Split) -> None:
    first, again, other = (list(World(seed=seed, split=split, frames=4)) for seed in (5, 5, 6))
    assert all(np.array_equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0][0], other[0][0])


def test_boxes_hold_what_they_say(tmp_path: Path) -> None:
    counts = set()
    for seed in range(6):
        for _, truth in World(seed=seed, split="train", frames=3):
            counts.add(len(truth.boxes))
            assert truth.label in CLASSES
            for label, x0, y0, x1, y1 in truth.boxes:
                assert label in CLASSES
                assert 0 <= x0 < x1 <= WIDTH
                assert 0 <= y0 < y1 <= HEIGHT
                assert (x1 - x0) * (y1 - y0) > 200
    assert len(counts) > 2, "clips differ in their number of objects"


def test_what_only_test_shows_is_never_in_train() -> None:
    assert not set(GROUNDS["train"]) & set(GROUNDS["test"])
    pairs = {(label, action) for label in CLASSES for action in ACTIONS if unseen(label, action)}
    assert len(pairs) == len(CLASSES) * len(ACTIONS) // 5
    scripts = write_scripts(60_000, "train", random.Random(0))
    assert all((script.label, script.action) not in pairs for script in scripts)
    assert {script.action for script in scripts} == set(ACTIONS)
    assert {script.label for script in scripts} == set(CLASSES)
    assert len(SHAPES) == 8


def test_another_object_comes_with_each_script() -> None:
    told = [truth for _, truth in World(seed=1, split="train", frames=260).part(0, 260)]
    assert len({truth.label for truth in told}) > 1
    assert all(truth.label in truth.caption for truth in told)


def test_a_part_is_of_the_whole(tmp_path: Path) -> None:
    told = write_clip(tmp_path / "part.mp4", seed=1, split="train", frames=260, part=6)
    whole = [truth for _, truth in World(seed=1, split="train", frames=260)]
    assert told == whole[127:133]
