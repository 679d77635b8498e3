"""Workers: one job after the other, each ended as it should be, whatever comes of it."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nvpstore.api.jobs import worker as module
from nvpstore.api.jobs.failures import OURS
from nvpstore.api.jobs.job import Job, JobKind
from nvpstore.api.jobs.orders import AFRESH, Orders
from nvpstore.api.jobs.queue import JobQueue
from nvpstore.api.jobs.requests import IngestJob
from nvpstore.api.jobs.run import Stopped
from nvpstore.api.jobs.worker import Worker
from nvpstore.api.service.settings import ServiceSettings
from nvpstore.archive import Archive
from nvpstore.errors import StoreError

SECONDS = 60.0


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue(tmp_path / "state" / "jobs.sqlite", lease_seconds=0.8, retry_seconds=0)


@pytest.fixture
def stopping() -> threading.Event:
    return threading.Event()


@pytest.fixture
def worker(archive: Archive, queue: JobQueue, settings: ServiceSettings, stopping: threading.Event) -> Worker:
    return Worker(archive, queue, settings, name="worker", device="cpu", stopping=stopping)


def submitted(queue: JobQueue, path: Path, *, kind: JobKind = "add", **options: Any) -> Job:
    request = IngestJob(file=str(path), original_name="clip.mp4", **{"tasks": (), **options})
    return queue.submit(kind, request.to_json(), owner="me")[0]


def work_one(worker: Worker, queue: JobQueue) -> bool:
    lease = queue.claim("worker", module.KINDS)
    assert lease is not None
    return worker.work(lease)


def texts(queue: JobQueue, job: Job) -> str:
    return "\n".join(str(e.data["text"]) for e in queue.events(job.id) if e.kind == "log")


class TestWork:
    def test_a_job_is_done_and_says_what_came_of_it(
        self, worker: Worker, queue: JobQueue, upload: Callable[[str], Path]
    ) -> None:
        path = upload("clip.mp4")
        job = submitted(queue, path, name="gate")
        assert work_one(worker, queue)
        done = queue.get(job.id)
        assert (done.state, done.worker) == ("done", None)
        assert done.result is not None
        assert (done.result["name"], done.result["frames"]) == ("gate", 12)
        assert done.progress is not None
        assert done.progress["phase"] == "scan"
        assert "96x64" in texts(queue, job)
        assert not path.parent.exists()

    def test_what_is_no_video_fails_at_once_and_says_why(
        self, worker: Worker, queue: JobQueue, upload: Callable[[str], Path]
    ) -> None:
        path = upload("clip.mp4")
        path.write_bytes(b"no video")
        job = submitted(queue, path)
        assert work_one(worker, queue)
        failed = queue.get(job.id)
        assert (failed.state, failed.attempts) == ("failed", 1)
        assert failed.error is not None
        assert failed.error["status"] == 422
        assert failed.error["detail"].startswith("clip.mp4: ")
        assert not path.parent.exists()

    def test_a_store_that_fails_gets_another_attempt(
        self, worker: Worker, queue: JobQueue, upload: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = submitted(queue, upload("clip.mp4"))
        with monkeypatch.context() as patch:
            patch.setattr(module, "run_job", _raising(StoreError("S3 had a moment")))
            assert work_one(worker, queue)
        assert (queue.get(job.id).state, queue.get(job.id).failures) == ("queued", 1)
        assert "attempt 1 failed: S3 had a moment" in texts(queue, job)
        assert work_one(worker, queue)
        assert queue.get(job.id).state == "done"

    def test_what_nobody_expected_is_logged_and_not_shown_and_ends_the_process(
        self,
        worker: Worker,
        queue: JobQueue,
        upload: Callable[[str], Path],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(module, "run_job", _raising(KeyError("secret detail")))
        job = submitted(queue, upload("clip.mp4"))
        with caplog.at_level(logging.INFO):
            assert not worker.run()
        assert "secret detail" in caplog.text
        assert job.id in caplog.text
        assert "Traceback" not in str(queue.events(job.id))
        assert "secret detail" not in str(queue.events(job.id))
        assert OURS in texts(queue, job)

    def test_several_jobs_one_after_the_other(
        self, worker: Worker, queue: JobQueue, upload: Callable[[str], Path], stopping: threading.Event
    ) -> None:
        jobs = [submitted(queue, upload(f"{number}.mp4")) for number in range(3)]
        running = threading.Thread(target=worker.run)
        running.start()
        while any(not queue.get(job.id).final for job in jobs):
            stopping.wait(0.02)
        stopping.set()
        running.join(SECONDS)
        assert not running.is_alive()
        assert {queue.get(job.id).state for job in jobs} == {"done"}

    def test_queries_are_not_its_business(self, worker: Worker, queue: JobQueue) -> None:
        queue.submit("query", {"sql": "SELECT 1"}, owner="me")
        assert queue.claim("worker", module.KINDS) is None


def _raising(error: Exception) -> Callable[..., dict[str, Any]]:
    def run_job(*_: object, **__: object) -> dict[str, Any]:
        raise error

    return run_job


class TestStopping:
    def long(self, began: threading.Event) -> Callable[..., dict[str, Any]]:
        """Work that stops when it is to, and only then."""

        def run_job(*_: object, should_stop: Callable[[], bool], **__: object) -> dict[str, Any]:
            began.set()
            while not should_stop():
                threading.Event().wait(0.01)
            raise Stopped

        return run_job

    def test_told_to_it_gives_its_job_back_and_ends(
        self,
        worker: Worker,
        queue: JobQueue,
        upload: Callable[[str], Path],
        stopping: threading.Event,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        began = threading.Event()
        monkeypatch.setattr(module, "run_job", self.long(began))
        path = upload("clip.mp4")
        job = submitted(queue, path)
        ended: list[bool] = []
        running = threading.Thread(target=lambda: ended.append(worker.run()))
        running.start()
        assert began.wait(SECONDS)
        stopping.set()
        running.join(SECONDS)
        given_back = queue.get(job.id)
        assert ended == [True]
        assert (given_back.state, given_back.failures) == ("queued", 0)
        assert path.exists()

    def test_a_cancelled_job_ends_and_the_worker_goes_on(
        self, worker: Worker, queue: JobQueue, upload: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        began = threading.Event()
        monkeypatch.setattr(module, "run_job", self.long(began))
        job = submitted(queue, upload("clip.mp4"))
        threading.Thread(target=lambda: (began.wait(SECONDS), queue.cancel(job.id))).start()
        assert work_one(worker, queue)
        assert queue.get(job.id).state == "cancelled"

    def test_the_parents_end_stops_it(
        self, tmp_path: Path, archive: Archive, settings: ServiceSettings
    ) -> None:
        orders = _orders(tmp_path, archive, settings)
        done = subprocess.run(
            [sys.executable, "-m", "nvpstore.api.jobs.worker"],
            input=orders.to_line() + "\n",  # and the pipe's end
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert (done.returncode, done.stdout) == (0, "")

    def test_without_an_archive_it_says_so_and_ends(
        self, tmp_path: Path, archive: Archive, settings: ServiceSettings
    ) -> None:
        orders = replace(_orders(tmp_path, archive, settings), archive=str(tmp_path / "nowhere"))
        done = subprocess.run(
            [sys.executable, "-m", "nvpstore.api.jobs.worker"],
            input=orders.to_line() + "\n",
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "cannot start" in json.loads(line)["message"]

    def test_a_hung_process_is_ended_though_nothing_in_it_runs(self, tmp_path: Path) -> None:
        # Nothing of Python runs while a C function holds the interpreter.
        program = (
            "import ctypes\n"
            "from nvpstore.api.jobs.worker import Worker\n"
            "worker = Worker(None, None, None, name='w', hung_seconds=1.0)\n"
            "worker._live_on()\n"
            "ctypes.PyDLL(None).sleep(600)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 1
        assert "Timeout" in done.stderr


def _orders(tmp_path: Path, archive: Archive, settings: ServiceSettings) -> Orders:
    return Orders(
        archive=archive.store.root,
        queue=tmp_path / "jobs.sqlite",
        worker="worker-0",
        settings=settings,
        device="cpu",
        lease_seconds=5.0,
        grace_seconds=1.0,
    )


class TestOrders:
    def test_a_line_says_all_of_them(self, tmp_path: Path, archive: Archive) -> None:
        settings = ServiceSettings(
            state_dir=tmp_path / "state",
            worker_bytes=2**31,
            roots=("/a b", "s3://bucket/ä"),
            upload_bytes=5,
            upload_seconds=6.5,
            pixels=7,
        )
        orders = _orders(tmp_path, archive, settings)
        line = orders.to_line()
        assert "\n" not in line
        assert Orders.from_line(line) == orders

    def test_status_that_asks_for_a_new_process_is_no_others(self) -> None:
        assert AFRESH not in (0, 1, 2)


def test_its_memory_can_be_bounded(tmp_path: Path) -> None:
    program = (
        "from nvpstore.api.jobs.worker import _limit_memory\n"
        "_limit_memory(2**30)\n"
        "try: bytearray(2**31)\n"
        "except MemoryError: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"


def test_orders_are_read_no_further_than_their_line(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"first\nsecond")
    os.close(writer)
    given = io.FileIO(reader)
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, size: read(reader, size))
    assert module._first_line() == b"first\n"
    monkeypatch.undo()
    assert given.read() == b"second"
    given.close()
