"""`python -m benchmarks.soak media`: 500 damaged media files through the queue, with real workers.

Small real clips in many containers and codecs are damaged: bits flipped, cut off, lengths changed, boxes
exchanged, joined, and more (`benchmarks.soak.mutations`). Each becomes a job of a server's queue, as uploads
do; every tenth is fitted, the others are registered. Each job must end as done, or as failed with a reason
that was meant: no worker may be lost, and no error may be one that nobody expected. Whole files are among
them, and must be done.

In the end, and after a quarter, workers are idle: none may have more files open than then, or more memory by
much; no process, temporary file or upload may be left; and the archive holds what was done, undamaged.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nvpstore
from benchmarks.soak.mutations import Mutation, mutations
from benchmarks.soak.outcome import Options, Outcome
from nvpstore.api.jobs.failures import OURS
from nvpstore.api.jobs.job import Job
from nvpstore.api.jobs.queue import JobQueue
from nvpstore.api.jobs.requests import IngestJob
from nvpstore.api.jobs.supervisor import Supervisor
from nvpstore.api.service.settings import ServiceSettings
from nvpstore.archive import Archive

FILES, FITTED = 500, 10  # every tenth is fitted
WORKERS = 2
MOST_SECONDS = 7200.0
GROWN_BYTES = 256 * 2**20  # between a quarter and the end: what allocators keep, but no leak of every file
GROWN_FILES = 4
TORCH_CACHE = "torchinductor_"  # one folder a user, made by importing its compiler
MOST_BROKEN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What an idle worker takes."""

    resident_bytes: int
    open_files: int
    threads: int


def run(options: Options) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="soak-media-") as folder, _environment(Path(folder)):
        soak = Soak(Path(folder), options.seed)
        return soak.run(options.count(FILES))


