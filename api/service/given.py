"""What routes are given: the service, who calls, and the headers that several of them read."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Path, Request, Response

from nvpstore.api.jobs.job import Job
from nvpstore.api.service.models import JobAnswer
from nvpstore.api.service.security import Caller, needs
from nvpstore.api.service.state import Service, service_of

GivenService = Annotated[Service, Depends(service_of)]
Reader = Annotated[Caller, Depends(needs("read"))]
Ingester = Annotated[Caller, Depends(needs("ingest"))]
Admin = Annotated[Caller, Depends(needs("admin"))]
Anybody = Annotated[Caller, Depends(needs(None))]  # with a usable key

VideoRef = Annotated[
    str,
    Path(
        min_length=1,
        max_length=255,
        description="a video's id, the beginning of one, or a unique name",
        examples=["82bc07de7ba81cd2d45d2eec1e27f47d"],
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x20-\x7e]*$",
        description="sent again with the same request, it gives the same job; with another one, 422",
    ),
]


def accepted(request: Request, response: Response, job: Job) -> JobAnswer:
    """The answer to whoever asked for a job: it, and where it is to be found (status 202)."""
    response.headers["Location"] = str(request.app.url_path_for("show_job", job_id=job.id))
    return JobAnswer.of(job)


def matches(request: Request, etag: str) -> bool:
    """Whether the caller has what carries this ETag (If-None-Match, compared weakly)."""
    given = ",".join(request.headers.getlist("if-none-match"))
    known = {tag.strip().removeprefix("W/") for tag in given.split(",")}
    return "*" in known or etag.removeprefix("W/") in known


def not_modified(etag: str) -> Response:
    return Response(status_code=304, headers={"ETag": etag})
