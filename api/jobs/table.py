"""The queue's file: transactions on it, and jobs as its rows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nvpstore.api.jobs.job import Job, JobKind
from nvpstore.errors import NotFound, StoreError, UsageError

COLUMNS = (
    "id, kind, owner, request, priority, state, attempts, failures, created_at, started_at, finished_at,"
    " worker, cancelling, progress, result, error"
)
_BUSY_SECONDS = 10.0


class KeyReused(UsageError):
    """An idempotency key came again with another request."""


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of its own. Raises StoreError where the file cannot be used."""
    try:
        con = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            con.execute("PRAGMA synchronous = FULL")  # a job that was accepted is not lost with the power
            con.execute("PRAGMA foreign_keys = ON")
            yield con
        finally:
            con.close()
    except sqlite3.Error as cause:
        raise StoreError(f"the queue {path} cannot be used: {cause}") from cause


@contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """One transaction, alone on the file; undone where the block raises."""
    with reading(path) as con:
        con.execute("BEGIN IMMEDIATE")
        try:
            yield con
        except BaseException:
            if con.in_transaction:  # a full disk has ended it already
                con.execute("ROLLBACK")
            raise
        con.execute("COMMIT")


def repeated(con: sqlite3.Connection, owner: str, key: str, kind: JobKind, identity: str) -> Job | None:
    """The job for which this owner used the key before. Raises KeyReused if that asked for something else."""
    row = con.execute(
        "SELECT id, kind, identity FROM jobs WHERE owner = ? AND idempotency_key = ?", (owner, key)
    ).fetchone()
    if row is None:
        return None
    if (row[1], row[2]) != (kind, identity):
        raise KeyReused(f"Idempotency-Key {key!r} was used for another request (job {row[0]})")
    return known(con, row[0])


def one(con: sqlite3.Connection, where: str, *values: object) -> Job | None:
    row = con.execute(f"SELECT {COLUMNS} FROM jobs WHERE {where}", values).fetchone()
    return None if row is None else to_job(row)


def known(con: sqlite3.Connection, job_id: str) -> Job:
    """Raises NotFound."""
    job = one(con, "id = ?", job_id)
    if job is None:
        raise NotFound(f"no job {job_id!r}")
    return job


def to_job(row: Sequence[Any]) -> Job:
    fields = dict(zip(COLUMNS.split(", "), row, strict=True))
    for name in ("request", "progress", "result", "error"):
        fields[name] = None if fields[name] is None else json.loads(fields[name])
    return Job(**{**fields, "cancelling": bool(fields["cancelling"])})


def asked(request: Mapping[str, Any]) -> str:
    """What a caller gave, as JSON. Raises UsageError where it is none."""
    try:
        return to_json(request)
    except (TypeError, ValueError) as cause:
        raise UsageError(f"a job's request must be JSON, whose numbers are finite: {cause}") from cause


def to_json(value: Mapping[str, Any]) -> str:
    # As ASCII: SQLite takes no half of a surrogate pair, which JSON may hold.
    return json.dumps(value, sort_keys=True, allow_nan=False)


def json_or_none(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else to_json(value)
