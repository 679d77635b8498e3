"""What stabilizers learn from: medians, norms, and lessons that are the same in every run."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from nvpstore.ingest.steady_lessons import (
    Run,
    distance_of,
    picture_lessons,
    task_lessons,
    wanted_of,
)
from nvpstore.types import TaskKind


def run(seed: int, frames: int = 20) -> Run:
    chance = torch.Generator().manual_seed(seed)
    return Run(seen=torch.randn(frames, 6, generator=chance), ts=np.arange(frames) * 0.04)


def test_the_median_drops_what_lasts_a_frame_and_follows_a_change_at_once() -> None:
    answers = torch.zeros(24, 2)
    answers[3] = 5.0
    answers[14:] = 1.0
    wanted = torch.zeros(24, 2)
    wanted[14:] = 1.0
    assert torch.equal(wanted_of(answers), wanted)


@pytest.mark.parametrize("kind", ["classification", "embedding", "depth"])
def test_distances_are_norms_of_what_people_read(kind: TaskKind) -> None:
    distance = distance_of(kind)
    a, b, c = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    assert bool((distance(a, c) <= distance(a, b) + distance(b, c) + 1e-6).all())
    torch.testing.assert_close(distance(a, b), distance(b, a))
    assert float(distance(a, a).max()) <= 1e-5


def test_a_class_is_as_far_whatever_is_added_to_all_logits() -> None:
    a, b = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    distance = distance_of("classification")
    torch.testing.assert_close(distance(a + 3, b), distance(a, b))


def lessons(seed: int) -> list[tuple[Tensor, Tensor]]:
    runs = [run(1), run(2)]
    wanted = [wanted_of(each.seen) for each in runs]
    made = task_lessons(runs, wanted, frames=4, batch=3, seconds=0.04, seed=seed)
    return [(lesson.seen, lesson.wanted) for lesson in islice(made, 6)]


def test_lessons_are_the_same_in_every_run() -> None:
    for (seen, wanted), (again, right) in zip(lessons(0), lessons(0), strict=True):
        assert seen.shape == wanted.shape == (4, 3, 6)
        assert torch.equal(seen, again)
        assert torch.equal(wanted, right)
    assert not torch.equal(lessons(0)[0][0], lessons(1)[0][0])


def test_gaps_are_elapsed_time() -> None:
    runs = [run(1, frames=40)]
    made = task_lessons(runs, [runs[0].seen], frames=4, batch=1, seconds=0.08, seed=0)
    gaps = {lesson.gaps[0] for lesson in islice(made, 20) if lesson.gaps is not None}
    assert {round(gap, 3) for gap in gaps} == {0.5, 1.0, 2.0}


def test_pictures_are_disturbed_and_wanted_as_they_are() -> None:
    x = torch.rand(10, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    made = list(islice(picture_lessons([Run(seen=x, ts=np.arange(10) / 25)], frames=4, seed=0), 8))
    assert all(lesson.seen.shape == (4, 1, 3, 16, 16) for lesson in made)
    assert any(not torch.equal(lesson.seen, lesson.wanted) for lesson in made)
    assert all(bool((lesson.wanted[:, :, None] == x).flatten(3).all(3).any(2).all()) for lesson in made)
