"""Videos that are registered without a fit: their originals answer, and what a later fit changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from nvpstore.api.cli import main
from nvpstore.archive import Archive
from nvpstore.errors import AttemptTooOld, CommitDropped, SourceError, UsageError
from nvpstore.ingest.pipeline import IngestProgress
from nvpstore.storage.log import Log
from nvpstore.video.source import probe, read_frames
from tests.conftest import CLIP_FRAMES, open_micro
from tests.ingest.test_pipeline import KINDS, clip, shown

pytestmark = pytest.mark.slow  # fits

ANSWERS = "SELECT video_id, frame, ts, label, route, fidelity FROM labels{} WHERE rank = 1 ORDER BY ALL"
FEW = ANSWERS.format("(stride := 10)")
FITTED = ("ready", "below_target")
FEW_FRAMES = range(0, CLIP_FRAMES, 10)


@pytest.fixture
def local(tmp_path: Path) -> Archive:
    return open_micro(tmp_path / "archive", tmp_path / "cache", create=True)


def original_pixels(path: Path) -> np.ndarray[Any, Any]:
    return np.concatenate([batch.rgb_thwc for batch in read_frames(str(path))])


class TestAdding:
    def test_the_original_answers_at_once(self, archive: Archive, real_clip: Path) -> None:
        video = archive.add(real_clip, tags={"camera": "gate"})
        assert (video.state, video.frames, video.already_stored) == ("added", CLIP_FRAMES, False)
        assert (video.psnr, video.bpp, video.fit_seconds) == (None, None, None)
        assert video.source_bytes == real_clip.stat().st_size
        rows = archive.sql(FEW).fetchall()
        assert [row[1] for row in rows] == list(FEW_FRAMES)
        assert {row[4:] for row in rows} == {("source", 1.0)}

    def test_answers_are_those_of_a_fitted_videos_original(self, local: Archive, real_clip: Path) -> None:
        local.add(real_clip)
        added = local.sql(FEW).fetchall()
        local.ingest(real_clip, preset="micro")
        of_source = ANSWERS.format("(stride := 10, route := 'source')")
        assert local.sql(of_source).fetchall() == added

    def test_what_is_measured_of_a_fit_is_null(self, local: Archive, real_clip: Path) -> None:
        local.add(real_clip, tasks=())
        (row,) = local.sql("SELECT psnr, psnr_p5, bpp, fit_seconds, preset FROM videos").fetchall()
        assert row == (None,) * 5
        segments = local.sql("SELECT psnr, codec, stored_bytes, scene FROM segments").fetchall()
        assert set(segments) == {(None, None, 0, 0)}

    @pytest.mark.parametrize("kind", KINDS)
    def test_frames_are_the_originals_whatever_they_are(
        self, local: Archive, tmp_path: Path, kind: str
    ) -> None:
        path = clip(tmp_path, **KINDS[kind])
        times, size = shown(path)
        added = local.add(path, tasks=())
        rows = local.sql("SELECT ts, width, height FROM frames ORDER BY frame").fetchall()
        assert [row[0] for row in rows] == pytest.approx([t - times[0] for t in times])
        assert {row[1:] for row in rows} == {size}
        read = np.concatenate([batch.rgb_thwc for batch in local.frames(added.video_id)])
        assert np.array_equal(read, original_pixels(path))

    def test_a_later_task_is_answered_too(self, local: Archive, real_clip: Path, tmp_path: Path) -> None:
        added = local.add(real_clip, tasks=())
        other = clip(tmp_path)
        local.add(other, tasks=["labels"])
        rows = local.sql(FEW).fetchall()
        assert {row[4] for row in rows} == {"source"}
        assert sum(row[0] == added.video_id for row in rows) == len(FEW_FRAMES)

    def test_adding_again_is_no_work(self, archive: Archive, real_clip: Path) -> None:
        first = archive.add(real_clip, tasks=())
        before = archive.catalog.snapshot().number
        again = archive.add(real_clip, tasks=())
        assert (again.video_id, again.already_stored) == (first.video_id, True)
        assert archive.catalog.snapshot().number == before

    def test_said_again_with_other_tags_they_are_recorded(self, local: Archive, real_clip: Path) -> None:
        local.add(real_clip, tasks=(), tags={"camera": "gate"})
        local.add(real_clip, tasks=(), tags={"shift": "night"}, name="other")
        ((name, tags),) = local.sql("SELECT name, tags FROM videos").fetchall()
        assert (name, dict(tags)) == ("other", {"camera": "gate", "shift": "night"})

    def test_a_fitted_video_stays_fitted(self, local: Archive, real_clip: Path) -> None:
        fitted = local.ingest(real_clip, preset="micro", tasks=())
        added = local.add(real_clip, tasks=())
        assert (added.state, added.already_stored) == (fitted.state, True)

    @pytest.mark.parametrize(
        ("content", "message"), [(b"", "empty"), (b"no video" * 100, "not a video"), (None, "cannot be read")]
    )
    def test_what_is_no_video_is_refused_and_leaves_nothing(
        self, local: Archive, tmp_path: Path, content: bytes | None, message: str
    ) -> None:
        path = tmp_path / "file.mp4"
        if content is not None:
            path.write_bytes(content)
        before = local.catalog.snapshot().number
        with pytest.raises(SourceError, match=message):
            local.add(path, tasks=())
        assert local.catalog.snapshot().number == before

    def test_its_original_must_be_kept_somehow(self, local: Archive, real_clip: Path) -> None:
        with pytest.raises(UsageError, match="reference or copy"):
            local.add(real_clip, tasks=(), keep_source="none")  # type: ignore[arg-type]


class TestOriginals:
    def test_a_copy_answers_when_the_file_is_gone(
        self, archive: Archive, real_clip: Path, tmp_path: Path
    ) -> None:
        path = Path(shutil.copy(real_clip, tmp_path / "clip.mp4"))
        video = archive.add(path, keep_source="copy")
        path.unlink()
        assert len(archive.sql(FEW).fetchall()) == len(FEW_FRAMES)
        archive.export(video.video_id, tmp_path / "out.mp4", original=True)
        assert (tmp_path / "out.mp4").read_bytes() == real_clip.read_bytes()

    def test_a_reference_that_is_gone_is_named(self, local: Archive, real_clip: Path, tmp_path: Path) -> None:
        path = Path(shutil.copy(real_clip, tmp_path / "clip.mp4"))
        video = local.add(path)
        assert len(local.sql(FEW).fetchall()) == len(FEW_FRAMES)
        path.unlink()
        with pytest.raises(SourceError, match=r"clip\.mp4.*not at hand"):
            local.sql(FEW)
        with pytest.raises(SourceError, match="not at hand"):
            local.fit(video.video_id, preset="micro")
        skipped = local.sql(ANSWERS.format("(stride := 10, on_error := 'skip')"))
        assert skipped.fetchall() == []
        assert {entry.video_id for entry in skipped.skipped} == {video.video_id}

    def test_another_file_in_its_place_is_noticed(
        self, local: Archive, real_clip: Path, tmp_path: Path
    ) -> None:
        path = Path(shutil.copy(real_clip, tmp_path / "clip.mp4"))
        video = local.add(path)
        path.write_bytes(clip(tmp_path, name="other.mp4").read_bytes())
        with pytest.raises(SourceError, match="not the file that was ingested"):
            local.sql(ANSWERS.format(""))
        same_size = bytearray(real_clip.read_bytes())
        same_size[-1] ^= 1
        path.write_bytes(same_size)
        with pytest.raises(SourceError, match="another file by now"):
            local.fit(video.video_id, preset="micro", tasks=())

    def test_deep_verify_looks_at_it(self, local: Archive, real_clip: Path, tmp_path: Path) -> None:
        path = Path(shutil.copy(real_clip, tmp_path / "clip.mp4"))
        video = local.add(path, tasks=())
        report = local.verify(deep=True)
        assert report.damages == ()
        assert report.deep is not None
        assert (report.deep.videos, report.deep.frames) == (1, 0)
        path.unlink()
        (damage,) = local.verify(deep=True).damages
        assert damage.video_id == video.video_id
        assert "clip.mp4" in damage.found
        assert local.verify().damages == ()

    def test_exported_pictures_are_not_called_a_reconstruction(self, local: Archive, tmp_path: Path) -> None:
        path = clip(tmp_path, frames=30, audio="aac")
        video = local.add(path, tasks=())
        out = tmp_path / "out.mp4"
        summary = local.export(video.video_id, out)
        assert (summary.frames, summary.reconstructed) == (30, False)
        with av.open(str(out)) as container:
            assert "Reconstructed" not in container.metadata["comment"]
            assert len(container.streams.audio) == 1
        assert shown(out)[0] == pytest.approx(shown(path)[0])

    def test_anamorphic_pictures_stay_so(self, local: Archive, tmp_path: Path) -> None:
        path, out = clip(tmp_path, frames=4, pixel_aspect=Fraction(64, 45)), tmp_path / "out.mp4"
        video = local.add(path, tasks=())
        local.export(video.video_id, out)
        local.fit(video.video_id, preset="micro", tasks=())
        local.export(video.video_id, tmp_path / "fitted.mp4")
        assert probe(str(out)).pixel_aspect == probe(str(tmp_path / "fitted.mp4")).pixel_aspect
        assert probe(str(out)).pixel_aspect == Fraction(64, 45)

    @pytest.mark.parametrize("keep", ["reference", "copy"])
    def test_copied_to_another_archive_it_answers(
        self, archive: Archive, real_clip: Path, tmp_path: Path, keep: Any
    ) -> None:
        archive.add(real_clip, keep_source=keep)
        target = open_micro(tmp_path / "target", tmp_path / "cache", create=True)
        report = archive.copy_to(target)
        assert (report.videos, report.failures) == (1, ())
        assert target.sql(FEW).fetchall() == archive.sql(FEW).fetchall() != []

    def test_erased_nothing_stays(self, archive: Archive, real_clip: Path) -> None:
        video = archive.add(real_clip, tasks=(), keep_source="copy")
        archive.erase(video.video_id)
        assert archive.videos() == []
        left = [key for key in archive.store.list("") if video.video_id in key]
        assert left == []


class TestFitting:
    def test_a_fit_changes_routes_and_not_the_shape_of_the_answer(
        self, archive: Archive, real_clip: Path, tmp_path: Path
    ) -> None:
        other = archive.ingest(clip(tmp_path, frames=6), preset="micro")
        added = archive.add(real_clip)
        query = ANSWERS.format("")
        mixed = archive.sql(query)
        routes = {(row[0], row[4]) for row in mixed.fetchall()}
        assert (added.video_id, "source") in routes
        assert {route for video, route in routes if video == other.video_id} <= {"adapter", "pixel"}
        fitted = archive.fit(added.video_id, preset="micro")
        assert not fitted.already_stored
        assert fitted.state in FITTED
        after = archive.sql(query)
        assert after.arrow().schema == mixed.arrow().schema
        keys = [[row[:3] for row in result.fetchall()] for result in (mixed, after)]
        assert keys[0] == keys[1]
        assert "source" not in {row[4] for row in after.fetchall()}

    @pytest.mark.parametrize("keep", ["reference", "copy"])
    def test_name_tags_time_and_original_stay(
        self, local: Archive, real_clip: Path, tmp_path: Path, keep: Any
    ) -> None:
        said = {"name": "gate", "tags": {"camera": "1"}, "recorded_at": datetime(2026, 5, 1, tzinfo=UTC)}
        added = local.add(real_clip, tasks=(), keep_source=keep, **said)
        columns = "SELECT name, tags, recorded_at, source_bytes, frames FROM videos"
        before = local.sql(columns).fetchall()
        local.fit("gate", preset="micro", tasks=())
        assert local.sql(columns).fetchall() == before
        local.export(added.video_id, tmp_path / "out.mp4", original=True)
        assert (tmp_path / "out.mp4").read_bytes() == real_clip.read_bytes()
        kept = [key for key in local.store.list("sources/") if added.video_id in key]
        assert len(kept) == (keep == "copy")

    def test_the_original_can_be_forgotten(self, local: Archive, real_clip: Path, tmp_path: Path) -> None:
        added = local.add(real_clip, tasks=())
        local.fit(added.video_id, preset="micro", tasks=(), keep_source="none")
        with pytest.raises(UsageError, match="not kept"):
            local.export(added.video_id, tmp_path / "out.mp4", original=True)

    def test_fitting_what_is_fitted_is_no_work(self, local: Archive, real_clip: Path) -> None:
        video = local.ingest(real_clip, preset="micro", tasks=())
        before = local.catalog.snapshot().number
        assert local.fit(video.video_id, tasks=()).already_stored
        assert local.catalog.snapshot().number == before

    def test_ingesting_an_added_file_fits_it(self, local: Archive, real_clip: Path) -> None:
        added = local.add(real_clip, tasks=(), tags={"a": "1"})
        video = local.ingest(real_clip, preset="micro", tasks=(), tags={"b": "2"})
        assert video.video_id == added.video_id
        assert video.state in FITTED
        ((tags,),) = local.sql("SELECT tags FROM videos").fetchall()
        assert dict(tags) == {"a": "1", "b": "2"}


class TestRaces:
    """What others commit while a fit is under way."""

    def fit_meanwhile(self, archive: Archive, path: Path, act: Callable[[], object], **options: Any) -> Any:
        acted: list[object] = []

        def at_the_first_epoch(progress: IngestProgress) -> None:
            if progress.phase == "fit" and not acted:
                acted.append(act())

        summary = archive.ingest(path, preset="micro", tasks=(), progress=at_the_first_epoch, **options)
        assert acted
        return summary

    def another(self, archive: Archive, folder: Path) -> Archive:
        return open_micro(archive.store.root, folder / "other-cache")

    def test_added_by_others_it_is_fitted_all_the_same(
        self, archive: Archive, real_clip: Path, tmp_path: Path
    ) -> None:
        other = self.another(archive, tmp_path)
        video = self.fit_meanwhile(
            archive, real_clip, lambda: other.add(real_clip, tasks=(), tags={"by": "other"})
        )
        assert video.state in FITTED
        ((state, tags),) = other.sql("SELECT state, tags FROM videos").fetchall()
        assert (state, dict(tags)) == (video.state, {"by": "other"})

    def test_fitted_by_others_first_it_is_theirs(
        self, local: Archive, real_clip: Path, tmp_path: Path
    ) -> None:
        local.add(real_clip, tasks=())
        other = self.another(local, tmp_path)
        video = self.fit_meanwhile(
            local, real_clip, lambda: other.ingest(real_clip, preset="micro", tasks=())
        )
        assert video.already_stored
        manifests = [key for key in local.store.list("videos/") if key.endswith("manifest.parquet")]
        assert len(manifests) == 2  # the added one waits to be collected; nothing of the second fit is left

    def test_an_upload_that_took_too_long_costs_no_finished_segment(
        self, local: Archive, real_clip: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Log, "grace_seconds", property(lambda self: 0))
            with pytest.raises(AttemptTooOld, match="run it again"):
                local.ingest(real_clip, preset="micro", tasks=())
        phases: list[str] = []
        local.ingest(real_clip, preset="micro", tasks=(), progress=lambda p: phases.append(p.phase))
        assert "fit" not in phases

    def test_erased_by_others_it_does_not_come_back(
        self, local: Archive, real_clip: Path, tmp_path: Path
    ) -> None:
        added = local.add(real_clip, tasks=())
        other = self.another(local, tmp_path)
        with pytest.raises(CommitDropped, match="erased"):
            self.fit_meanwhile(local, real_clip, lambda: other.erase(added.video_id))
        assert local.videos() == []
        assert list(local.store.list(f"videos/{added.video_id}/")) == []


class TestCommands:
    def run(self, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, Any, str]:
        status = main([*args])
        out, err = capsys.readouterr()
        return status, json.loads(out) if out else None, err

    def test_add_then_fit(
        self,
        tmp_path: Path,
        real_clip: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("NVP_CACHE", str(tmp_path / "cache"))
        root = str(tmp_path / "archive")
        assert main(["--archive", root, "init"]) == 0
        capsys.readouterr()
        folder = tmp_path / "clips"
        folder.mkdir()
        shutil.copy(real_clip, folder / "a.mp4")
        clip(folder, name="b.mp4")
        (folder / "broken.mp4").write_bytes(b"no video")
        common = ("--archive", root, "--json")
        status, added, err = self.run(capsys, *common, "add", str(folder), "--tag", "camera=gate")
        assert (status, [video["state"] for video in added]) == (1, ["added", "added"])
        assert "broken.mp4" in err
        status, fitted, _ = self.run(capsys, *common, "fit", "--videos", "frames < 10", "--preset", "micro")
        assert (status, [video["name"] for video in fitted]) == (0, ["b.mp4"])
        status, listed, _ = self.run(capsys, *common, "ls")
        assert [video["name"] for video in listed if video["state"] == "added"] == ["a.mp4"]
        status, one, _ = self.run(capsys, *common, "fit", "a.mp4", "--preset", "micro")
        assert (status, one["name"], one["state"] in FITTED) == (0, "a.mp4", True)
        status, none, _ = self.run(capsys, *common, "fit")
        assert (status, none) == (0, [])

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["fit", "a", "--videos", "true"], "one or the other"),
            (["fit", "--refit"], "name each VIDEO"),
            (["fit", "--videos", "1; DROP TABLE videos"], "no predicate"),
            (["add", "x.mp4", "--keep-source", "none"], "invalid choice"),
            (["fit", "nothing-so-named"], "no video"),
        ],
    )
    def test_wrong_use_is_named(
        self, local: Archive, capsys: pytest.CaptureFixture[str], args: list[str], message: str
    ) -> None:
        try:
            status = main(["--archive", local.store.root, *args])
        except SystemExit as stopped:  # argparse
            status = int(str(stopped.code))
        assert status in (1, 2)
        assert message in capsys.readouterr().err
