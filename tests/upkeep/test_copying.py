"""Copies between archives: equal content, whole or not there, whatever happens on the way."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvpstore.catalog import Catalog, Snapshot
from nvpstore.config import load_settings
from nvpstore.errors import QueryError, UsageError
from nvpstore.ingest.originals import source_route
from nvpstore.storage import keys
from nvpstore.storage.commit import PreparedVideo, commit_video
from nvpstore.storage.documents import encode_meta
from nvpstore.storage.log import create_archive, open_log
from nvpstore.storage.objects import open_store
from nvpstore.storage.tables import encode_manifest
from nvpstore.types import TaskRoutes, VideoMeta, VideoRecord
from nvpstore.upkeep.copying import CopyReport, copy_videos, videos_where
from nvpstore.upkeep.erasure import erase_video
from nvpstore.upkeep.meta import change_meta
from nvpstore.upkeep.verify import verify
from tests.catalog.conftest import SmallArchive


class Killed(BaseException):
    """What no handler of errors sees, as a killed process."""


@dataclass(frozen=True, kw_only=True)
class Two:
    """Archive A with three videos, and B, which is empty."""

    small: SmallArchive
    source: Catalog
    target: Catalog
    gate: VideoRecord
    yard: VideoRecord
    roof: VideoRecord

    def chosen(self, where: str | None = None) -> list[str]:
        return videos_where(
            self.source.snapshot(), where, operators_factory=no_operators, settings=load_settings({})
        )

    def copy(self, where: str | None = None, **options: Any) -> CopyReport:
        return copy_videos(self.source, self.target, self.chosen(where), **options)


def no_operators() -> Any:
    raise AssertionError("nothing is to be decoded")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[VideoRecord, ...]]:
    """Archive A, made once, and its videos."""
    root = tmp_path_factory.mktemp("template") / "a"
    small = SmallArchive(open_store(str(root)))
    task = small.add_task()
    gate, yard, roof = small.add_video("gate", segments=3), small.add_video("yard"), add_with_original(small)
    small.add_routes(gate, task)
    small.add_meta(gate.video_id, name="the gate", tags={"camera": "gate"})
    small.add_meta(yard.video_id, name="the yard", tags={"camera": "yard"})
    return root, (gate, yard, roof)


@pytest.fixture
def two(template: tuple[Path, tuple[VideoRecord, ...]], tmp_path: Path) -> Two:
    made, (gate, yard, roof) = template
    source = open_store(shutil.copytree(made, tmp_path / "a").as_posix())
    target = open_store(str(tmp_path / "b"))
    create_archive(target)
    small = SmallArchive.__new__(SmallArchive)  # an archive that is there already
    small.store, small.log = source, open_log(source)
    return Two(
        small=small,
        source=Catalog(source, tmp_path / "cache"),
        target=Catalog(target, tmp_path / "cache"),
        gate=gate,
        yard=yard,
        roof=roof,
    )


def add_with_original(small: SmallArchive) -> VideoRecord:
    """A video whose original, the text "roof", is kept in the archive."""
    video, objects = small.put_video("roof")
    key = keys.source_key(video.video_id, video.attempt)
    kept = replace(video, source_uri=key, source_bytes=4)
    small.store.delete(objects[-1].key)
    manifest = small.store.put(objects[-1].key, encode_manifest(kept))
    meta = VideoMeta(video_id=video.video_id, name="roof.mp4")
    said = small.store.put(keys.meta_key(video.video_id, keys.new_attempt()), encode_meta(meta))
    small.commit("video", video.video_id, [*objects[:-1], small.store.put(key, b"roof"), manifest, said])
    return kept


def add_only(root: Path, fitted: VideoRecord, *, kept: bool) -> Catalog:
    """An archive in which the video, whose bytes are the text "gate", was added and not fitted."""
    small = SmallArchive(open_store(str(root)))
    task = small.add_task()
    attempt = keys.new_attempt()
    source = root.parent / "gate"
    source.write_bytes(b"gate")
    key = keys.source_key(fitted.video_id, attempt)
    none = {"stages": (), "gflops": (), "latents": None, "codec": "", "architecture": "", "psnr": math.nan}
    segments = (replace(s, **none, frame_psnr=np.empty(0, np.float32)) for s in fitted.segments)
    video = replace(
        fitted,
        attempt=attempt,
        state="added",
        preset="",
        psnr=math.nan,
        psnr_p5=math.nan,
        fit_seconds=math.nan,
        audio=None,
        footers={},
        segments=tuple(segments),
        source_uri=key if kept else source.as_uri(),
    )
    routes = TaskRoutes(
        video_id=video.video_id,
        task=task.name,
        version=task.version,
        attempt=attempt,
        routes=tuple(source_route(s.segment, gflops=1.0, bytes=4) for s in video.segments),
    )
    catalog = Catalog(open_store(str(root)), root.parent / "cache")
    prepared = PreparedVideo(
        video=video,
        routes=(routes,),
        files={key: source} if kept else {},
        meta=VideoMeta(video_id=video.video_id, name="gate.mp4"),
    )
    commit_video(catalog.log, prepared, catalog.snapshot().base(video.video_id), replaces=False)
    return catalog


def content(snapshot: Snapshot, video_id: str) -> dict[str, Any]:
    """What a video is, whatever its attempts."""
    video = snapshot.video(video_id)
    segments = [
        ([(name, part.sha256) for name, part in s.stages], s.latents.sha256, s.psnr, s.pts.tolist())
        for s in snapshot.segments(video_id)
    ]
    routes = [
        (found.route, found.row_group and found.row_group.sha256)
        for task in snapshot.tasks()
        for found in snapshot.routes(video_id, task.version)
    ]
    about = (video.name, video.tags, video.recorded_at, video.hold, video.psnr, video.sha256, video.state)
    return {"about": about, "segments": segments, "routes": routes}


def equal(two: Two, video: VideoRecord) -> bool:
    there = two.target.snapshot()
    if not there.has_video(video.video_id):
        return False
    return content(two.source.snapshot(), video.video_id) == content(there, video.video_id)


def is_whole(two: Two) -> bool:
    return verify(two.target.log.store).damages == ()


class TestContent:
    def test_everything_of_a_video_is_copied(self, two: Two) -> None:
        report = two.copy()
        assert (report.videos, report.skipped, report.tasks, report.failures) == (3, 0, 1, ())
        assert all(equal(two, video) for video in (two.gate, two.yard, two.roof))
        assert two.target.snapshot().video(two.gate.video_id).recorded_at == datetime(
            2026, 5, 1, 12, 30, tzinfo=UTC
        )
        assert is_whole(two)

    def test_a_kept_original_comes_along(self, two: Two) -> None:
        two.copy()
        uri = two.target.snapshot().video(two.roof.video_id).source_uri
        assert uri is not None
        assert two.target.log.store.get(uri) == b"roof"
        assert uri != two.roof.source_uri

    def test_bytes_are_those_of_the_objects(self, two: Two) -> None:
        objects = two.source.snapshot().objects()
        assert two.copy().bytes == sum(o.size_bytes for o in objects if keys.parse_key(o.key).video_id)

    def test_nothing_of_the_way_stays_on_this_machine(self, two: Two) -> None:
        two.copy()
        assert not [path for path in two.target.folder.rglob("fits/*/*") if path.is_file()]


class TestAgain:
    def test_what_is_there_is_skipped(self, two: Two) -> None:
        two.copy()
        number = two.target.snapshot().number
        report = two.copy()
        assert (report.videos, report.skipped, report.bytes) == (0, 3, 0)
        assert two.target.snapshot().number == number

    def test_what_people_say_there_stays(self, two: Two) -> None:
        two.copy()
        change_meta(two.target, two.yard.video_id, tags={"seen": "yes"})
        assert two.copy().skipped == 3
        assert two.target.snapshot().meta(two.yard.video_id).tags == {"camera": "yard", "seen": "yes"}

    def test_routes_that_came_later_are_added(self, two: Two) -> None:
        two.copy()
        before = two.target.snapshot().video(two.yard.video_id).attempt
        two.small.add_routes(two.yard, two.small.add_task("mood"))
        report = two.copy()
        assert (report.videos, report.completed, report.replaced, report.tasks) == (1, 1, 0, 1)
        assert equal(two, two.yard)
        assert two.target.snapshot().video(two.yard.video_id).attempt == before

    def test_another_fit_takes_the_place_of_the_old_one(self, two: Two) -> None:
        two.copy()
        two.small.add_video("yard", segments=4)
        report = two.copy()
        assert (report.videos, report.replaced) == (1, 1)
        assert equal(two, two.yard)
        assert is_whole(two)

    @pytest.mark.parametrize("kept", [False, True], ids=["by reference", "with its original"])
    def test_a_fit_stays_where_the_other_archive_only_added_the_video(
        self, two: Two, tmp_path: Path, kept: bool
    ) -> None:
        two.copy()
        before = content(two.target.snapshot(), two.gate.video_id)
        added = add_only(tmp_path / "c", two.gate, kept=kept)
        report = copy_videos(added, two.target, [two.gate.video_id])
        assert (report.videos, report.skipped, report.failures) == (0, 1, ())
        assert content(two.target.snapshot(), two.gate.video_id) == before

    def test_a_fit_takes_the_place_of_what_was_only_added(self, two: Two, tmp_path: Path) -> None:
        added = add_only(tmp_path / "c", two.gate, kept=True)
        report = copy_videos(two.source, added, [two.gate.video_id])
        assert (report.videos, report.replaced) == (1, 1)
        assert added.snapshot().video(two.gate.video_id).state == "ready"

    def test_a_copy_back_is_no_work(self, two: Two) -> None:
        two.copy()
        report = copy_videos(two.target, two.source, two.chosen())
        assert (report.videos, report.skipped) == (0, 3)


class TestChoosing:
    def test_a_predicate_chooses(self, two: Two) -> None:
        assert two.copy("tags['camera'] = 'gate' -- only these").videos == 1
        assert equal(two, two.gate)
        assert not two.target.snapshot().has_video(two.yard.video_id)

    @pytest.mark.parametrize(
        "where",
        [
            "",
            "nothing = 1",
            "true) UNION SELECT name FROM videos WHERE (true",
            "true; DROP TABLE videos",
            "video_id IN (SELECT content FROM read_text('/etc/passwd'))",
            "name = getenv('HOME')",
            "SELECT true",
        ],
    )
    def test_what_is_no_safe_predicate_is_refused(self, two: Two, where: str) -> None:
        with pytest.raises(QueryError):
            two.chosen(where)

    def test_an_archive_is_not_copied_into_itself(self, two: Two) -> None:
        with pytest.raises(UsageError, match="itself"):
            copy_videos(two.source, two.source, two.chosen())


class TestTrouble:
    def test_one_damaged_video_does_not_stop_the_others(self, two: Two) -> None:
        (weights,) = (o for o in two.source.snapshot().objects(two.yard.video_id) if "/weights-" in o.key)
        path = Path(str(two.small.store.local_path(weights.key)))
        data = bytearray(path.read_bytes())
        data[40] ^= 4
        path.unlink()
        path.write_bytes(data)
        report = two.copy()
        (failure,) = report.failures
        assert (report.videos, failure.video_id, failure.name) == (2, two.yard.video_id, "the yard")
        assert weights.key in failure.error
        assert not two.target.snapshot().has_video(two.yard.video_id)
        assert is_whole(two)

    @pytest.mark.parametrize("after", [0, 1, 2, 4, 7, 8, 10])
    def test_killed_at_any_write_a_rerun_completes(
        self, two: Two, after: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dies_at_write(two.target, after, monkeypatch)
        if after < 10:
            with pytest.raises(Killed):
                two.copy("tags['camera'] = 'gate'")
        else:  # a task, its entry; weights, latents, sound, routes, meta, manifest, their entry (second try)
            two.copy("tags['camera'] = 'gate'")
        monkeypatch.undo()
        assert equal(two, two.gate) == two.target.snapshot().has_video(two.gate.video_id) == (after == 10)
        assert two.copy("tags['camera'] = 'gate'").failures == ()
        assert equal(two, two.gate)
        assert is_whole(two)

    def test_a_video_that_somebody_else_stores_meanwhile_is_skipped(self, two: Two) -> None:
        other = Catalog(two.target.log.store, two.target.folder.parent / "other")
        once = during(lambda: copy_videos(two.source, other, [two.gate.video_id]))
        report = copy_videos(two.source, two.target, [two.gate.video_id], progress=once)
        assert report.failures == ()
        assert equal(two, two.gate)
        assert is_whole(two)

    def test_a_video_that_is_erased_there_meanwhile_does_not_come_back(self, two: Two) -> None:
        two.copy("tags['camera'] = 'yard'")
        two.small.add_video("yard", segments=4)
        once = during(lambda: erase_elsewhere(two.target, two.yard))
        report = copy_videos(two.source, two.target, [two.yard.video_id], progress=once)
        assert "erased" in report.failures[0].error
        assert not two.target.snapshot().has_video(two.yard.video_id)
        assert not two.target.log.store.list(f"videos/{two.yard.video_id}/")

    def test_a_video_that_is_erased_here_meanwhile_is_no_failure(self, two: Two) -> None:
        once = during(lambda: erase_elsewhere(two.source, two.yard))
        report = copy_videos(two.source, two.target, [two.yard.video_id, two.gate.video_id], progress=once)
        assert (report.failures, report.skipped, equal(two, two.gate)) == ((), 1, True)

    def test_a_video_that_is_gone_before_its_turn_is_no_failure(self, two: Two) -> None:
        chosen = two.chosen()
        erase_elsewhere(two.source, two.yard)
        report = copy_videos(two.source, two.target, chosen)
        assert (report.failures, report.videos, report.skipped) == ((), 2, 1)


def erase_elsewhere(catalog: Catalog, video: VideoRecord) -> None:
    """Erase a video from another machine, after its hold has ended."""
    other = Catalog(catalog.log.store, catalog.folder.parent / "other")
    change_meta(other, video.video_id, hold=False)
    erase_video(other, video.video_id)


def during(act: Callable[[], object]) -> Callable[[object], None]:
    """Progress that does something once, as soon as the first file is fetched."""
    left = [act]

    def report(_: object) -> None:
        while left:
            left.pop()()

    return report


def dies_at_write(target: Catalog, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies when it is about to write, after so many writes."""
    store, left = target.log.store, [after]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any) -> Any:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return real(*arguments)

        return write

    for name in ("put", "put_file"):
        monkeypatch.setattr(store, name, counted(getattr(store, name)))
