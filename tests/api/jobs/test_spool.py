"""Uploads on the disk: which one a job may name, and when they go."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nvpstore.api.jobs import spool
from nvpstore.api.jobs.queue import JobQueue
from nvpstore.api.jobs.requests import IngestJob
from nvpstore.api.service.settings import ServiceSettings
from nvpstore.errors import SourceError, StoreError, UsageError
from tests.api.jobs.conftest import Clock

DAY = 24 * 3600


def of(path: Path) -> dict[str, object]:
    return IngestJob(file=str(path), original_name=path.name).to_json()


class TestUploads:
    def test_a_finished_one_is_taken(self, upload: Callable[[str], Path], settings: ServiceSettings) -> None:
        path = upload("clip.mp4")
        assert spool.uploaded(settings.spool_dir, str(path)) == path

    def test_nothing_else_is_one(
        self, upload: Callable[[str], Path], settings: ServiceSettings, tmp_path: Path
    ) -> None:
        path = upload("clip.mp4")
        (tmp_path / "other.mp4").write_bytes(b"other")
        (path.parent / "link.mp4").symlink_to(tmp_path / "other.mp4")
        for name in (
            str(tmp_path / "other.mp4"),
            str(settings.spool_dir / "clip.mp4"),
            str(path.parent / "deeper" / "clip.mp4"),
            f"{path.parent}/../../../other.mp4",
            str(path.parent / "link.mp4"),
            "/etc/passwd",
        ):
            with pytest.raises(UsageError, match="no upload of this server"):
                spool.uploaded(settings.spool_dir, name)

    def test_one_that_is_gone_is_to_be_sent_again(
        self, upload: Callable[[str], Path], settings: ServiceSettings
    ) -> None:
        path = upload("clip.mp4")
        path.unlink()
        with pytest.raises(SourceError, match="send it again"):
            spool.uploaded(settings.spool_dir, str(path))

    def test_dropped_with_its_job_its_folder_goes_and_no_other(
        self, upload: Callable[[str], Path], settings: ServiceSettings, queue: JobQueue, tmp_path: Path
    ) -> None:
        mine, other = upload("a.mp4"), upload("b.mp4")
        outside = tmp_path / "kept" / "c.mp4"
        outside.parent.mkdir()
        outside.write_bytes(b"kept")
        for path in (mine, outside):
            spool.drop(settings.spool_dir, queue.submit("add", of(path), owner="me")[0])
        assert not mine.parent.exists()
        assert other.exists()
        assert outside.exists()

    def test_a_job_without_one_drops_nothing(self, settings: ServiceSettings, queue: JobQueue) -> None:
        settings.spool_dir.mkdir(parents=True)
        spool.drop(settings.spool_dir, queue.submit("fit", {"video": "x"}, owner="me")[0])
        assert settings.spool_dir.exists()


class TestSweeping:
    def aged(self, path: Path, clock: Clock, seconds: float) -> None:
        for each in (path, path.parent):
            os.utime(each, (clock.now - seconds, clock.now - seconds))

    def test_what_a_living_job_needs_stays_however_old(
        self, upload: Callable[[str], Path], settings: ServiceSettings, queue: JobQueue, clock: Clock
    ) -> None:
        waiting, running = upload("a.mp4"), upload("b.mp4")
        queue.submit("add", of(running), owner="me")
        queue.claim("worker", ["add"])
        queue.submit("add", of(waiting), owner="me")
        for path in (waiting, running):
            self.aged(path, clock, 30 * DAY)
        assert spool.sweep(settings.spool_dir, queue, clock=clock) == []

    def test_what_nobody_needs_goes_after_a_day(
        self, upload: Callable[[str], Path], settings: ServiceSettings, queue: JobQueue, clock: Clock
    ) -> None:
        arriving, left = upload("a.mp4"), upload("b.mp4")
        self.aged(arriving, clock, DAY - 60)
        self.aged(left, clock, DAY + 60)
        assert spool.sweep(settings.spool_dir, queue, clock=clock) == [left.parent]
        assert arriving.exists()
        assert not left.parent.exists()

    def test_a_folder_that_is_written_to_is_not_old(
        self, upload: Callable[[str], Path], settings: ServiceSettings, queue: JobQueue, clock: Clock
    ) -> None:
        path = upload("a.mp4")
        self.aged(path, clock, 2 * DAY)
        os.utime(path, (clock.now, clock.now))
        assert spool.sweep(settings.spool_dir, queue, clock=clock) == []

    def test_those_of_jobs_that_ended_go_at_once(
        self, upload: Callable[[str], Path], settings: ServiceSettings, queue: JobQueue, clock: Clock
    ) -> None:
        path = upload("a.mp4")
        self.aged(path, clock, 0)
        queue.cancel(queue.submit("add", of(path), owner="me")[0].id)
        assert spool.sweep(settings.spool_dir, queue, clock=clock) == [path.parent]

    def test_a_room_stays_for_as_long_as_it_is_used_and_goes_when_its_process_is_gone(
        self, settings: ServiceSettings, queue: JobQueue, clock: Clock, tmp_path: Path
    ) -> None:
        with spool.room(settings.spool_dir) as folder:
            clip = folder / "clip.mp4"
            clip.write_bytes(b"x")
            self.aged(clip, clock, 30 * DAY)
            self.aged(folder / spool.HELD, clock, 30 * DAY)
            assert spool.sweep(settings.spool_dir, queue, clock=clock) == []
            shutil.copytree(folder, left := settings.spool_dir / "of-a-killed-worker")
            self.aged(left / spool.HELD, clock, 0)
            assert spool.sweep(settings.spool_dir, queue, clock=clock) == []  # it may be in the making
            for path in left.iterdir():
                self.aged(path, clock, 61)
            assert spool.sweep(settings.spool_dir, queue, clock=clock) == [left]

    def test_without_uploads_there_is_nothing_to_do(self, settings: ServiceSettings, queue: JobQueue) -> None:
        assert spool.sweep(settings.spool_dir, queue) == []


class TestRoom:
    def test_a_room_is_empty_and_goes_with_all_in_it(self, tmp_path: Path) -> None:
        with spool.room(tmp_path / "spool") as folder:
            (folder / "file").write_bytes(b"x")
        assert list((tmp_path / "spool").iterdir()) == []

    def test_one_that_cannot_be_made_is_an_error_of_the_store(self, tmp_path: Path) -> None:
        (tmp_path / "spool").write_bytes(b"")
        with pytest.raises(StoreError, match="cannot write"), spool.room(tmp_path / "spool"):
            pass

    def test_bytes_need_a_disk_with_room(self, tmp_path: Path) -> None:
        spool.check_free(tmp_path, 1)
        with pytest.raises(StoreError, match="the disk is full"):
            spool.check_free(tmp_path, 2**62)
