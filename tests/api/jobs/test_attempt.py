"""Attempts: their leases are kept, and they end once, by the work or by whoever has to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nvpstore.api.jobs import attempt as module
from nvpstore.api.jobs.attempt import Attempt
from nvpstore.api.jobs.failures import described
from nvpstore.api.jobs.job import Lease
from nvpstore.api.jobs.queue import JobQueue
from nvpstore.api.jobs.requests import IngestJob
from nvpstore.api.service.settings import ServiceSettings
from nvpstore.errors import SourceError, StoreError
from nvpstore.ingest.pipeline import IngestProgress

SECONDS = 60.0  # nothing here takes so long, on any machine


@dataclass
class World:
    """A job that is claimed, and attempts at it whose process ends in name only."""

    queue: JobQueue
    lease: Lease
    settings: ServiceSettings
    stopping: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    status: int | None = None

    def attempt(self, **options: Any) -> Attempt:
        return Attempt(
            self.queue,
            self.lease,
            spool_dir=self.settings.spool_dir,
            stopping=self.stopping,
            leave=self._leave,
            **options,
        )

    def _leave(self, status: int) -> None:
        self.status = status
        self.left.set()

    @property
    def state(self) -> str:
        return self.queue.get(self.lease.job.id).state


@pytest.fixture
def upload_of_job(upload: Callable[[str], Path]) -> Path:
    return upload("clip.mp4")


@pytest.fixture
def world(tmp_path: Path, settings: ServiceSettings, upload_of_job: Path) -> World:
    # The real clock, and a lease that is looked after ten times a second.
    queue = JobQueue(tmp_path / "jobs.sqlite", lease_seconds=0.4, retry_seconds=0)
    request = IngestJob(file=str(upload_of_job), original_name="clip.mp4").to_json()
    queue.submit("add", request, owner="me")
    lease = queue.claim("worker", ["add"])
    assert lease is not None
    return World(queue=queue, lease=lease, settings=settings)


def wait_until(holds: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(SECONDS / 0.01)):
        if holds():
            return
        pause.wait(0.01)
    raise AssertionError("it never came to hold")


class TestLease:
    def test_it_is_kept_while_the_work_says_nothing(self, world: World) -> None:
        with world.attempt() as attempt:
            seen: list[int] = []
            # Long past the lease: others look again and again.
            for _ in range(12):
                assert world.queue.claim("other", ["add"]) is None
                threading.Event().wait(0.1)
                seen.append(1)
            assert not attempt.should_stop()
            attempt.finish({"n": 1})
        assert (world.state, len(seen)) == ("done", 12)

    def test_once_lost_the_work_is_to_stop_and_counts_for_nothing(
        self, world: World, upload_of_job: Path
    ) -> None:
        with world.attempt() as attempt:
            world.queue.lost("worker", "was taken for dead")
            other = world.queue.claim("other", ["add"])
            assert other is not None
            wait_until(attempt.should_stop)
            assert attempt.reason == "lost"
            attempt.stop()
            attempt.finish({"by": "the wrong one"})
        assert world.state == "running"
        assert upload_of_job.exists()  # the other one reads it
        world.queue.finish(other, {"by": "other"})

    def test_a_queue_that_fails_now_and_then_ends_nothing(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failed = threading.Event()

        def fails(lease: Lease) -> bool:
            failed.set()
            raise StoreError("the disk had a moment")

        with world.attempt() as attempt, monkeypatch.context() as patch:
            patch.setattr(world.queue, "goes_on", fails)
            assert failed.wait(SECONDS)
            assert not attempt.should_stop()
            attempt.finish({})
        assert world.state == "done"


class TestEnds:
    def test_done_the_upload_goes(self, world: World, upload_of_job: Path) -> None:
        with world.attempt() as attempt:
            attempt.finish({"n": 1})
        assert (world.state, upload_of_job.parent.exists()) == ("done", False)

    def test_failed_for_good_it_goes_too(self, world: World, upload_of_job: Path) -> None:
        with world.attempt() as attempt:
            attempt.fail(described(SourceError("no video")))
        assert (world.state, upload_of_job.parent.exists()) == ("failed", False)
        error = world.queue.get(world.lease.job.id).error
        assert error is not None
        assert (error["status"], error["detail"], error["error"]) == (422, "no video", "SourceError")

    def test_for_another_attempt_it_stays(self, world: World, upload_of_job: Path) -> None:
        with world.attempt() as attempt:
            attempt.fail(described(StoreError("later")))
        assert (world.state, upload_of_job.exists()) == ("queued", True)

    def test_told_to_stop_the_job_is_given_back(self, world: World, upload_of_job: Path) -> None:
        with world.attempt() as attempt:
            world.stopping.set()
            assert attempt.reason == "stopping"
            attempt.stop()
        job = world.queue.get(world.lease.job.id)
        assert (job.state, job.failures, upload_of_job.exists()) == ("queued", 0, True)

    def test_cancelled_it_is_and_its_upload_goes(self, world: World, upload_of_job: Path) -> None:
        with world.attempt() as attempt:
            world.queue.cancel(world.lease.job.id)
            wait_until(attempt.should_stop)
            attempt.stop()
        assert (world.state, upload_of_job.parent.exists()) == ("cancelled", False)

    def test_only_the_first_end_counts(self, world: World) -> None:
        with world.attempt() as attempt:
            attempt.finish({"n": 1})
            attempt.fail(described(SourceError("late")))
        assert world.queue.get(world.lease.job.id).result == {"n": 1}

    def test_an_end_that_cannot_be_recorded_at_once_is_recorded_later(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_PAUSES_SECONDS", (0.0, 0.0, 0.0))
        finish, tries = world.queue.finish, list[int]()

        def fails_twice(lease: Lease, result: Any) -> None:
            tries.append(1)
            if len(tries) < 3:
                raise StoreError("the disk is full")
            finish(lease, result)

        monkeypatch.setattr(world.queue, "finish", fails_twice)
        with world.attempt() as attempt:
            attempt.finish({"n": 1})
        assert (world.state, len(tries)) == ("done", 3)


class TestInsisting:
    def test_work_that_does_not_stop_is_ended_with_its_process(
        self, world: World, upload_of_job: Path
    ) -> None:
        with world.attempt(grace_seconds=0.0):
            world.stopping.set()
            assert world.left.wait(SECONDS)
        job = world.queue.get(world.lease.job.id)
        assert (world.status, job.state, job.failures) == (0, "queued", 0)
        assert upload_of_job.exists()

    def test_so_is_work_that_was_cancelled(self, world: World, upload_of_job: Path) -> None:
        with world.attempt(grace_seconds=0.0):
            world.queue.cancel(world.lease.job.id)
            assert world.left.wait(SECONDS)
        assert (world.status, world.state) == (0, "cancelled")
        assert not upload_of_job.parent.exists()

    def test_work_that_is_stuck_fails(self, world: World) -> None:
        with world.attempt(stall_seconds=0.0):
            assert world.left.wait(SECONDS)
        job = world.queue.get(world.lease.job.id)
        assert (world.status, job.state) == (1, "failed")
        assert job.error is not None
        assert job.error["detail"] == "no progress was made for 0 s"

    def test_as_long_as_it_goes_on_the_process_is_alive(self, world: World) -> None:
        alive = threading.Event()
        with world.attempt(alive=alive.set) as attempt:
            assert alive.wait(SECONDS)
            attempt.finish({})
        assert world.status is None


class TestProgress:
    def test_each_phase_is_told_and_not_each_step(self, world: World) -> None:
        now = [100.0]
        with world.attempt(clock=lambda: now[0]) as attempt:
            for phase in ("scan", "fit"):
                for done in range(50):
                    attempt.progress(IngestProgress(phase=phase, done=done, total=50))
            now[0] += 5
            attempt.progress(IngestProgress(phase="fit", done=50, total=50, psnr=30.0, eta_seconds=0.0))
            attempt.say("nearly there")
            attempt.finish({})
        events = [e for e in world.queue.events(world.lease.job.id) if e.kind in ("progress", "log")]
        assert [(e.data.get("phase"), e.data.get("done")) for e in events[:3]] == [
            ("scan", 0),
            ("fit", 0),
            ("fit", 50),
        ]
        assert events[3].data == {"text": "nearly there"}
        progress = world.queue.get(world.lease.job.id).progress
        assert progress is not None
        assert progress["psnr"] == 30.0
