"""Jobs: what waits, how far it is, what came of it; as it happens, too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse

from nvpstore.api.jobs.job import Job, JobKind, JobState
from nvpstore.api.jobs.spool import drop
from nvpstore.api.service.answers import open_answer
from nvpstore.api.service.events import EventFeed, as_sse
from nvpstore.api.service.given import Anybody, GivenService
from nvpstore.api.service.models import JobAnswer, JobsPage
from nvpstore.api.service.problems import Refused
from nvpstore.api.service.security import Caller
from nvpstore.api.service.state import Service, service_of
from nvpstore.errors import NotFound

MOST_JOBS = 1000  # a page
RECONNECT_MILLISECONDS = 2000
KEEP_ALIVE = b": keep-alive\n\n"
_ULID = r"^[0-7][0-9A-HJKMNP-TV-Z]{25}$"

JobId = Annotated[str, Path(pattern=_ULID, examples=["01M7YGENEA4WME18CAPTYWDMBT"])]
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "server-sent events `state`, `progress` and `log`, each with a number as its id; the "
        "stream ends behind the final state",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    204: {"description": "it is over, and nothing happened since `Last-Event-ID`"},
}

router = APIRouter(tags=["jobs"])


async def feed_of(request: Request) -> EventFeed:
    """The server's own (a FastAPI dependency)."""
    state = request.app.state
    if not hasattr(state, "feed"):
        state.feed = EventFeed((await service_of(request)).queue)
    feed: EventFeed = state.feed
    return feed


@router.get("/jobs")
def list_jobs(
    service: GivenService,
    caller: Anybody,
    state: Annotated[JobState | None, Query()] = None,
    kind: Annotated[JobKind | None, Query()] = None,
    cursor: Annotated[str | None, Query(pattern=_ULID, description="`next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_JOBS)] = 100,
) -> JobsPage:
    """The caller's jobs, the newest first; with the scope admin, everybody's."""
    owner = None if caller.may("admin") else caller.key_id
    found = service.queue.jobs(owner=owner, state=state, kind=kind, before=cursor, limit=limit + 1)
    page = found[:limit]
    return JobsPage(
        jobs=[JobAnswer.of(job) for job in page], next=page[-1].id if len(found) > limit else None
    )


@router.get("/jobs/{job_id}")
def show_job(service: GivenService, caller: Anybody, job_id: JobId) -> JobAnswer:
    """One job. Those of others are not found, unless by an admin."""
    return JobAnswer.of(_own(service, caller, job_id))


@router.delete("/jobs/{job_id}")
def cancel_job(service: GivenService, caller: Anybody, job_id: JobId) -> JobAnswer:
    """Cancel a job: one that waits at once, one that runs as soon as its worker looks. What is over stays."""
    _own(service, caller, job_id)
    job = service.queue.cancel(job_id)
    if job.final:  # no worker will look after what it was to work on
        drop(service.settings.spool_dir, job)
    return JobAnswer.of(job)


@router.get("/jobs/{job_id}/events", response_class=Response, responses=_EVENTS)
async def follow_job(
    service: GivenService,
    caller: Anybody,
    feed: Annotated[EventFeed, Depends(feed_of)],
    job_id: JobId,
    last_event_id: Annotated[
        str,
        Header(
            alias="Last-Event-ID",
            pattern=r"^[0-9]{0,18}$",
            description="go on behind this event; browsers send it by themselves",
        ),
    ] = "",
) -> Response:
    """What happens to a job, as it happens, from its beginning: server-sent events.

    `state`: `{state, attempt, result, error}`; `progress`: `{phase, done, total, psnr, eta_seconds}`; `log`:
    `{text}`; each with `at`, in seconds since 1970.
    """
    after = int(last_event_id or 0)
    job = await run_in_threadpool(_own, service, caller, job_id)
    if job.final and not await run_in_threadpool(service.queue.events, job_id, after=after, limit=1):
        return Response(status_code=204)  # tells a browser not to come back
    return StreamingResponse(
        _stream(feed, job_id, after),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get("/jobs/{job_id}/result", response_class=Response)
async def show_result(request: Request, service: GivenService, caller: Anybody, job_id: JobId) -> Response:
    """What came of a job that is done: of a query its answer, as `Accept` wants it. 409 while it is not."""
    job = await run_in_threadpool(_own, service, caller, job_id)
    if job.state != "done":
        raise _no_result(job)
    if job.kind == "query":
        return await run_in_threadpool(open_answer, service, job, request.headers.get("accept", "*/*"))
    return JSONResponse(JobAnswer.of(job).result)


async def _stream(feed: EventFeed, job_id: str, after: int) -> AsyncIterator[bytes]:
    yield f"retry: {RECONNECT_MILLISECONDS}\n\n".encode()
    async for event in feed.follow(job_id, after=after):
        yield KEEP_ALIVE if event is None else as_sse(event)


def _own(service: Service, caller: Caller, job_id: str) -> Job:
    """Raises NotFound for a job of others, as for one that is not there."""
    job = service.queue.get(job_id)
    if job.owner != caller.key_id and not caller.may("admin"):
        raise NotFound(f"no job {job_id!r}")
    return job


def _no_result(job: Job) -> Refused:
    if job.error is not None:
        status = int(job.error.get("status", HTTPStatus.INTERNAL_SERVER_ERROR))
        return Refused(HTTPStatus(status), f"job {job.id} failed: {job.error.get('detail')}")
    headers = {} if job.final else {"Retry-After": "2"}
    return Refused(HTTPStatus.CONFLICT, f"job {job.id} has no result: it is {job.state}", headers=headers)
