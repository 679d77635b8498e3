"""What a request is answered with that did not work out: RFC 9457, one shape for all."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from nvpstore.api.jobs.queue import QueueFull
from nvpstore.errors import (
    ArchiveError,
    CommitDropped,
    IntegrityError,
    NotFound,
    NvpError,
    QueryError,
    RouteError,
    SourceError,
    StoreError,
    TaskError,
    UsageError,
)

MEDIA_TYPE = "application/problem+json"
_log = logging.getLogger("nvpstore.service")

# The first that an error is an instance of counts: special ones first.
_STATUS: tuple[tuple[type[NvpError], HTTPStatus], ...] = (
    (QueueFull, HTTPStatus.TOO_MANY_REQUESTS),
    (NotFound, HTTPStatus.NOT_FOUND),
    (QueryError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (RouteError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (TaskError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (SourceError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (CommitDropped, HTTPStatus.CONFLICT),
    (UsageError, HTTPStatus.BAD_REQUEST),
    (IntegrityError, HTTPStatus.INTERNAL_SERVER_ERROR),
    (ArchiveError, HTTPStatus.INTERNAL_SERVER_ERROR),
    (StoreError, HTTPStatus.SERVICE_UNAVAILABLE),
)


class Problem(BaseModel):
    """An error. `type` is about:blank: `title` says the kind, `detail` what was asked, found and allowed."""

    type: str = "about:blank"
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["no video 'gate': 3 are stored"])
    error: str | None = Field(
        default=None, description="the kind of error, by its name in the Python client", examples=["NotFound"]
    )
    instance: str | None = Field(default=None, description="the request's id", examples=["01JD…"])
    errors: list[dict[str, Any]] | None = Field(
        default=None, description="where a request's fields are malformed"
    )


class Refused(Exception):
    """A request that is refused with this status; `headers` go with the answer."""

    def __init__(self, status: HTTPStatus, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})


def status_of(error: NvpError) -> HTTPStatus:
    """The HTTP status that says what kind of error it is."""
    found = next((status for kind, status in _STATUS if isinstance(error, kind)), None)
    return found or HTTPStatus.INTERNAL_SERVER_ERROR


def problem(
    request: Request,
    status: HTTPStatus,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    errors: list[dict[str, Any]] | None = None,
    error: str | None = None,
) -> Response:
    body = Problem(
        title=status.phrase,
        status=status.value,
        detail=detail,
        error=error,
        instance=getattr(request.state, "request_id", None),
        errors=errors,
    )
    return JSONResponse(
        body.model_dump(exclude_none=True), status, headers=dict(headers or {}), media_type=MEDIA_TYPE
    )


def add_handlers(app: FastAPI) -> None:
    """Every way in which a request can fail, said in the one shape."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return problem(request, error.status, error.detail, headers=error.headers)

    @app.exception_handler(NvpError)
    async def ours(request: Request, error: NvpError) -> Response:
        status = status_of(error)
        headers = {}
        if isinstance(error, QueueFull):
            headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            headers["Retry-After"] = "5"
        said, kind = " ".join(str(error).split()), type(error).__name__
        return problem(request, status, said, headers=headers, error=kind)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        found = [{"at": [str(part) for part in e["loc"]], "message": e["msg"]} for e in error.errors()]
        said = "; ".join(f"{'.'.join(e['at'])}: {e['message']}" for e in found)
        return problem(request, HTTPStatus.UNPROCESSABLE_ENTITY, said, errors=found)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return problem(request, HTTPStatus(error.status_code), str(error.detail), headers=error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        _log.exception("request failed", exc_info=error)
        return problem(
            request, HTTPStatus.INTERNAL_SERVER_ERROR, "an error of ours; its log has the request's id"
        )
