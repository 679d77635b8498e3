"""Jobs as calls of the archive: what comes of them, what is refused, and how they stop."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nvpstore.api.jobs import run
from nvpstore.api.jobs.failures import described
from nvpstore.api.jobs.job import Job, JobKind
from nvpstore.api.jobs.queue import JobQueue
from nvpstore.api.jobs.requests import FitJob, IngestJob, StabilizeJob, TrainJob
from nvpstore.api.jobs.run import Stopped, progress_json, run_job
from nvpstore.api.progress import ProgressLike
from nvpstore.api.service.settings import ServiceSettings
from nvpstore.archive import Archive
from nvpstore.errors import NotFound, SourceError, StoreError, TaskError, UsageError
from nvpstore.ingest.pipeline import IngestProgress
from tests.api.conftest import write_clip

FITTED = ("ready", "below_target")


class Runner:
    """Runs jobs as a worker does, and notes what it hears of them."""

    def __init__(self, archive: Archive, queue: JobQueue, settings: ServiceSettings) -> None:
        self.archive, self.queue, self.settings = archive, queue, settings
        self.heard: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.stops: Callable[[], bool] = lambda: False

    def __call__(self, kind: JobKind, request: Any) -> dict[str, Any]:
        return run_job(
            self.archive,
            self.job(kind, request),
            report=self._hear,
            should_stop=lambda: self.stops(),
            limits=self.settings,
            say=self.said.append,
            device="cpu",
        )

    def job(self, kind: JobKind, request: Any) -> Job:
        return self.queue.submit(kind, request.to_json(), owner="me")[0]

    def _hear(self, progress: ProgressLike) -> None:
        self.heard.append(dict(progress_json(progress)))

    def has_fitted(self, share: float) -> bool:
        """Whether it was heard that more than this share of the fit is done."""
        return any(p["phase"] == "fit" and p["done"] > share * p["total"] for p in self.heard)

    def first_fitted(self) -> int:
        """How far the fit was when it was first heard of."""
        return next(int(p["done"]) for p in self.heard if p["phase"] == "fit")

    def phases(self) -> set[str]:
        return {progress["phase"] for progress in self.heard}


@pytest.fixture
def runner(archive: Archive, queue: JobQueue, settings: ServiceSettings) -> Runner:
    return Runner(archive, queue, settings)


def uploaded(path: Path, **options: Any) -> IngestJob:
    return IngestJob(file=str(path), original_name="their clip.mp4", **{"tasks": (), **options})


class TestAdd:
    def test_an_upload_is_registered_with_what_is_said_of_it(
        self, runner: Runner, upload: Callable[[str], Path]
    ) -> None:
        path = upload("clip.mp4")
        result = runner(
            "add",
            uploaded(path, name="gate", tags={"camera": "gate"}, recorded_at="2026-05-01T12:00:00+02:00"),
        )
        assert (result["state"], result["frames"], result["name"]) == ("added", 12, "gate")
        assert result["psnr"] is None
        (video,) = runner.archive.videos()
        assert video["tags"] == {"camera": "gate"}
        assert video["recorded_at"].isoformat() == "2026-05-01T10:00:00+00:00"
        assert "scan" in runner.phases()
        assert any("h264" in line for line in runner.said)

    def test_its_original_is_kept_since_uploads_go(
        self, runner: Runner, upload: Callable[[str], Path]
    ) -> None:
        path = upload("clip.mp4")
        video = runner("add", uploaded(path, keep_source="none"))
        data = path.read_bytes()
        shutil.rmtree(path.parent)
        assert runner.archive.original(video["video_id"]).read_bytes() == data

    def test_without_a_name_it_is_called_as_where_it_comes_from(
        self, runner: Runner, upload: Callable[[str], Path]
    ) -> None:
        assert runner("add", uploaded(upload("x.mp4")))["name"] == "their clip.mp4"

    def test_the_same_bytes_again_are_no_work(self, runner: Runner, upload: Callable[[str], Path]) -> None:
        first = runner("add", uploaded(upload("a.mp4")))
        again = runner("add", uploaded(upload("b.mp4")))
        assert (again["video_id"], again["already_stored"]) == (first["video_id"], True)

    @pytest.mark.parametrize("keep", ["reference", "none"])
    def test_a_file_below_a_root_is_referenced_or_copied(
        self, runner: Runner, tmp_path: Path, keep: Any
    ) -> None:
        root = tmp_path / "cameras"
        root.mkdir()
        write_clip(root / "clip.mp4", frames=12)
        runner.settings = replace(runner.settings, roots=(str(root),))
        uri = f"{root}/clip.mp4"
        video = runner("add", IngestJob(uri=uri, original_name="clip.mp4", tasks=(), keep_source=keep))
        original = runner.archive.original(video["video_id"])
        assert (original == root / "clip.mp4") == (keep == "reference")
        assert runner.said[0] == f"reading {uri}"


class TestRefusals:
    def test_what_is_no_video_is_called_by_its_owners_name(
        self, runner: Runner, upload: Callable[[str], Path]
    ) -> None:
        path = upload("clip.mp4")
        path.write_bytes(b"no video")
        with pytest.raises(SourceError, match=r"^their clip\.mp4: ") as refused:
            runner("add", uploaded(path))
        assert str(runner.settings.spool_dir) not in str(refused.value)
        assert runner.archive.videos() == []

    def test_a_file_that_is_no_upload_is_not_read(self, runner: Runner, tmp_path: Path) -> None:
        write_clip(tmp_path / "private.mp4", frames=12)
        with pytest.raises(UsageError, match="no upload of this server"):
            runner("add", uploaded(tmp_path / "private.mp4"))

    def test_a_uri_outside_of_the_roots_is_not_read(self, runner: Runner, tmp_path: Path) -> None:
        write_clip(tmp_path / "private.mp4", frames=12)
        runner.settings = replace(runner.settings, roots=(str(tmp_path / "cameras"),))
        with pytest.raises(UsageError, match="lies below none"):
            runner("add", IngestJob(uri=f"{tmp_path}/private.mp4", original_name="x"))

    def test_the_web_is_no_place_to_refer_to(self, runner: Runner) -> None:
        runner.settings = replace(runner.settings, roots=("https://films.example/",))
        request = IngestJob(uri="https://films.example/x", original_name="x", keep_source="reference")
        with pytest.raises(UsageError, match="kept by 'copy'"):
            runner("add", request)

    def test_more_bytes_than_allowed_are_not_opened(
        self, runner: Runner, upload: Callable[[str], Path]
    ) -> None:
        runner.settings = replace(runner.settings, upload_bytes=10)
        with pytest.raises(SourceError, match=r"^their clip\.mp4: has \d+ bytes; at most 10"):
            runner("add", uploaded(upload("clip.mp4")))

    def test_more_pixels_than_allowed_are_refused(
        self, runner: Runner, upload: Callable[[str], Path]
    ) -> None:
        runner.settings = replace(runner.settings, pixels=96 * 64 - 1)
        with pytest.raises(SourceError, match="has 96x64 pixels; at most 6143"):
            runner("add", uploaded(upload("clip.mp4")))

    def test_a_video_that_holds_more_than_it_claims_is_not_looked_at_to_its_end(
        self, runner: Runner, upload: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run, "most_frames", lambda settings: 10)
        with pytest.raises(SourceError, match="more than the 10 frames"):
            runner("add", uploaded(upload("clip.mp4")))
        assert runner.archive.videos() == []

    def test_unknown_tasks_videos_and_kinds_are_said(
        self, runner: Runner, upload: Callable[[str], Path]
    ) -> None:
        with pytest.raises(TaskError, match="nonsense"):
            runner("add", uploaded(upload("clip.mp4"), tasks=("nonsense",)))
        with pytest.raises(NotFound, match="gate"):
            runner("fit", FitJob(video="gate"))
        with pytest.raises(TaskError, match="nonsense"):
            runner("train", TrainJob(task="nonsense"))
        with pytest.raises(UsageError, match="workers do ingest, add, fit, train and stabilize"):
            runner("query", FitJob(video="x"))

    def test_a_request_that_is_none_is_refused(self, runner: Runner, queue: JobQueue) -> None:
        job, _ = queue.submit("add", {"file": 1}, owner="me")
        with pytest.raises(UsageError, match="file is 1"):
            run_job(
                runner.archive,
                job,
                report=lambda progress: None,
                should_stop=lambda: False,
                limits=runner.settings,
            )


class TestStopping:
    def test_before_it_begins_nothing_is_opened(self, runner: Runner) -> None:
        runner.stops = lambda: True
        with pytest.raises(Stopped):
            runner("add", uploaded(Path("/nowhere")))

    def test_while_a_file_is_read_through_nothing_is_stored(
        self, runner: Runner, upload: Callable[[str], Path]
    ) -> None:
        path = upload("clip.mp4")
        job = runner.job("add", uploaded(path))
        stops = iter([False, False, True])
        with pytest.raises(Stopped):
            run_job(
                runner.archive,
                job,
                report=lambda progress: None,
                should_stop=lambda: next(stops),
                limits=runner.settings,
            )
        assert runner.archive.videos() == []

    def test_figures_that_are_no_numbers_are_null(self) -> None:
        progress = IngestProgress(phase="fit", done=1, total=2, psnr=float("-inf"), eta_seconds=float("nan"))
        assert progress_json(progress) == {
            "phase": "fit",
            "done": 1,
            "total": 2,
            "psnr": None,
            "eta_seconds": None,
        }


@pytest.mark.slow
class TestFits:
    def test_an_upload_is_fitted_and_a_task_trained(
        self, runner: Runner, upload: Callable[[str], Path]
    ) -> None:
        result = runner("ingest", uploaded(upload("clip.mp4"), preset="micro", keep_source="copy"))
        assert result["state"] in FITTED
        assert result["psnr"] > 10
        assert {"scan", "fit"} <= runner.phases()
        trained = runner("train", TrainJob(task="labels", share=0.5))
        assert [video["state"] for video in trained["videos"]] == ["trained"]
        assert trained["videos"][0]["video_id"] == result["video_id"]
        assert "train" in runner.phases()
        made = runner("stabilize", StabilizeJob(task="labels", steps=2, share=1.0))
        assert (made["name"], made["state"], made["steps"]) == ("labels", "trained", 2)

    def test_what_was_added_is_fitted_later(self, runner: Runner, upload: Callable[[str], Path]) -> None:
        added = runner("add", uploaded(upload("clip.mp4")))
        fitted = runner("fit", FitJob(video=added["video_id"], tasks=(), preset="micro"))
        assert fitted["video_id"] == added["video_id"]
        assert fitted["state"] in FITTED

    def test_stopped_anywhere_it_goes_on_from_its_checkpoints(
        self, runner: Runner, upload: Callable[[str], Path]
    ) -> None:
        path = upload("clip.mp4")
        write_clip(path, frames=48)  # several segments
        request = uploaded(path, preset="micro")
        begun = []
        for share in (0, 0.2, 0.5):
            runner.heard, runner.stops = [], partial(runner.has_fitted, share)
            with pytest.raises(Stopped):
                runner("ingest", request)
            begun.append(runner.first_fitted())
            assert runner.archive.videos() == []
        kept = {path.name for path in (runner.archive.catalog.folder / "fits").rglob("segment-*")}
        assert kept == {"segment-0.finished", "segment-1.pt"}
        runner.heard, runner.stops = [], lambda: False
        assert runner("ingest", request)["frames"] == 48
        # The segment that was finished is not fitted again.
        assert runner.first_fitted() > begun[0]
        assert len(runner.archive.videos()) == 1
        assert not list((runner.archive.catalog.folder / "fits").rglob("segment-*"))

    def test_a_full_disk_while_fitting_is_an_error_that_says_so(
        self, runner: Runner, upload: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(self: Path, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        path = upload("clip.mp4")
        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(StoreError, match="No space left") as failed:
            runner("ingest", uploaded(path, preset="micro"))
        assert (described(failed.value).status, described(failed.value).retry) == (507, True)


def test_two_runs_on_one_machine_do_the_work_once(
    runner: Runner, upload: Callable[[str], Path], queue: JobQueue, settings: ServiceSettings
) -> None:
    paths: Sequence[Path] = [upload("a.mp4"), upload("b.mp4")]
    results: list[dict[str, Any]] = []

    def work(path: Path) -> None:
        own = Runner(runner.archive, queue, settings)
        results.append(own("add", uploaded(path)))

    threads = [threading.Thread(target=work, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result["already_stored"] for result in results) == [False, True]
    assert len(runner.archive.videos()) == 1
