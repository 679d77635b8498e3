"""Which pictures are learned from and which are judged by: shares, spread, and that they never meet."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nvpstore.ingest import segment
from nvpstore.ingest.units import Gathering, UnitPlan, thinned, units_at_ingest, units_to_train
from nvpstore.tasks.recipes import RECIPES
from nvpstore.tasks.registry import spec_of
from nvpstore.tasks.spec import Clip, TaskSpec
from nvpstore.types import SegmentSpan, TaskKind


def task(clip: Clip | None = None) -> TaskSpec:
    name = "resnet50" if clip is None else "i3d_r50"
    return spec_of(name, RECIPES[name], weights_sha256="", clip=clip)


PICTURES = task()
clips = st.builds(Clip, frames=st.integers(2, 6), stride=st.integers(1, 4))
lengths = st.integers(1, 150)


def asked_about(clip: Clip, frames: int) -> list[list[int]]:
    """The clips that queries ask about, their last picture filled up."""
    starts = range(0, frames, clip.span)
    return [[min(s + i * clip.stride, frames - 1) for i in range(clip.frames)] for s in starts]


def pictures(plan: UnitPlan, seen: bool) -> set[int]:
    return set(plan.frames[plan.seen == seen].flatten().tolist())


class TestPictures:
    @given(frames=lengths, share=st.floats(0.01, 1), measured=st.integers(0, 40))
    def test_a_share_is_seen_and_so_many_others_are_not(
        self, frames: int, share: float, measured: int
    ) -> None:
        plan = units_to_train(PICTURES, frames=frames, share=share, measured=measured)
        assert plan.taught == len(pictures(plan, seen=True)) == max(1, round(share * frames))
        assert plan.judged == len(pictures(plan, seen=False)) == min(measured, frames - plan.taught)
        assert not pictures(plan, seen=True) & pictures(plan, seen=False)
        assert plan.pictures == tuple(sorted(set(plan.frames.flatten().tolist())))
        assert set(plan.pictures) <= set(range(frames))

    def test_those_that_are_seen_are_spread_over_the_segment(self) -> None:
        plan = units_to_train(PICTURES, frames=100, share=0.05, measured=10)
        assert sorted(pictures(plan, seen=True)) == [10, 30, 50, 70, 90]
        judged = sorted(pictures(plan, seen=False))
        gaps = [b - a for a, b in zip([0, *judged], [*judged, 100], strict=True)]
        assert max(gaps) <= 12

    @given(start=st.integers(0, 99), frames=lengths)
    def test_at_ingest_every_third_frame_of_the_video_is_unseen(self, start: int, frames: int) -> None:
        plan = units_at_ingest(PICTURES, start_frame=start, frames=frames)
        assert plan.frames.flatten().tolist() == list(range(frames))
        every_third = [(start + i) % 3 != 2 for i in range(frames)]
        assert plan.seen.tolist() == ([True, False] if every_third == [True, True] else every_third)

    @given(start=st.integers(0, 9), frames=lengths, most=st.integers(1, 40))
    def test_of_many_units_some_of_each_side_are_kept(self, start: int, frames: int, most: int) -> None:
        plan = units_at_ingest(PICTURES, start_frame=start, frames=frames)
        kept = thinned(plan, most)
        assert len(kept.seen) <= max(most, 2)
        assert len(kept.seen) == frames or len(kept.seen) >= most - 1
        for seen in (True, False):
            assert pictures(kept, seen=seen) <= pictures(plan, seen=seen)
            assert bool(pictures(kept, seen=seen)) == bool(pictures(plan, seen=seen))
        assert kept.frames.flatten().tolist() == sorted(kept.frames.flatten().tolist())

    @pytest.mark.parametrize(("kind", "asked", "seen"), [("classification", 40, 27), ("depth", 6, 4)])
    def test_of_maps_as_many_are_asked_for_as_there_is_room_for(
        self, kind: TaskKind, asked: int, seen: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(segment, "affordable_units", lambda task: 6)
        of_kind: Any = SimpleNamespace(spec=replace(PICTURES, kind=kind))
        plan = segment._plan(of_kind, SegmentSpan(segment=1, scene=0, start_frame=10, frames=40))
        assert len(plan.frames) == asked
        assert int(plan.seen.sum()) == seen


class TestClips:
    @given(clip=clips, frames=lengths, share=st.floats(0.01, 1), measured=st.integers(0, 40))
    def test_later_tasks_ask_about_the_clips_that_queries_ask_about(
        self, clip: Clip, frames: int, share: float, measured: int
    ) -> None:
        plan = units_to_train(task(clip), frames=frames, share=share, measured=measured)
        asked = asked_about(clip, frames)
        learned = [unit for unit in asked if unit in plan.frames[plan.seen].tolist()]
        assert len(learned) == max(1, round(share * len(asked)))
        # Whatever else is learned from is of the same pictures.
        assert pictures(plan, seen=True) == {frame for unit in learned for frame in unit}
        judged = plan.frames[~plan.seen].tolist()
        assert all(unit in asked for unit in judged)
        assert len(judged) <= max(1, measured // clip.frames)
        assert bool(judged) == (measured > 0 and len(learned) < len(asked))
        assert not pictures(plan, seen=True) & pictures(plan, seen=False)

    @given(clip=clips, frames=lengths, start=st.integers(0, 9))
    def test_at_ingest_every_third_clip_is_not_seen(self, clip: Clip, frames: int, start: int) -> None:
        plan = units_at_ingest(task(clip), start_frame=start, frames=frames)
        asked, whole = asked_about(clip, frames), frames // clip.span
        judged = plan.frames[~plan.seen].tolist()
        assert judged == (asked[:1] if whole == 2 else asked[2:whole:3])
        assert len(plan.frames.unique(dim=0)) == len(plan.frames)
        seen = pictures(plan, seen=True)
        assert seen
        assert 0 <= min(seen) <= max(seen) < frames
        # No clip to learn from reaches over one that is kept.
        for unit in judged:
            kept = range(unit[0], unit[0] + clip.span)
            assert not any(min(own) in kept or max(own) in kept for own in plan.frames[plan.seen].tolist())
            assert not seen & set(kept)

    def test_pictures_are_a_clips_own_and_the_last_one_fills_it_up(self) -> None:
        plan = units_to_train(task(Clip(frames=3, stride=2)), frames=9, share=1.0, measured=0)
        learned = plan.frames.tolist()
        assert [0, 2, 4] in learned
        assert [6, 8, 8] in learned

    def test_few_clips_are_shown_slowed_there_and_back_and_backwards(self) -> None:
        plan = units_to_train(task(Clip(frames=4, stride=1)), frames=16, share=0.25, measured=4)
        assert plan.frames[plan.seen].tolist() == [
            [8, 9, 10, 11],
            [8, 8, 9, 9],
            [10, 10, 11, 11],
            [8, 10, 10, 8],
            [11, 10, 9, 8],
            [9, 9, 8, 8],
            [11, 11, 10, 10],
        ]
        more = units_to_train(task(Clip(frames=4, stride=1)), frames=16, share=0.5, measured=4)
        assert len(more.frames[more.seen]) == 12
        assert more.frames[:2].tolist() == [[4, 5, 6, 7], [12, 13, 14, 15]]
        many = units_at_ingest(task(Clip(frames=4, stride=1)), start_frame=0, frames=60)
        assert (many.frames.diff(dim=1) == 1).all()


class TestGathering:
    @given(
        clip=st.none() | clips,
        frames=lengths,
        share=st.floats(0.05, 1),
        batch=st.integers(1, 20),
        all_of=st.booleans(),
    )
    def test_every_unit_comes_once_with_its_own_pictures(
        self, clip: Clip | None, frames: int, share: float, batch: int, all_of: bool
    ) -> None:
        plan = units_to_train(task(clip), frames=frames, share=share, measured=12)
        gathering, came = Gathering(plan), []
        positions = list(range(frames)) if all_of else list(plan.pictures)
        for first in range(0, len(positions), batch):
            part = positions[first : first + batch]
            rgb = torch.tensor(part)[:, None, None, None].expand(-1, 3, 1, 1)
            for units, found in gathering.add(part, rgb):
                assert torch.equal(found[:, 0, 0, 0].reshape(len(units), -1), plan.frames[units])
                came += units.tolist()
        assert sorted(came) == list(range(len(plan.seen)))
        assert not gathering._kept


def test_units_and_their_marks_are_as_many() -> None:
    with pytest.raises(ValueError, match="frames"):
        UnitPlan(frames=torch.zeros(3, 1), seen=torch.zeros(2))
