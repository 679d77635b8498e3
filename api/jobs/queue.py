"""The queue of jobs: one SQLite file that survives crashes, shared by the server and its workers."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from nvpstore.api.jobs.job import Event, EventKind, Job, JobKind, JobState, Lease
from nvpstore.errors import NotFound, NvpError, StoreError, UsageError
from nvpstore.storage.keys import new_attempt

LEASE_SECONDS = 30.0  # without a renewal; then another worker takes the job
MOST_ATTEMPTS = 3
RETRY_SECONDS = 5.0  # after the first attempt; doubles with each
_BUSY_MILLISECONDS = 10_000
_COLUMNS = (
    "id, kind, owner, request, priority, state, attempts, created_at, started_at, finished_at, worker,"
    " cancelling, progress, result, error"
)


class QueueFull(NvpError):
    """As many jobs wait as may; try again later."""

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class KeyReused(UsageError):
    """An idempotency key came again with another request."""


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
        with self._reading() as con:
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
        text, now = _json(request), self._clock()
        same = text if identity is None else _json(identity)
        with self._writing() as con:
            if idempotency_key is not None and (
                earlier := _one(con, "owner = ? AND idempotency_key = ?", owner, idempotency_key)
            ):
                (before,) = con.execute("SELECT identity FROM jobs WHERE id = ?", (earlier.id,)).fetchone()
                if (earlier.kind, before) != (kind, same):
                    raise KeyReused(
                        f"Idempotency-Key {idempotency_key!r} was used for another request (job {earlier.id})"
                    )
                return earlier, False
            (waiting,) = con.execute("SELECT count(*) FROM jobs WHERE state = 'queued'").fetchone()
            if waiting >= self._most_waiting:
                raise QueueFull(
                    f"{waiting} jobs wait, the most that may: try again later",
                    retry_after_seconds=self.lease_seconds,
                )
            job_id = new_attempt()
            con.execute(
                "INSERT INTO jobs (id, kind, owner, request, priority, state, created_at, not_before,"
                " idempotency_key, identity) VALUES (?, ?, ?, ?, ?, 'queued', ?, ?, ?, ?)",
                (job_id, kind, owner, text, priority, now, now, idempotency_key, same),
            )
            self._tell(con, job_id, "state", {"state": "queued"})
            return _known(con, job_id), True

    def get(self, job_id: str) -> Job:
        """Raises NotFound for an unknown one."""
        with self._reading() as con:
            return _known(con, job_id)

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
        with self._reading() as con:
            rows = con.execute(
                f"SELECT {_COLUMNS} FROM jobs WHERE {where} ORDER BY id DESC LIMIT ?",
                (*given.values(), limit),
            )
            return [_job(row) for row in rows]

    def counts(self) -> dict[tuple[JobKind, JobState], int]:
        """How many jobs of each kind are in each state."""
        with self._reading() as con:
            rows = con.execute("SELECT kind, state, count(*) FROM jobs GROUP BY kind, state")
            return {(row[0], row[1]): row[2] for row in rows}

    def events(self, job_id: str | None, *, after: int = 0, limit: int = 1_000) -> list[Event]:
        """What happened to a job, or with None to any, after event number `after`, in order."""
        where, given = ("", ()) if job_id is None else ("job = ? AND ", (job_id,))
        with self._reading() as con:
            rows = con.execute(
                f"SELECT number, job, at, kind, data FROM events WHERE {where}number > ?"
                " ORDER BY number LIMIT ?",
                (*given, after, limit),
            )
            return [Event(number=n, job=j, at=at, kind=k, data=json.loads(d)) for n, j, at, k, d in rows]

    def newest_event(self) -> int:
        """The number of the last event of any job; 0 where nothing has happened yet."""
        with self._reading() as con:
            (number,) = con.execute("SELECT coalesce(max(number), 0) FROM events").fetchone()
            return int(number)

    def cancel(self, job_id: str) -> Job:
        """A waiting job is cancelled at once; a running one when its worker next looks."""
        with self._writing() as con:
            job = _known(con, job_id)
            if job.state == "queued":
                self._end(con, job_id, "cancelled")
            elif not job.final and not job.cancelling:
                con.execute("UPDATE jobs SET cancelling = 1 WHERE id = ?", (job_id,))
                self._tell(con, job_id, "log", {"text": "asked to stop"})
            return _known(con, job_id)

    def forget(self, *, older_than_seconds: float) -> list[Job]:
        """Drop jobs that ended longer ago, with their events; returns what they were."""
        until = self._clock() - older_than_seconds
        with self._writing() as con:
            rows = con.execute(
                f"SELECT {_COLUMNS} FROM jobs WHERE finished_at IS NOT NULL AND finished_at < ?", (until,)
            ).fetchall()
            con.executemany("DELETE FROM jobs WHERE id = ?", [(row[0],) for row in rows])
            return [_job(row) for row in rows]

    # ------------------------------------------------------------ those who work

    def claim(self, worker: str, kinds: Sequence[JobKind]) -> Lease | None:
        """Take the next job of these kinds: highest priority, then oldest. None where nothing waits.

        First jobs whose lease ran out go back into the queue, or fail after as many attempts as may be.
        """
        with self._writing() as con:
            self._recover(con)
            marks = ", ".join("?" * len(kinds))
            row = con.execute(
                f"SELECT id FROM jobs WHERE state = 'queued' AND not_before <= ? AND kind IN ({marks})"
                " ORDER BY priority DESC, id LIMIT 1",
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
            job = _known(con, row[0])
            self._tell(con, job.id, "state", {"state": "running", "attempt": job.attempts})
            return Lease(job=job, worker=worker, attempt=job.attempts)

    def renew(self, lease: Lease) -> bool:
        """Keep the lease for another while; returns whether the work goes on, False where it is to stop.

        Raises LeaseLost.
        """
        with self._writing() as con:
            job = self._held(con, lease)
            con.execute(
                "UPDATE jobs SET lease_until = ? WHERE id = ?", (self._clock() + self.lease_seconds, job.id)
            )
            return not job.cancelling

    def report(self, lease: Lease, progress: Mapping[str, Any]) -> None:
        """How far it is. Raises LeaseLost."""
        with self._writing() as con:
            self._held(con, lease)
            con.execute("UPDATE jobs SET progress = ? WHERE id = ?", (_json(progress), lease.job.id))
            self._tell(con, lease.job.id, "progress", progress)

    def log(self, lease: Lease, text: str) -> None:
        """A line for the job's own log. Raises LeaseLost."""
        with self._writing() as con:
            self._held(con, lease)
            self._tell(con, lease.job.id, "log", {"text": text})

    def finish(self, lease: Lease, result: Mapping[str, Any]) -> None:
        """Raises LeaseLost."""
        with self._writing() as con:
            self._held(con, lease)
            self._end(con, lease.job.id, "done", result=result)

    def cancelled(self, lease: Lease) -> None:
        """The worker stopped because it was asked to. Raises LeaseLost."""
        with self._writing() as con:
            self._held(con, lease)
            self._end(con, lease.job.id, "cancelled")

    def fail(self, lease: Lease, error: Mapping[str, Any], *, retry: bool) -> None:
        """It did not work out; with `retry`, another attempt may. Raises LeaseLost."""
        with self._writing() as con:
            self._held(con, lease)
            self._again_or_failed(con, lease.job.id, lease.attempt, error, retry=retry)

    def release(self, lease: Lease) -> None:
        """Give a job back unfinished, as a worker does that is told to stop: no attempt is counted.

        Raises LeaseLost.
        """
        with self._writing() as con:
            self._held(con, lease)
            con.execute(
                "UPDATE jobs SET state = 'queued', attempts = attempts - 1, worker = NULL, lease_until = NULL"
                " WHERE id = ?",
                (lease.job.id,),
            )
            self._tell(con, lease.job.id, "state", {"state": "queued"})

    # ------------------------------------------------------------ parts

    def _recover(self, con: sqlite3.Connection) -> None:
        lost = con.execute(
            "SELECT id, attempts, cancelling, worker FROM jobs WHERE state = 'running' AND lease_until < ?",
            (self._clock(),),
        ).fetchall()
        for job_id, attempts, cancelling, worker in lost:
            if cancelling:
                self._end(con, job_id, "cancelled")
                continue
            error = {
                "title": "the worker was lost",
                "detail": f"worker {worker} ended, or hung, during attempt {attempts}",
                "status": 500,
            }
            self._again_or_failed(con, job_id, attempts, error, retry=True)

    def _again_or_failed(
        self, con: sqlite3.Connection, job_id: str, attempts: int, error: Mapping[str, Any], *, retry: bool
    ) -> None:
        if not retry or attempts >= self._most_attempts:
            self._end(con, job_id, "failed", error=error)
            return
        wait = self._retry_seconds * 2 ** (attempts - 1)
        con.execute(
            "UPDATE jobs SET state = 'queued', worker = NULL, lease_until = NULL, not_before = ?"
            " WHERE id = ?",
            (self._clock() + wait, job_id),
        )
        self._tell(con, job_id, "log", {"text": f"attempt {attempts} failed: {error.get('detail')}"})
        self._tell(con, job_id, "state", {"state": "queued", "retry_seconds": wait})

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
            (state, self._clock(), _json_or_none(result), _json_or_none(error), job_id),
        )
        said = {"state": state, "result": result, "error": error}
        self._tell(con, job_id, "state", {name: value for name, value in said.items() if value is not None})

    def _held(self, con: sqlite3.Connection, lease: Lease) -> Job:
        job = _one(con, "id = ?", lease.job.id)
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
            (job_id, self._clock(), kind, _json(data)),
        )

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as con:
            con.execute("BEGIN IMMEDIATE")
            try:
                yield con
            except BaseException:
                con.execute("ROLLBACK")
                raise
            con.execute("COMMIT")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            con = sqlite3.connect(self.path, timeout=_BUSY_MILLISECONDS / 1000, isolation_level=None)
            try:
                con.execute("PRAGMA journal_mode = WAL")
                con.execute("PRAGMA synchronous = FULL")  # a job that was accepted is not lost with the power
                con.execute("PRAGMA foreign_keys = ON")
                yield con
            finally:
                con.close()
        except sqlite3.Error as cause:
            raise StoreError(f"the queue {self.path} cannot be used: {cause}") from cause


def _one(con: sqlite3.Connection, where: str, *values: object) -> Job | None:
    row = con.execute(f"SELECT {_COLUMNS} FROM jobs WHERE {where}", values).fetchone()
    return None if row is None else _job(row)


def _known(con: sqlite3.Connection, job_id: str) -> Job:
    job = _one(con, "id = ?", job_id)
    if job is None:
        raise NotFound(f"no job {job_id!r}")
    return job


def _job(row: Sequence[Any]) -> Job:
    fields = dict(zip(_COLUMNS.split(", "), row, strict=True))
    for name in ("request", "progress", "result", "error"):
        fields[name] = None if fields[name] is None else json.loads(fields[name])
    return Job(**{**fields, "cancelling": bool(fields["cancelling"])})


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _json_or_none(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else _json(value)