class Soak:
    """An archive, a queue, workers, and the files that they get."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed
        self._archive = Archive.create(folder / "archive")
        self._settings = ServiceSettings(state_dir=folder / "state", workers=WORKERS, upload_seconds=600.0)
        self._queue = JobQueue(folder / "state" / "jobs.sqlite")
        self._jobs: dict[str, Mutation] = {}
        self._broken: list[str] = []

    def run(self, count: int) -> Outcome:
        files = list(mutations(self._folder / "specimens", count, seed=self._seed))
        quarter = max(1, count // 4)
        supervisor = Supervisor(str(self._folder / "archive"), self._queue.path, self._settings, device="cpu")
        supervisor.start()
        started = time.monotonic()
        try:
            self._through(files[:quarter])
            early = _workers()
            self._through(files[quarter:])
            late = _workers()
        finally:
            supervisor.stop(60.0)
        seconds = time.monotonic() - started
        self._check_jobs()
        self._check_workers(early, late)
        self._check_left()
        self._check_archive()
        return Outcome(
            question="can a damaged video do more than fail with a reason?",
            figures={**self._figures(), "workers": _figures(early, late), "seconds": round(seconds, 1)},
            broken=tuple(self._broken[:MOST_BROKEN]),
        )

    # ------------------------------------------------------------ the files' way

    def _through(self, files: Sequence[Mutation]) -> None:
        """All of them, until nothing waits or runs."""
        for file in files:
            self._jobs[self._submit(file).id] = file
        until = time.monotonic() + MOST_SECONDS
        while any(not job.final for job in self._all()):
            if time.monotonic() > until:
                raise SystemExit(f"jobs were not done after {MOST_SECONDS:g} s")
            time.sleep(0.2)

    def _submit(self, file: Mutation) -> Job:
        folder = self._settings.spool_dir / f"{file.number:026d}"
        folder.mkdir(parents=True)
        path = folder / file.name
        path.write_bytes(file.data)
        fitted = file.number % FITTED == 0
        request = IngestJob(
            file=str(path),
            original_name=file.name,
            name=f"{file.number}",
            tasks=("labels",) if fitted else (),
            preset="micro",
        )
        return self._queue.submit("ingest" if fitted else "add", request.to_json(), owner="soak")[0]

    def _all(self) -> list[Job]:
        return self._queue.jobs(limit=10**6)

    # ------------------------------------------------------------ what must hold

    def _check_jobs(self) -> None:
        for job in self._all():
            file = self._jobs[job.id]
            where = f"file {file.number} ({file.what})"
            if job.state == "failed":
                detail = str((job.error or {}).get("detail", ""))
                if not detail or detail.startswith(OURS) or job.failures > 1:
                    self._broken.append(f"{where}: failed {job.failures} times, in the end with {job.error}")
                if str(self._folder) in detail:
                    self._broken.append(f"{where}: the reason names our folders: {detail}")
            elif job.state != "done" or job.failures:
                self._broken.append(f"{where}: {job.state} after {job.failures} failures")
            if file.what == "whole" and job.state != "done":
                self._broken.append(f"{where}: is whole, and {job.state}: {job.error}")

    def _check_workers(self, early: dict[int, State], late: dict[int, State]) -> None:
        if early.keys() != late.keys():
            self._broken.append(f"workers {sorted(early)} became {sorted(late)}")
        for pid in early.keys() & late.keys():
            grown = late[pid].resident_bytes - early[pid].resident_bytes
            if grown > GROWN_BYTES:
                self._broken.append(f"worker {pid} has grown by {grown} bytes")
            if late[pid].open_files > early[pid].open_files + GROWN_FILES:
                self._broken.append(f"worker {pid} has more files open: {early[pid]} became {late[pid]}")

    def _check_left(self) -> None:
        for place in (self._folder / "tmp", self._settings.spool_dir):
            left = sorted(path.name for path in place.iterdir() if not path.name.startswith(TORCH_CACHE))
            if left:
                self._broken.append(f"{len(left)} things are left in {place.name}: {left[:5]}")
        if left := list(_processes(str(self._folder))):
            self._broken.append(f"processes are left: {left}")

    def _check_archive(self) -> None:
        done = {str((job.result or {}).get("video_id")) for job in self._all() if job.state == "done"}
        archive = nvpstore.open(self._folder / "archive")
        stored = {str(video["video_id"]) for video in archive.videos()}
        if stored != done:
            self._broken.append(f"{len(done)} videos were done, {len(stored)} are stored")
        self._broken += [f"verify: {damage}" for damage in archive.verify().damages]

    # ------------------------------------------------------------ figures

    def _figures(self) -> dict[str, Any]:
        jobs = self._all()
        ends: dict[str, Counter[str]] = defaultdict(Counter)
        for job in jobs:
            ends[self._jobs[job.id].what][job.state] += 1
        return {
            "files": len(jobs),
            "fitted": sum(job.kind == "ingest" and job.state == "done" for job in jobs),
            "ends": dict(sorted(Counter(job.state for job in jobs).items())),
            "by_damage": {what: dict(sorted(states.items())) for what, states in sorted(ends.items())},
        }


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Workers' caches and temporary files where they are seen."""
    (folder / "tmp").mkdir()
    own = {
        "NVP_CACHE": str(folder / "cache"),
        "NVP_ANSWERS": "off",
        "TMPDIR": str(folder / "tmp"),
        "NVP_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _workers() -> dict[int, State]:
    """The workers of this process, by their numbers."""
    return {pid: _state(pid) for pid in _children() if b"nvpstore.api.jobs.worker" in _command(pid)}


def _state(pid: int) -> State:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    return State(
        resident_bytes=int(status["VmRSS"].split()[0]) * 1024,
        open_files=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        threads=int(status["Threads"]),
    )


def _children() -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # What stands in parentheses is a name, and may hold anything.
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                yield int(path.parent.name)


def _processes(named: str) -> Iterator[str]:
    """Those, other than this one, whose command names something."""
    for path in Path("/proc").glob("[0-9]*"):
        if int(path.name) != os.getpid() and named.encode() in _command(int(path.name)):
            yield path.name


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _figures(early: dict[int, State], late: dict[int, State]) -> list[dict[str, Any]]:
    return [
        {
            "resident_bytes": [early[pid].resident_bytes, late[pid].resident_bytes],
            "open_files": [early[pid].open_files, late[pid].open_files],
            "threads": [early[pid].threads, late[pid].threads],
        }
        for pid in sorted(early.keys() & late.keys())
    ]
