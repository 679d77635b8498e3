"""Requests to one server: its address, the key, what is tried again, and errors as ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, TypeVar

import httpx2
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from nvpstore.client.failures import error_of
from nvpstore.errors import NvpError, ServiceError

T = TypeVar("T")

PREFIX = "v1"
PROBLEM = "application/problem+json"
QUICK_SECONDS = 60.0  # without a byte of an answer that takes no time to compute
QUERY_SECONDS = 3600.0  # without a byte of one that does
_CONNECT_SECONDS = 10.0
_ATTEMPTS = 7
_LONGEST_PAUSE_SECONDS = 10.0
_PASSING = frozenset({429, 503})
_PASSING_OF_PROXIES = frozenset({502, 504})
_MOST_PROBLEM_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request. `retry`: to ask twice does no more than to ask once.

    `files` and `fields` are the parts of a form, `body` is a JSON value. `query`: it runs one, whose text may
    be wrong.
    """

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    fields: Mapping[str, Any] | None = None
    files: Mapping[str, Any] | None = None
    read_seconds: float = QUICK_SECONDS
    retry: bool = False
    query: bool = False


class Busy(ServiceError):
    """What passes: the server may answer the same request later, after `pause_seconds` where it says so."""

    def __init__(self, message: str, *, pause_seconds: float | None = None, last: NvpError) -> None:
        super().__init__(message)
        self.pause_seconds = pause_seconds
        self.last = last


class Transport:
    """Can be shared by threads."""

    def __init__(self, url: str, *, key: str | None) -> None:
        self.url = url
        headers = {"Accept": "application/json"}
        if key is not None:
            # httpx2 drops it where a redirect leads to another host.
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx2.Client(
            base_url=f"{url}/{PREFIX}/",
            headers=headers,
            timeout=httpx2.Timeout(QUICK_SECONDS, connect=_CONNECT_SECONDS),
            follow_redirects=True,
        )

    def __repr__(self) -> str:
        return f"Transport({self.url!r})"  # without the key

    def close(self) -> None:
        self._client.close()

    def json(self, method: str, path: str, **asked: Any) -> Any:
        """The answer's JSON value. GET is tried again, others where `retry` says so."""
        asked.setdefault("retry", method == "GET")
        ask = Ask(method=method, path=path, **asked)
        return self.persistently(lambda: self._json(ask), retry=ask.retry)

    @contextmanager
    def streamed(self, ask: Ask) -> Iterator[httpx2.Response]:
        """The answer with its body still to be read; only the way to its first byte is tried again."""
        response = self.persistently(lambda: self._opened(ask), retry=ask.retry)
        try:
            with self.broken_off():
                yield response
        finally:
            response.close()

    def persistently(self, action: Callable[[], T], *, retry: bool) -> T:
        """The result of `action`, which with `retry` is repeated while what fails may pass."""
        retrying = Retrying(
            retry=retry_if_exception_type(Busy),
            stop=stop_after_attempt(_ATTEMPTS if retry else 1),
            wait=_pause,
            reraise=True,
        )
        try:
            return retrying(action)
        except Busy as busy:
            raise busy.last from busy

    @contextmanager
    def broken_off(self) -> Iterator[None]:
        """Failures of the connection, as ours."""
        try:
            yield
        except httpx2.InvalidURL as error:
            raise ServiceError(f"{self.url}: {error}") from error
        except httpx2.HTTPError as error:
            said = str(error) or type(error).__name__
            failure = ServiceError(f"{self.url} cannot be reached, or broke off: {said}")
            raise Busy(str(failure), last=failure) from error

    def _json(self, ask: Ask) -> Any:
        with self.broken_off():
            response = self._opened(ask)
            try:
                content = response.read()
            finally:
                response.close()
        if response.status_code == 204 or not content:
            return None
        try:
            return json.loads(content)
        except ValueError as cause:
            kind = response.headers.get("content-type", "no type")
            raise ServiceError(f"{self.url} answered with {kind} instead of JSON: is it nvpstore?") from cause

    def _opened(self, ask: Ask) -> httpx2.Response:
        """An answer that is none of an error. Raises Busy for what may pass."""
        with self.broken_off():
            response = self._client.send(self._request(ask), stream=True)
            if response.is_success:
                return response
            try:
                problem = _problem(response)
            finally:
                response.close()
        error = error_of(problem, status=response.status_code, query=ask.query)
        if _passes(response.status_code, problem, ask):
            raise Busy(str(error), pause_seconds=_retry_after(response), last=error)
        raise error

    def _request(self, ask: Ask) -> httpx2.Request:
        given: dict[str, Any] = {}
        if ask.body is not None:
            given["json"] = ask.body
        if ask.files is not None:
            given.update(data=ask.fields or {}, files=ask.files)
        return self._client.build_request(
            ask.method,
            ask.path,
            params=dict(ask.params),
            headers=dict(ask.headers),
            timeout=httpx2.Timeout(QUICK_SECONDS, connect=_CONNECT_SECONDS, read=ask.read_seconds),
            **given,
        )


def _passes(status: int, problem: Mapping[str, Any], ask: Ask) -> bool:
    # A query that took too long would take as long again, and a proxy's patience does not grow.
    of_proxy = "error" not in problem and not ask.query
    return status in _PASSING or (of_proxy and status in _PASSING_OF_PROXIES)


def _pause(state: RetryCallState) -> float:
    """As long as the server says, within reason; else random and growing."""
    error = state.outcome.exception() if state.outcome else None
    told = error.pause_seconds if isinstance(error, Busy) else None
    if told is not None:
        return min(max(told, 0.0), _LONGEST_PAUSE_SECONDS)
    return float(wait_random_exponential(multiplier=0.25, max=_LONGEST_PAUSE_SECONDS)(state))


def _retry_after(response: httpx2.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    if text.isdigit():
        return float(text)
    try:
        return parsedate_to_datetime(text).timestamp() - time()
    except (TypeError, ValueError):
        return None


def _problem(response: httpx2.Response) -> Mapping[str, Any]:
    """The problem document, or what can be said without one."""
    content = bytearray()
    for piece in response.iter_bytes():
        content += piece
        if len(content) > _MOST_PROBLEM_BYTES:
            break
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if isinstance(found, dict) and isinstance(found.get("detail"), str):
        return found
    return {"detail": f"{response.request.url} answered {response.status_code} {response.reason_phrase}"}
