"""The supervisor and its processes, which are killed here in every way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nvpstore.api.jobs import supervisor as module
from nvpstore.api.jobs.job import Job
from nvpstore.api.jobs.orders import AFRESH
from nvpstore.api.jobs.queue import JobQueue
from nvpstore.api.jobs.requests import IngestJob
from nvpstore.api.jobs.supervisor import Supervisor, visible_gpus
from nvpstore.api.service.settings import ServiceSettings
from nvpstore.archive import Archive
from tests.api.conftest import write_clip

SECONDS = 600.0  # nothing here takes so long, on any machine
FRAMES = 144  # six segments or more: some seconds of work, of which each second is told
LEASE_SECONDS = 3.0


def wait_until(holds: Callable[[], object]) -> None:
    until = time.monotonic() + SECONDS
    while not holds():
        if time.monotonic() > until:
            raise AssertionError("it never came to hold")
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for each other in turns take minutes on a machine that is busy."""
    for name in ("NVP_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue(tmp_path / "state" / "jobs.sqlite", lease_seconds=LEASE_SECONDS)


@pytest.fixture
def supervised(
    archive: Archive, queue: JobQueue, settings: ServiceSettings
) -> Iterator[Callable[..., Supervisor]]:
    """A supervisor of so many workers, that is stopped in the end."""
    started: list[Supervisor] = []

    def start(workers: int = 1, uri: str | None = None) -> Supervisor:
        supervisor = Supervisor(
            uri or archive.store.root,
            queue.path,
            replace(settings, workers=workers),
            device="cpu",
            lease_seconds=LEASE_SECONDS,
        )
        supervisor.start()
        started.append(supervisor)
        return supervisor

    yield start
    for supervisor in started:
        supervisor.stop(SECONDS)
        assert supervisor.alive() == 0


def submitted(queue: JobQueue, path: Path, kind: str = "add") -> Job:
    request = IngestJob(file=str(path), original_name="clip.mp4", tasks=(), preset="micro")
    return queue.submit(kind, request.to_json(), owner="me")[0]  # type: ignore[arg-type]


def fitting(queue: JobQueue, job: Job) -> bool:
    """Whether its fit has begun, and its first segment is done."""
    found = queue.get(job.id)
    assert not found.final, "it was done before anybody could look"
    return (
        found.state == "running"
        and found.progress is not None
        and found.progress["phase"] == "fit"
        and found.progress["done"] > found.progress["total"] / 6
    )


def pid_of(queue: JobQueue, job: Job) -> int:
    """The process that has the job, found by its name, which `ps` shows."""
    worker = queue.get(job.id).worker
    assert worker is not None
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().split(b"\0")[-2:-1] == [worker.encode()]:
                return int(path.parent.name)
        except OSError:
            continue
    raise AssertionError(f"no process is called {worker}")


def runs(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def fit_positions(queue: JobQueue, job: Job, *, attempt: int) -> list[int]:
    """How far the fit was said to be during one attempt."""
    events = queue.events(job.id)
    begun = [e.number for e in events if e.data.get("state") == "running"] + [events[-1].number + 1]
    return [
        int(e.data["done"])
        for e in events
        if e.kind == "progress"
        and e.data["phase"] == "fit"
        and begun[attempt - 1] < e.number < begun[attempt]
    ]


@pytest.mark.slow
class TestWork:
    def test_several_workers_share_the_jobs(
        self, supervised: Callable[..., Supervisor], queue: JobQueue, upload: Callable[[str], Path]
    ) -> None:
        jobs = []
        for number in range(6):
            path = upload(f"{number}.mp4")
            write_clip(path, frames=6 + number)
            jobs.append(submitted(queue, path))
        supervisor = supervised(2)
        wait_until(lambda: all(queue.get(job.id).final for job in jobs))
        assert supervisor.alive() == 2
        assert {queue.get(job.id).state for job in jobs} == {"done"}

    def test_killed_in_the_middle_of_a_fit_another_goes_on_and_there_is_one_video(
        self,
        supervised: Callable[..., Supervisor],
        queue: JobQueue,
        upload: Callable[[str], Path],
        archive: Archive,
    ) -> None:
        path = upload("clip.mp4")
        write_clip(path, frames=FRAMES)
        job = submitted(queue, path, "ingest")
        supervised()
        wait_until(lambda: fitting(queue, job))
        os.kill(pid_of(queue, job), signal.SIGKILL)
        wait_until(lambda: queue.get(job.id).final)
        done = queue.get(job.id)
        assert (done.state, done.failures, done.attempts) == ("done", 1, 2)
        texts = [str(e.data.get("text")) for e in queue.events(job.id)]
        assert any("was ended by SIGKILL during attempt 1" in text for text in texts)
        # Segments that were done are not fitted again.
        assert fit_positions(queue, job, attempt=2)[0] > fit_positions(queue, job, attempt=1)[0]
        assert [video["frames"] for video in archive.videos()] == [FRAMES]
        assert not path.parent.exists()

    def test_told_to_end_a_worker_gives_its_job_back_without_a_failure(
        self,
        supervised: Callable[..., Supervisor],
        queue: JobQueue,
        upload: Callable[[str], Path],
        archive: Archive,
    ) -> None:
        path = upload("clip.mp4")
        write_clip(path, frames=FRAMES)
        job = submitted(queue, path, "ingest")
        first = supervised()
        wait_until(lambda: fitting(queue, job))
        first.stop(SECONDS)
        given_back = queue.get(job.id)
        assert (given_back.state, given_back.failures) == ("queued", 0)
        assert archive.videos() == []
        supervised()
        wait_until(lambda: queue.get(job.id).final)
        assert (queue.get(job.id).state, queue.get(job.id).failures) == ("done", 0)
        assert [video["frames"] for video in archive.videos()] == [FRAMES]

    def test_a_cancelled_fit_ends_and_leaves_no_video(
        self,
        supervised: Callable[..., Supervisor],
        queue: JobQueue,
        upload: Callable[[str], Path],
        archive: Archive,
    ) -> None:
        path = upload("clip.mp4")
        write_clip(path, frames=FRAMES)
        job = submitted(queue, path, "ingest")
        supervised()
        wait_until(lambda: fitting(queue, job))
        queue.cancel(job.id)
        wait_until(lambda: queue.get(job.id).final)
        assert queue.get(job.id).state == "cancelled"
        wait_until(lambda: not path.parent.exists())
        assert archive.videos() == []


@pytest.mark.slow
class TestItsOwnEnd:
    def begun(self, archive: Archive, queue: JobQueue, settings: ServiceSettings) -> subprocess.Popen[bytes]:
        """A process that does nothing but supervise one worker."""
        program = (
            "import sys, time; from pathlib import Path\n"
            "from nvpstore.api.jobs.supervisor import Supervisor\n"
            "from nvpstore.api.service.settings import ServiceSettings\n"
            "settings = ServiceSettings(state_dir=Path(sys.argv[3]))\n"
            "supervisor = Supervisor(sys.argv[1], Path(sys.argv[2]), settings, 'cpu',\n"
            f"    lease_seconds={LEASE_SECONDS})\n"
            "supervisor.start()\n"
            "time.sleep(10**6)\n"
        )
        arguments = [archive.store.root, str(queue.path), str(settings.state_dir)]
        return subprocess.Popen([sys.executable, "-c", program, *arguments])

    def test_its_workers_end_with_it(
        self,
        archive: Archive,
        queue: JobQueue,
        settings: ServiceSettings,
        upload: Callable[[str], Path],
        supervised: Callable[..., Supervisor],
    ) -> None:
        path = upload("clip.mp4")
        write_clip(path, frames=FRAMES)
        job = submitted(queue, path, "ingest")
        parent = self.begun(archive, queue, settings)
        wait_until(lambda: fitting(queue, job))
        worker = pid_of(queue, job)
        parent.kill()
        parent.wait()
        wait_until(lambda: not runs(worker))
        given_back = queue.get(job.id)
        assert (given_back.state, given_back.failures) == ("queued", 0)
        supervised()
        wait_until(lambda: queue.get(job.id).final)
        assert queue.get(job.id).state == "done"
        assert [video["frames"] for video in archive.videos()] == [FRAMES]

    def test_all_killed_at_once_the_lease_runs_out_and_the_next_go_on(
        self,
        archive: Archive,
        queue: JobQueue,
        settings: ServiceSettings,
        upload: Callable[[str], Path],
        supervised: Callable[..., Supervisor],
    ) -> None:
        path = upload("clip.mp4")
        write_clip(path, frames=FRAMES)
        job = submitted(queue, path, "ingest")
        parent = self.begun(archive, queue, settings)
        wait_until(lambda: fitting(queue, job))
        worker = pid_of(queue, job)
        parent.kill()
        os.kill(worker, signal.SIGKILL)
        parent.wait()
        assert queue.get(job.id).state == "running"
        supervised()
        wait_until(lambda: queue.get(job.id).final)
        done = queue.get(job.id)
        assert (done.state, done.failures, done.attempts) == ("done", 1, 2)
        assert [video["frames"] for video in archive.videos()] == [FRAMES]


class TestKeeping:
    def test_without_workers_there_are_none(self, supervised: Callable[..., Supervisor]) -> None:
        assert supervised(0).alive() == 0

    def test_one_that_cannot_start_is_not_started_again_at_once(self) -> None:
        place, now, pauses = module._Place(number=0), 0.0, []
        for _ in range(10):
            place.started_at = now
            place.ended(1, now + 1)
            pauses.append(place.not_before - now - 1)
            now = place.not_before
        assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
        assert pauses[-1] == 60.0

    def test_one_that_has_lived_or_asks_for_it_is(self) -> None:
        place = module._Place(number=0, deaths=5)
        place.ended(-9, now=61.0)
        assert (place.deaths, place.not_before) == (0, 61.0)
        for status in (0, AFRESH):
            place.started_at = 61.0
            place.ended(status, now=62.0)
            assert (place.deaths, place.not_before) == (0, 62.0)

    def test_uploads_that_nobody_needs_go_when_it_starts(
        self, supervised: Callable[..., Supervisor], queue: JobQueue, upload: Callable[[str], Path]
    ) -> None:
        old, new, cancelled = upload("a.mp4"), upload("b.mp4"), upload("c.mp4")
        for each in (old, old.parent):
            os.utime(each, (0, 0))
        queue.cancel(submitted(queue, cancelled).id)
        supervised(0)
        wait_until(lambda: not old.parent.exists() and not cancelled.parent.exists())
        assert new.exists()

    @pytest.mark.parametrize(
        ("status", "said"),
        [(-9, "was ended by SIGKILL"), (-11, "was ended by SIGSEGV"), (-200, "was ended by signal 200"),
         (3, "ended with status 3")],
    )  # fmt: skip
    def test_how_one_ended_is_said(self, status: int, said: str) -> None:
        assert module._death(status) == said


class TestDevices:
    @pytest.fixture
    def devices(self, tmp_path: Path) -> Path:
        for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm", "sda"):
            (tmp_path / name).touch()
        return tmp_path

    def test_they_are_numbered_as_cuda_numbers_them(self, devices: Path) -> None:
        assert visible_gpus({}, devices) == ["0", "1"]

    @pytest.mark.parametrize(
        ("named", "gpus"),
        [("2,3", ["2", "3"]), ("GPU-ab, GPU-cd", ["GPU-ab", "GPU-cd"]), ("", []), ("-1", [])],
    )
    def test_those_that_are_named_are_meant(self, devices: Path, named: str, gpus: list[str]) -> None:
        assert visible_gpus({"CUDA_VISIBLE_DEVICES": named}, devices) == gpus

    def test_without_devices_there_are_none(self, tmp_path: Path) -> None:
        assert visible_gpus({}, tmp_path / "nowhere") == []

    def test_workers_have_one_each_in_turn(
        self, archive: Archive, queue: JobQueue, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
        supervisor = Supervisor(archive.store.root, queue.path, replace(settings, workers=3))
        own = [supervisor._variables(place)["CUDA_VISIBLE_DEVICES"] for place in supervisor._places]
        assert own == ["5", "7", "5"]
        on_cpu = Supervisor(archive.store.root, queue.path, replace(settings, workers=3), device="cpu")
        assert "CUDA_VISIBLE_DEVICES" not in on_cpu._variables(on_cpu._places[0])

    def test_several_share_the_cores(
        self, archive: Archive, queue: JobQueue, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("NVP_THREADS", "OMP_NUM_THREADS"):
            monkeypatch.delenv(name)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
        alone = Supervisor(archive.store.root, queue.path, replace(settings, workers=1), device="cpu")
        three = Supervisor(archive.store.root, queue.path, replace(settings, workers=3), device="cpu")
        assert alone._variables(alone._places[0]) == {}
        assert three._variables(three._places[0]) == {"NVP_THREADS": "2", "OMP_NUM_THREADS": "2"}
        monkeypatch.setenv("NVP_THREADS", "5")
        assert three._variables(three._places[0]) == {"OMP_NUM_THREADS": "2"}
