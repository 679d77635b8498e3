"""Tasks that come after a fit: what they are trained and judged on, what is committed, what a rerun does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nvpstore.archive import Archive
from nvpstore.errors import CommitDropped, QueryError, TaskError, UsageError
from nvpstore.ingest import learning, training
from nvpstore.ingest.references import ReferenceBuilder, References
from nvpstore.ingest.routes import RouteSettings, SegmentRoutes
from nvpstore.ingest.training import TrainedVideo
from tests.conftest import CLIP_FRAMES, Micro, open_micro

pytestmark = pytest.mark.slow  # one fit

VECTORS: dict[str, Any] = {
    "like": "resnet50",
    "model": "resnet18",
    "kind": "embedding",
    "size": (64, 64),
    "seed": 1,
}
ANSWERS = "SELECT frame, route, fidelity, embedding FROM looks{} ORDER BY frame"


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "SETTINGS", RouteSettings(adapters=2, epochs=2))


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    """A fitted clip, and a task that it has no routes of."""
    micro: Micro = request.getfixturevalue(f"micro_{request.param}")
    return with_task(micro.copy(tmp_path))


@pytest.fixture
def archive(micro: Micro, tmp_path: Path) -> Archive:
    return with_task(micro.copy(tmp_path))


def with_task(archive: Archive) -> Archive:
    archive.add_task("looks", **VECTORS)
    return archive


def only(rows: list[TrainedVideo]) -> TrainedVideo:
    (row,) = rows
    return row


def number(archive: Archive) -> int:
    return archive.catalog.snapshot().number


class Asked:
    """Which positions of which segments a backbone was asked about, and which of them it was taught on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[int, ...]] = []
        self.references: list[References] = []
        add, measure = ReferenceBuilder.add, SegmentRoutes.measure

        def counted(builder: ReferenceBuilder, positions: Any, rgb: Tensor) -> None:
            self.asked[-1:] = [(*(self.asked or [()])[-1], *positions)]
            add(builder, positions, rgb)

        def measured(routes: SegmentRoutes, joint: Any) -> Any:
            self.asked.append(())
            self.references.append(routes.refs)
            return measure(routes, joint)

        patch.setattr(ReferenceBuilder, "add", counted)
        patch.setattr(SegmentRoutes, "measure", measured)


