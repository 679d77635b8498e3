"""The queue of jobs: one SQLite file that survives crashes, shared by the server and its workers."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from filelock import FileLock

from nvpstore.api.jobs.job import Event, EventKind, Job, JobKind, JobState, Lease
from nvpstore.api.jobs.table import (
    COLUMNS,
    KeyReused,
    asked,
    json_or_none,
    known,
    one,
    reading,
    repeated,
    to_job,
    to_json,
    writing,
)
from nvpstore.errors import NvpError, StoreError
from nvpstore.storage.keys import new_attempt

LEASE_SECONDS = 30.0  # without a renewal; then another worker takes the job
MOST_ATTEMPTS = 3
RETRY_SECONDS = 5.0  # after the first attempt; doubles with each
KEPT_PROGRESS = 100  # events of a job: a fit of a day reports more often than anybody reads


__all__ = ["JobQueue", "KeyReused", "LeaseLost", "QueueFull"]


class QueueFull(NvpError):
    """As many jobs wait as may; try again later."""

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class LeaseLost(NvpError):
    """Another attempt has the job, or nobody needs it any more: what this one does counts for nothing."""


class JobQueue:
    """Any number of processes may use one file. `clock` gives seconds since 1970."""

    def __init__(
        self,
        path: Path,
        *,
        most_waiting: int = 1_000,
        lease_seconds: float = LEASE_SECONDS,
        most_attempts: int = MOST_ATTEMPTS,
        retry_seconds: float = RETRY_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.lease_seconds = lease_seconds
        self._most_waiting, self._most_attempts = most_waiting, most_attempts
        self._retry_seconds, self._clock = retry_seconds, clock
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise StoreError(f"cannot keep jobs in {path.parent}: {cause.strerror}") from cause
        # Two that turn one new file to WAL at the same moment get in each other's way.
        with FileLock(path.with_name(f"{path.name}.lock")), reading(self.path) as con:
            con.execute("PRAGMA journal_mode = WAL")
            con.executescript(files(__package__).joinpath("schema.sql").read_text())

    # ------------------------------------------------------------ those who ask

    def submit(
        self,
        kind: JobKind,
        request: Mapping[str, Any],
        *,
        owner: str,
        priority: int = 0,
        idempotency_key: str | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> tuple[Job, bool]:
        """Put a job into the queue; returns it, and whether it is new.

        With an `idempotency_key` that this owner used before, that job is returned. Raises KeyReused where
        it was used for another request, QueueFull where too many wait. Requests are the same where their
        `identity` is: by default all of the request.
        """
        text, now = asked(request), self._clock()
        same = text if identity is None else asked(identity)
        with writing(self.path) as con:
            earlier = None if idempotency_key is None else repeated(con, owner, idempotency_key, kind, same)
            if earlier is not None:
                return earlier, False
            self._check_room(con)
            job_id = new_attempt()
            con.execute(
                "INSERT INTO jobs (id, kind, owner, request, priority, state, created_at, not_before,"
                " idempotency_key, identity) VALUES (?, ?, ?, ?, ?, 'queued', ?, ?, ?, ?)",
                (job_id, kind, owner, text, priority, now, now, idempotency_key, same),
            )
            self._tell(con, job_id, "state", {"state": "queued"})
            return known(con, job_id), True

    def get(self, job_id: str) -> Job:
        """Raises NotFound for an unknown one."""
        with reading(self.path) as con:
            return known(con, job_id)

    def jobs(
        self,
        *,
        owner: str | None = None,
        state: JobState | None = None,
        kind: JobKind | None = None,
        before: str | None = None,
        limit: int = 100,
    ) -> list[Job]:
        """The newest first; `before` an id goes on where a page ended."""
        asked = {"owner = ?": owner, "state = ?": state, "kind = ?": kind, "id < ?": before}
        given = {condition: value for condition, value in asked.items() if value is not None}
        where = " AND ".join(given) or "true"
        with reading(self.path) as con:
            rows = con.execute(
                f"SELECT {COLUMNS} FROM jobs WHERE {where} ORDER BY id DESC LIMIT ?",
                (*given.values(), limit),
            )
            return [to_job(row) for row in rows]

    def counts(self) -> dict[tuple[JobKind, JobState], int]:
        """How many jobs of each kind are in each state."""
        with reading(self.path) as con:
            rows = con.execute("SELECT kind, state, count(*) FROM jobs GROUP BY kind, state")
            return {(row[0], row[1]): row[2] for row in rows}

    def events(self, job_id: str | None, *, after: int = 0, limit: int = 1_000) -> list[Event]:
        """What happened to a job, or with None to any, after event number `after`, in order."""
        where, given = ("", ()) if job_id is None else ("job = ? AND ", (job_id,))
        with reading(self.path) as con:
            rows = con.execute(
                f"SELECT number, job, at, kind, data FROM events WHERE {where}number > ?"
                " ORDER BY number LIMIT ?",
                (*given, after, limit),
            )
            return [Event(number=n, job=j, at=at, kind=k, data=json.loads(d)) for n, j, at, k, d in rows]

    def newest_event(self) -> int:
        """The number of the last event of any job; 0 where nothing has happened yet."""
        with reading(self.path) as con:
            (number,) = con.execute("SELECT coalesce(max(number), 0) FROM events").fetchone()
            return int(number)

    def cancel(self, job_id: str) -> Job:
        """A waiting job is cancelled at once; a running one when its worker next looks."""
        with writing(self.path) as con:
            job = known(con, job_id)
            if job.state == "queued":
                self._end(con, job_id, "cancelled")
            elif not job.final and not job.cancelling:
                con.execute("UPDATE jobs SET cancelling = 1 WHERE id = ?", (job_id,))
                self._tell(con, job_id, "log", {"text": "asked to stop"})
            return known(con, job_id)

    def forget(self, *, older_than_seconds: float) -> list[Job]:
        """Drop jobs that ended longer ago, with their events; returns what they were."""
        until = self._clock() - older_than_seconds
        with writing(self.path) as con:
            rows = con.execute(
                f"SELECT {COLUMNS} FROM jobs WHERE finished_at IS NOT NULL AND finished_at < ?", (until,)
            ).fetchall()
            con.executemany("DELETE FROM jobs WHERE id = ?", [(row[0],) for row in rows])
            return [to_job(row) for row in rows]

    # ------------------------------------------------------------ those who work

    def claim(self, worker: str, kinds: Sequence[JobKind]) -> Lease | None:
        """Take the next job of these kinds: highest priority, then oldest. None where nothing waits.

        First jobs whose lease ran out go back into the queue, or fail after as many failures as may be.
        """
        with writing(self.path) as con:
            self._take_back(con, "lease_until < ?", self._clock(), why="ended, or hung,")
            marks = ", ".join("?" * len(kinds))
            row = con.execute(
                f"SELECT id FROM jobs WHERE state = 'queued' AND not_before <= ? AND kind IN ({marks})"
                " ORDER BY priority DESC, rowid LIMIT 1",
                (self._clock(), *kinds),
            ).fetchone()
            if row is None:
                return None
            now = self._clock()
            con.execute(
                "UPDATE jobs SET state = 'running', attempts = attempts + 1, worker = ?, lease_until = ?,"
                " started_at = coalesce(started_at, ?) WHERE id = ?",
                (worker, now + self.lease_seconds, now, row[0]),
            )
            job = known(con, row[0])
            self._tell(con, job.id, "state", {"state": "running", "attempt": job.attempts})
            return Lease(job=job, worker=worker, attempt=job.attempts)

    def renew(self, lease: Lease) -> bool:
        """Keep the lease for another while; returns whether the work goes on, False where it is to stop.

        Raises LeaseLost.
        """
        with writing(self.path) as con:
            job = self._held(con, lease)
            con.execute(
                "UPDATE jobs SET lease_until = ? WHERE id = ?", (self._clock() + self.lease_seconds, job.id)
            )
            return not job.cancelling

    def goes_on(self, lease: Lease) -> bool:
        """What `renew` returns, without renewing anything. Raises LeaseLost."""
        with reading(self.path) as con:
            return not self._held(con, lease).cancelling

    def report(self, lease: Lease, progress: Mapping[str, Any]) -> None:
        """How far it is. Of its events the last KEPT_PROGRESS stay. Raises LeaseLost."""
        job_id = lease.job.id
        with writing(self.path) as con:
            self._held(con, lease)
            con.execute("UPDATE jobs SET progress = ? WHERE id = ?", (to_json(progress), job_id))
            self._tell(con, job_id, "progress", progress)
            con.execute(
                "DELETE FROM events WHERE job = ?1 AND kind = 'progress' AND number <= (SELECT number FROM"
                " events WHERE job = ?1 AND kind = 'progress' ORDER BY number DESC LIMIT 1 OFFSET ?2)",
                (job_id, KEPT_PROGRESS),
            )

    def log(self, lease: Lease, text: str) -> None:
        """A line for the job's own log. Raises LeaseLost."""
        with writing(self.path) as con:
            self._held(con, lease)
            self._tell(con, lease.job.id, "log", {"text": text})

    def finish(self, lease: Lease, result: Mapping[str, Any]) -> None:
        """Raises LeaseLost."""
        with writing(self.path) as con:
            self._held(con, lease)
            self._end(con, lease.job.id, "done", result=result)

    def cancelled(self, lease: Lease) -> None:
        """The worker stopped because it was asked to. Raises LeaseLost."""
        with writing(self.path) as con:
            self._held(con, lease)
            self._end(con, lease.job.id, "cancelled")

    def fail(self, lease: Lease, error: Mapping[str, Any], *, retry: bool) -> Job:
        """It did not work out; with `retry`, another attempt may. Returns the job. Raises LeaseLost."""
        with writing(self.path) as con:
            self._again_or_failed(con, self._held(con, lease), error, retry=retry)
            return known(con, lease.job.id)

    def release(self, lease: Lease) -> Job:
        """Give a job back unfinished, as a worker does that is told to stop: that is no failure.

        Returns the job, which is cancelled where that was asked meanwhile. Raises LeaseLost.
        """
        with writing(self.path) as con:
            if self._held(con, lease).cancelling:
                self._end(con, lease.job.id, "cancelled")
            else:
                self._put_back(con, lease.job.id, wait_seconds=0)
            return known(con, lease.job.id)

    def lost(self, worker: str, why: str) -> None:
        """Take back at once what a worker holds that is known to have ended; `why` is the sentence's verb."""
        with writing(self.path) as con:
            self._take_back(con, "worker = ?", worker, why=why)

    # ------------------------------------------------------------ parts

    def _check_room(self, con: sqlite3.Connection) -> None:
        (waiting,) = con.execute("SELECT count(*) FROM jobs WHERE state = 'queued'").fetchone()
        if waiting >= self._most_waiting:
            raise QueueFull(
                f"{waiting} jobs wait, the most that may: try again later",
                retry_after_seconds=self.lease_seconds,
            )

    def _take_back(self, con: sqlite3.Connection, where: str, value: object, *, why: str) -> None:
        rows = con.execute(f"SELECT {COLUMNS} FROM jobs WHERE state = 'running' AND {where}", (value,))
        for job in [to_job(row) for row in rows]:
            error = {
                "title": "Internal Server Error",
                "detail": f"worker {job.worker} {why} during attempt {job.attempts}",
                "status": 500,
            }
            self._again_or_failed(con, job, error, retry=True)

    def _again_or_failed(
        self, con: sqlite3.Connection, job: Job, error: Mapping[str, Any], *, retry: bool
    ) -> None:
        if job.cancelling:
            self._end(con, job.id, "cancelled")
            return
        con.execute("UPDATE jobs SET failures = failures + 1 WHERE id = ?", (job.id,))
        if not retry or job.failures + 1 >= self._most_attempts:
            self._end(con, job.id, "failed", error=error)
            return
        wait = self._retry_seconds * 2**job.failures
        self._tell(con, job.id, "log", {"text": f"attempt {job.attempts} failed: {error.get('detail')}"})
        self._put_back(con, job.id, wait_seconds=wait)

    def _put_back(self, con: sqlite3.Connection, job_id: str, *, wait_seconds: float) -> None:
        con.execute(
            "UPDATE jobs SET state = 'queued', worker = NULL, lease_until = NULL, not_before = ?"
            " WHERE id = ?",
            (self._clock() + wait_seconds, job_id),
        )
        waits = {"retry_seconds": wait_seconds} if wait_seconds else {}
        self._tell(con, job_id, "state", {"state": "queued", **waits})

    def _end(
        self,
        con: sqlite3.Connection,
        job_id: str,
        state: JobState,
        *,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        con.execute(
            "UPDATE jobs SET state = ?, finished_at = ?, worker = NULL, lease_until = NULL, result = ?,"
            " error = ? WHERE id = ?",
            (state, self._clock(), json_or_none(result), json_or_none(error), job_id),
        )
        said = {"state": state, "result": result, "error": error}
        self._tell(con, job_id, "state", {name: value for name, value in said.items() if value is not None})

    def _held(self, con: sqlite3.Connection, lease: Lease) -> Job:
        job = one(con, "id = ?", lease.job.id)
        mine = job is not None and (job.state, job.worker, job.attempts) == (
            "running",
            lease.worker,
            lease.attempt,
        )
        if job is None or not mine:
            raise LeaseLost(f"job {lease.job.id}: attempt {lease.attempt} of {lease.worker} has it no more")
        return job

    def _tell(self, con: sqlite3.Connection, job_id: str, kind: EventKind, data: Mapping[str, Any]) -> None:
        con.execute(
            "INSERT INTO events (job, at, kind, data) VALUES (?, ?, ?, ?)",
            (job_id, self._clock(), kind, to_json(data)),
        )
