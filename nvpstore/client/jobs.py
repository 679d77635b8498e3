"""Jobs of a server: what they are, and following one until it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx2

from nvpstore.client.failures import error_of
from nvpstore.client.transport import Ask, Transport
from nvpstore.client.values import Progress, of
from nvpstore.errors import JobCancelled, ServiceError

FINAL = frozenset({"done", "failed", "cancelled"})
OnProgress = Callable[[Progress], None]

_SILENT_SECONDS = 60.0  # servers say something every 15 s, if only that they live
_MOST_SILENT = 8  # connections in a row that told nothing
_LONGEST_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteJob:
    """One piece of a server's work.

    `state` is queued, running, done, failed or cancelled; `progress`, `result` and `error` are JSON objects.
    """

    id: str
    kind: str
    state: str
    video_id: str | None
    request: Mapping[str, Any]
    attempts: int
    cancelling: bool
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    progress: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    error: Mapping[str, Any] | None

    @property
    def final(self) -> bool:
        return self.state in FINAL


def job_of(answer: Mapping[str, Any]) -> RemoteJob:
    times = {name: _time(answer.get(name)) for name in ("created_at", "started_at", "finished_at")}
    return of(RemoteJob, {**answer, **times})


def get_job(transport: Transport, job_id: str) -> RemoteJob:
    """Raises NotFound for an unknown one."""
    return job_of(transport.json("GET", f"jobs/{job_id}"))


def result_of(transport: Transport, job: RemoteJob, on_progress: OnProgress | None) -> Mapping[str, Any]:
    """What comes of a job, once it is done. Raises the error that it failed with, or JobCancelled.

    A server that restarts meanwhile is waited for; stopping to wait leaves the job to the server.
    """
    last: str | None = None
    silent = 0
    while not job.final:
        heard = last
        try:
            for event in _events(transport, job.id, after=last):
                last = event.id or last
                _tell(event, on_progress)
            job = get_job(transport, job.id)
        except ServiceError as error:
            if silent == _MOST_SILENT:
                raise ServiceError(f"job {job.id} cannot be followed, but goes on: {error}") from error
        # A stream that ended early is taken up where it ended; one that says nothing, later and later.
        silent = 0 if last != heard else silent + 1
        if silent and not job.final:
            time.sleep(min(_LONGEST_PAUSE_SECONDS, 0.1 * 2**silent))
    return _outcome(job)


def _outcome(job: RemoteJob) -> Mapping[str, Any]:
    if job.state == "cancelled":
        raise JobCancelled(f"job {job.id} was cancelled")
    if job.state == "failed":
        error = job.error or {}
        raise error_of(error, status=int(error.get("status") or 500))
    return job.result or {}


def _events(transport: Transport, job_id: str, *, after: str | None) -> Iterator[httpx2.ServerSentEvent]:
    headers = {"Accept": "text/event-stream"}
    if after is not None:
        headers["Last-Event-ID"] = after
    ask = Ask(
        method="GET",
        path=f"jobs/{job_id}/events",
        headers=headers,
        read_seconds=_SILENT_SECONDS,
        retry=True,
    )
    with transport.streamed(ask) as response:
        if response.status_code != httpx2.codes.NO_CONTENT:  # it is over, and nothing happened since
            yield from httpx2.EventSource(response)


def _tell(event: httpx2.ServerSentEvent, on_progress: OnProgress | None) -> None:
    if event.event == "progress" and on_progress is not None:
        on_progress(of(Progress, json.loads(event.data)))


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
