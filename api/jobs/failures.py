"""Why a job failed: what its owner is told, and whether another attempt may help."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from nvpstore.errors import (
    AttemptTooOld,
    CommitDropped,
    IntegrityError,
    NotFound,
    NvpError,
    ObjectExists,
    OnHold,
    QueryError,
    QueryTimeout,
    RouteError,
    SourceError,
    StoreError,
    TaskError,
    UsageError,
)

# As requests are answered; what is not here is an error of ours. The nearest class counts.
_STATUS: Mapping[type[BaseException], HTTPStatus] = {
    NotFound: HTTPStatus.NOT_FOUND,
    OnHold: HTTPStatus.CONFLICT,
    UsageError: HTTPStatus.BAD_REQUEST,
    SourceError: HTTPStatus.UNPROCESSABLE_ENTITY,
    TaskError: HTTPStatus.UNPROCESSABLE_ENTITY,
    QueryTimeout: HTTPStatus.GATEWAY_TIMEOUT,
    QueryError: HTTPStatus.UNPROCESSABLE_ENTITY,
    RouteError: HTTPStatus.UNPROCESSABLE_ENTITY,
    CommitDropped: HTTPStatus.CONFLICT,
    IntegrityError: HTTPStatus.INTERNAL_SERVER_ERROR,
    StoreError: HTTPStatus.SERVICE_UNAVAILABLE,
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LASTING = (CommitDropped, IntegrityError, ObjectExists)  # store errors that no second attempt gets past
OURS = "an error of ours: the server's log says more under this job's id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error as a job keeps it. `expected`: one that is raised on purpose, after which all is in order."""

    title: str
    detail: str
    status: int
    error: str | None
    retry: bool
    expected: bool

    def to_json(self) -> dict[str, Any]:
        named = {"error": self.error} if self.error else {}
        return {"title": self.title, "detail": self.detail, "status": self.status, **named}


def described(error: BaseException) -> Failure:
    """What to say about an error, without anything of our insides."""
    if _is_full(error):
        return _failure(
            HTTPStatus.INSUFFICIENT_STORAGE, "the server's disk is full", "StoreError", retry=True
        )
    if isinstance(error, NvpError):
        lasting = isinstance(error, _LASTING) and not isinstance(error, AttemptTooOld)
        retry = isinstance(error, StoreError) and not lasting
        detail = " ".join(str(error).split())
        return _failure(_status(error), detail, type(error).__name__, retry=retry)
    # Of what we did not expect we do not know that it stays; but this process may not be in order.
    detail = "the worker ran out of memory" if _is_out_of_memory(error) else OURS
    return _failure(HTTPStatus.INTERNAL_SERVER_ERROR, detail, None, retry=True, expected=False)


def _failure(
    status: HTTPStatus, detail: str, error: str | None, *, retry: bool, expected: bool = True
) -> Failure:
    return Failure(
        title=status.phrase, detail=detail, status=status.value, error=error, retry=retry, expected=expected
    )


def _status(error: NvpError) -> HTTPStatus:
    found = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), None)
    return found or HTTPStatus.INTERNAL_SERVER_ERROR


def _is_full(error: BaseException) -> bool:
    return any(isinstance(cause, OSError) and cause.errno in _FULL for cause in _causes(error))


def _is_out_of_memory(error: BaseException) -> bool:
    # Torch has an error of its own for devices, and none for the processor.
    words = ("not enough memory", "can't allocate memory", "bad_alloc")
    return any(
        isinstance(cause, MemoryError)
        or type(cause).__name__ == "OutOfMemoryError"
        or any(word in str(cause) for word in words)
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