class TestTraining:
    def test_adapters_answer_then_and_say_how_well(self, both: Archive) -> None:
        before = both.sql(ANSWERS.format("")).fetchall()
        assert {row[1] for row in before} == {"source"}
        row = only(both.train_task("looks", device="cpu"))
        assert (row.state, row.reference, row.frames, row.why) == ("trained", "original", CLIP_FRAMES, None)
        assert row.fidelity is not None
        assert 0 < row.fidelity <= 1
        found = both.sql("FROM routes WHERE task = 'looks'").arrow().to_pylist()
        assert {r["route"] for r in found} == {"adapter", "pixel", "source"}
        assert {r["segment"] for r in found} == set(range(row.segments))
        adapters = [r for r in found if r["route"] == "adapter"]
        assert all(0 < r["fidelity"] <= 1 and r["bytes"] > 0 for r in adapters)
        after = both.sql(ANSWERS.format("(route := 'adapter')")).fetchall()
        assert [r[0] for r in after] == list(range(CLIP_FRAMES))
        assert {r[2] for r in after} <= {r["fidelity"] for r in adapters}
        assert both.verify().damages == ()

    def test_fidelity_is_what_a_query_finds_on_frames_that_were_not_seen(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spy = Asked(monkeypatch)
        archive.train_task("looks", device="cpu", share=0.3)
        starts = [r[0] for r in archive.sql("SELECT start_frame FROM segments ORDER BY segment").fetchall()]
        own = {
            r[0]: torch.tensor(r[3]) for r in archive.sql(ANSWERS.format("(route := 'source')")).fetchall()
        }
        measured = archive.sql(
            "SELECT fidelity FROM routes WHERE task = 'looks' AND route = 'pixel' ORDER BY segment"
        ).fetchall()
        pixel = {
            r[0]: torch.tensor(r[3]) for r in archive.sql(ANSWERS.format("(route := 'pixel')")).fetchall()
        }
        for (fidelity,), start, refs in zip(measured, starts, spy.references, strict=True):
            unseen = (refs.frames[~refs.seen].flatten() + start).tolist()
            alike = [float((own[n] * pixel[n]).sum().clamp_min(0)) for n in unseen]
            assert fidelity == pytest.approx(sum(alike) / len(alike), abs=1e-4)

    def test_the_backbone_is_asked_about_a_share_and_never_judged_by_what_it_taught(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spy = Asked(monkeypatch)
        row = only(archive.train_task("looks", device="cpu", share=0.2, measured=3))
        assert len(spy.references) == row.segments
        for asked, refs in zip(spy.asked, spy.references, strict=False):
            taught = set(refs.positions.tolist())
            judged = set(refs.frames[refs.unseen].flatten().tolist())
            assert not taught & judged
            assert sorted(asked) == sorted(taught | judged)
            assert len(refs.inputs) == len(taught)  # what adapters can learn from at all
        assert row.trained_frames == sum(len(refs.positions) for refs in spy.references)
        assert row.measured_frames == sum(len(refs.unseen) for refs in spy.references) == 3 * row.segments
        assert sum(len(asked) for asked in spy.asked) == row.trained_frames + row.measured_frames

    def test_without_an_original_the_decoded_pictures_teach_and_nothing_is_measured(
        self, micro: Micro, tmp_path: Path
    ) -> None:
        archive = open_micro(tmp_path / "archive", tmp_path / "cache", create=True)
        clip = tmp_path / "clip.mp4"
        clip.write_bytes(micro.clip.read_bytes())
        archive.ingest(clip, preset="micro", tasks=(), device="cpu")
        clip.unlink()
        with_task(archive)
        row = only(archive.train_task("looks", device="cpu"))
        assert (row.state, row.reference, row.fidelity, row.measured_frames) == (
            "trained",
            "decoded",
            None,
            0,
        )
        rows = archive.sql(ANSWERS.format("")).fetchall()
        assert {r[1:3] for r in rows} == {("adapter", None)}

    @pytest.mark.parametrize(
        "described",
        [
            {**VECTORS, "kind": "classification", "labels": ["a", "b"]},
            {
                **{"provider": "torchvision", "model": "lraspp_mobilenet_v3_large", "kind": "segmentation"},
                **{"size": (64, 96), "labels": ["sky", "road"], "seed": 2},
            },
            # Its class token, of the one frame that is seen, has no spread.
            {"like": "vit_b16", "model": "vit_tiny_patch16_224", "size": (64, 64), "seed": 3},
        ],
        ids=["classification", "segmentation", "tokens"],
    )
    def test_other_kinds_are_trained_too(
        self, micro: Micro, tmp_path: Path, described: dict[str, Any]
    ) -> None:
        archive = micro.copy(tmp_path)
        archive.add_task("other", **described)
        row = only(archive.train_task("other", device="cpu", share=0.01))
        assert (row.state, row.trained_frames) == ("trained", row.segments)
        assert row.fidelity is not None
        assert 0 <= row.fidelity <= 1
        found = archive.sql("SELECT route, fidelity FROM routes WHERE task = 'other'").fetchall()
        assert {route for route, _ in found} == {"adapter", "pixel", "source"}
        assert all(0 <= fidelity <= 1 for _, fidelity in found)
        answered = archive.sql("SELECT DISTINCT frame FROM other(route := 'adapter')").fetchall()
        assert len(answered) == CLIP_FRAMES

    def test_clips_are_trained_on_and_answered(self, micro: Micro, tmp_path: Path) -> None:
        archive = micro.copy(tmp_path)
        archive.add_task(
            "moves", like="i3d_r50", size=(32, 32), clip=(4, 2), labels=["run", "sit"], seed=1,
            options={"build": {"head_pool_kernel_size": [2, 1, 1]}},
        )  # fmt: skip
        row = only(archive.train_task("moves", device="cpu", share=0.3))
        assert (row.state, row.why) == ("trained", None)
        routes = archive.sql("SELECT DISTINCT route FROM routes WHERE task = 'moves' ORDER BY 1").fetchall()
        assert routes == [("adapter",), ("pixel",), ("source",)]
        rows = archive.sql("SELECT frame FROM moves WHERE rank = 1 ORDER BY 1").fetchall()
        starts = archive.sql("SELECT start_frame, frames FROM segments ORDER BY 1").fetchall()
        assert [r[0] for r in rows] == [
            n for start, frames in starts for n in range(start, start + frames, 8)
        ]


class TestReruns:
    def test_what_is_trained_is_no_work(self, archive: Archive) -> None:
        archive.train_task("looks", device="cpu")
        before = number(archive)
        assert archive.train_task("looks", device="cpu") == []
        assert number(archive) == before

    def test_again_puts_new_routes_in_the_place_of_the_old(self, archive: Archive) -> None:
        first = only(archive.train_task("looks", device="cpu", share=0.1))
        before = archive.catalog.snapshot()
        row = only(archive.train_task("looks", device="cpu", share=0.3, again=True))
        assert row.state == "trained"
        assert row.trained_frames > first.trained_frames
        now = archive.catalog.snapshot()
        assert now.number == before.number + 1
        version = archive.task("looks")["version"]
        routes = [obj for obj in now.objects(row.video_id) if f"/routes/{version}/" in obj.key]
        assert len(routes) == 1

    def test_a_new_version_is_trained_beside_the_old_one(self, archive: Archive) -> None:
        archive.train_task("looks", device="cpu")
        archive.add_task("looks", **{**VECTORS, "seed": 2}, new_version=True)
        assert {row[1] for row in archive.sql(ANSWERS.format("")).fetchall()} == {"source"}
        assert only(archive.train_task("looks", device="cpu")).state == "trained"
        assert {row[1] for row in archive.sql(ANSWERS.format("")).fetchall()} != {"source"}
        versions = archive.sql("SELECT count(DISTINCT version) FROM routes WHERE task = 'looks'").fetchall()
        assert versions == [(2,)]

    def test_killed_in_the_middle_nothing_is_visible_and_a_rerun_finishes(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        measure, before = SegmentRoutes.measure, number(archive)

        def killed(routes: SegmentRoutes, joint: Any) -> Any:
            if routes.segment == 1:
                raise KeyboardInterrupt
            return measure(routes, joint)

        with monkeypatch.context() as patch:
            patch.setattr(SegmentRoutes, "measure", killed)
            with pytest.raises(KeyboardInterrupt):
                archive.train_task("looks", device="cpu")
        assert number(archive) == before
        assert archive.sql("FROM routes WHERE task = 'looks'").fetchall() == []
        assert only(archive.train_task("looks", device="cpu")).state == "trained"

    def test_a_dry_run_says_what_it_would_take_and_writes_nothing(self, both: Archive) -> None:
        keys, before = both.store.list(), number(both)
        row = only(both.train_task("looks", device="cpu", dry_run=True))
        assert (row.state, row.reference) == ("estimated", "original")
        assert row.fidelity is not None
        assert row.seconds > 0
        assert (both.store.list(), number(both)) == (keys, before)
        real = only(both.train_task("looks", device="cpu"))
        assert (row.segments, row.frames) == (real.segments, real.frames)
        assert (row.trained_frames, row.measured_frames) == (real.trained_frames, real.measured_frames)
        # Of one segment of three, each of which keeps pairs of its own.
        assert real.adapter_bytes / 2 < row.adapter_bytes < 2 * real.adapter_bytes

    def test_a_dry_run_does_not_even_register_a_built_in_task(self, micro: Micro, tmp_path: Path) -> None:
        archive = open_micro(tmp_path / "archive", tmp_path / "cache", create=True)
        archive.ingest(micro.clip, preset="micro", tasks=(), device="cpu")
        before = number(archive)
        assert archive.train_task("labels", videos="false", dry_run=True) == []
        assert number(archive) == before
        assert archive.train_task("labels", videos="false") == []
        assert [task["name"] for task in archive.tasks()] == ["labels"]


class TestWhichVideos:
    def test_only_those_where_the_predicate_holds(self, archive: Archive) -> None:
        assert archive.train_task("looks", device="cpu", videos="tags['camera'] = 'door'") == []
        row = only(archive.train_task("looks", device="cpu", videos="tags['camera'] = 'gate' -- mine"))
        assert row.state == "trained"
        with pytest.raises(QueryError, match="colour"):
            archive.train_task("looks", videos="colour = 'red'")

    def test_videos_that_are_only_added_have_nothing_to_train_on(self, micro: Micro, tmp_path: Path) -> None:
        archive = open_micro(tmp_path / "archive", tmp_path / "cache", create=True)
        archive.add(micro.clip, tasks=())
        assert with_task(archive).train_task("looks", device="cpu") == []

    @pytest.mark.parametrize(
        ("arguments", "error", "says"),
        [
            ({"name": "lokks"}, TaskError, "this archive has labels, looks; built in are"),
            ({"name": "looks@ffff"}, TaskError, "no version starts"),
            ({"name": "looks", "share": 0.0}, UsageError, "share 0.0"),
            ({"name": "looks", "share": 1.5}, UsageError, "share 1.5"),
            ({"name": "looks", "measured": -1}, UsageError, "measured -1"),
            ({"name": "looks", "device": "tpu"}, UsageError, "cuda"),
        ],
    )
    def test_wrong_words_are_said(
        self, archive: Archive, arguments: dict[str, Any], error: type[Exception], says: str
    ) -> None:
        with pytest.raises(error, match=says):
            archive.train_task(**arguments)


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """`act` just before the routes of a video are committed."""
    commit = training.commit_routes

    def later(*arguments: Any) -> Any:
        monkeypatch.setattr(training, "commit_routes", commit)
        act()
        return commit(*arguments)

    monkeypatch.setattr(training, "commit_routes", later)


class TestOthersMeanwhile:
    def test_a_video_that_was_erased_keeps_nothing(
        self, archive: Archive, micro: Micro, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        meanwhile(monkeypatch, lambda: archive.erase(micro.video_id))
        row = only(archive.train_task("looks", device="cpu"))
        assert row.state == "dropped"
        assert "erased meanwhile" in str(row.why)
        assert archive.store.list(f"videos/{micro.video_id}/") == []

    def test_a_video_that_others_trained_keeps_theirs(
        self, archive: Archive, micro: Micro, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        other = open_micro(tmp_path / "archive", tmp_path / "elsewhere")
        meanwhile(monkeypatch, lambda: other.train_task("looks", device="cpu", share=0.5))
        row = only(archive.train_task("looks", device="cpu"))
        assert (row.state, "others stored routes of the task meanwhile" in str(row.why)) == ("dropped", True)
        version = archive.task("looks")["version"]
        assert len(archive.store.list(f"videos/{micro.video_id}/routes/{version}/")) == 1

    def test_a_video_that_fails_is_said_and_the_others_go_on(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        from tests.ingest.test_pipeline import clip

        archive.ingest(clip(tmp_path, name="aaa.mp4", frames=8), preset="micro", tasks=(), device="cpu")
        learn = learning.Learning.segment

        def broken(self: Any, snapshot: Any, video: Any, *rest: Any) -> Any:
            if video.name == "aaa.mp4":
                raise CommitDropped("something came between")
            return learn(self, snapshot, video, *rest)

        monkeypatch.setattr(learning.Learning, "segment", broken)
        first, second = archive.train_task("looks", device="cpu")
        assert (first.name, first.state, first.why) == ("aaa.mp4", "dropped", "something came between")
        assert second.state == "trained"
