"""What is known of a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

JobKind = Literal["ingest", "add", "fit", "train", "stabilize", "query"]
JobState = Literal["queued", "running", "done", "failed", "cancelled"]
EventKind = Literal["state", "progress", "log"]

FINAL: frozenset[JobState] = frozenset({"done", "failed", "cancelled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One piece of work. Times are seconds since 1970 (UTC).

    `request`, `progress`, `result` and `error` are JSON objects: what was asked, how far it is
    (`phase, done, total, psnr, eta_seconds`), what came of it, and why it failed (`title, detail, status`).
    `attempts` counts how often a worker took it, `failures` how many of these failed or were lost.
    `cancelling`: somebody asked to stop it.
    """

    id: str
    kind: JobKind
    owner: str
    request: Mapping[str, Any]
    priority: int
    state: JobState
    attempts: int
    failures: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    worker: str | None
    cancelling: bool
    progress: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    error: Mapping[str, Any] | None

    @property
    def final(self) -> bool:
        return self.state in FINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a job. `number` grows over all jobs; `at` in seconds since 1970 (UTC)."""

    number: int
    job: str
    at: float
    kind: EventKind
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A worker's right to a job until it is taken away: one attempt of one worker."""

    job: Job
    worker: str
    attempt: int
