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

from nvpstore.api.jobs.queue import KeyReused, QueueFull
from nvpstore.errors import (
    ArchiveError,
    CommitDropped,
    IntegrityError,
    NotFound,
    NvpError,
    OnHold,
    QueryError,
    QueryTimeout,
    RouteError,
    SourceError,
    StoreError,
    TaskError,
    UsageError,
)

MEDIA_TYPE = "application/problem+json"
OURS = "an error of ours; its log has the request's id"
MOST_ERRORS = 20  # of one request's fields
_log = logging.getLogger("nvpstore.service")

# The first that an error is an instance of counts: special ones first.
_STATUS: tuple[tuple[type[NvpError], HTTPStatus], ...] = (
    (QueueFull, HTTPStatus.TOO_MANY_REQUESTS),
    (KeyReused, HTTPStatus.UNPROCESSABLE_ENTITY),
    (NotFound, HTTPStatus.NOT_FOUND),
    (OnHold, HTTPStatus.CONFLICT),
    (QueryTimeout, HTTPStatus.GATEWAY_TIMEOUT),
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
    """The answer that says it; `error` is the error's class, where it is one of ours."""
    body = Problem(
        title=status.phrase,
        status=status.value,
        detail=_sayable(detail),
        error=error,
        instance=getattr(request.state, "request_id", None),
        errors=errors,
    )
    return JSONResponse(
        body.model_dump(exclude_none=True), status, headers=dict(headers or {}), media_type=MEDIA_TYPE
    )


def refusal(request: Request, error: Refused) -> Response:
    return problem(request, error.status, error.detail, headers=error.headers)


def unexpected(request: Request, error: Exception) -> Response:
    """What nobody foresaw: the caller learns nothing of it, the log everything."""
    _log.error("request failed: %s", type(error).__name__, exc_info=error, extra=_of(request))
    return problem(request, HTTPStatus.INTERNAL_SERVER_ERROR, OURS)


def add_handlers(app: FastAPI) -> None:
    """Every way in which a request can fail, said in the one shape."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return refusal(request, error)

    @app.exception_handler(NvpError)
    async def ours(request: Request, error: NvpError) -> Response:
        return _ours(request, error)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        found = [
            {"at": [_sayable(str(part)) for part in e["loc"]], "message": _sayable(e["msg"])}
            for e in error.errors()[:MOST_ERRORS]
        ]
        said = "; ".join(f"{'.'.join(e['at'])}: {e['message']}" for e in found)
        return problem(request, HTTPStatus.UNPROCESSABLE_ENTITY, said, errors=found)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return problem(request, HTTPStatus(error.status_code), str(error.detail), headers=error.headers)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return unexpected(request, error)


def _ours(request: Request, error: NvpError) -> Response:
    status, headers = status_of(error), {}
    said = " ".join(str(error).split())
    if isinstance(error, QueueFull):
        headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "5"
    if status in (HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE):
        _log.error("request failed: %s", said, exc_info=error, extra=_of(request))
        # Such messages name files and hosts: they are for who was let in.
        said = said if hasattr(request.state, "caller") else OURS
    return problem(request, status, said, headers=headers, error=type(error).__name__)


def _of(request: Request) -> dict[str, object]:
    return {"fields": {"request": getattr(request.state, "request_id", None)}}


def _sayable(text: str) -> str:
    """Without lone surrogates, which JSON texts may smuggle in and UTF-8 has no form for."""
    return text.encode("utf-8", "replace").decode("utf-8")
