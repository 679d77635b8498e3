"""What a server says went wrong (RFC 9457), as the error that a local archive would have raised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvpstore import errors
from nvpstore.errors import (
    AccessDenied,
    CommitDropped,
    NotFound,
    NvpError,
    QueryError,
    ServiceError,
    UsageError,
)

_BY_NAME: Mapping[str, type[NvpError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, NvpError)
}
# Where a problem does not name its error, as those of proxies do not.
_BY_STATUS: Mapping[int, type[NvpError]] = {
    400: UsageError,
    401: AccessDenied,
    403: AccessDenied,
    404: NotFound,
    405: UsageError,
    406: UsageError,
    409: CommitDropped,
    411: UsageError,
    413: UsageError,
    415: UsageError,
    422: UsageError,
    428: UsageError,
}


def error_of(problem: Mapping[str, Any], *, status: int, query: bool = False) -> NvpError:
    """The error that a problem document or a failed job describes, with the server's words.

    `query` says that an unnamed 422 is about the text of a query.
    """
    text = str(problem.get("detail") or problem.get("title") or f"the server answered with status {status}")
    named = _BY_NAME.get(str(problem.get("error")))
    if named is not None:
        return named(text)
    if query and status == 422:
        return QueryError(text)
    return _BY_STATUS.get(status, ServiceError)(text)
