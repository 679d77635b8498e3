"""What a request must pass before it reaches a route: its host, its origin, the size and pace of its body."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nvpstore.api.service.problems import Refused

BODY_BYTES = 1 << 20  # of requests that are no uploads
MOST_HEADERS = 100
BODY_SECONDS = 30.0  # until all of such a body is there
# Whoever watches a server asks it by its address.
NAMELESS = frozenset({"/healthz", "/readyz"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?", re.ASCII)
# The rest of a body that is refused is not read: the connection ends.
_CLOSE = {"Connection": "close"}


class HostGuard:
    """Refuses requests for other hosts, what another site's page sends from somebody's browser, and what can
    be read in two ways.

    With `hosts` (names without port) only these are served, so that no page of another site reaches this
    server under a name of its own (DNS rebinding). Empty: any well-formed name.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            _check_framing(headers)
            host = self._host(headers, known=scope["path"] not in NAMELESS)
            if scope["method"] not in SAFE_METHODS:
                _check_origin(headers, host)
        await self._app(scope, receive, send)

    def _host(self, headers: Headers, *, known: bool) -> str | None:
        """The Host header; with `known` it has to be one of ours."""
        given = headers.getlist("host")
        if not given:
            return None  # HTTP/1.0
        match = _HOST.fullmatch(given[0])
        if len(given) > 1 or match is None:
            raise Refused(HTTPStatus.BAD_REQUEST, "one well-formed Host header is needed")
        if known and self._hosts and match[1].lower() not in self._hosts:
            raise Refused(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"host {match[1]!r} is not served here: {', '.join(sorted(self._hosts))} (NVP_HOSTS adds "
                "others)",
            )
        return given[0].lower()


def _check_framing(headers: Headers) -> None:
    """What a proxy in front and this server could read as two different requests (RFC 9112, section 6.3)."""
    if len(headers) > MOST_HEADERS:
        raise Refused(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"{len(headers)} headers: at most {MOST_HEADERS} are read",
            headers=_CLOSE,
        )
    lengths, chunked = headers.getlist("content-length"), headers.getlist("transfer-encoding")
    if len(lengths) > 1 or (lengths and chunked):
        raise Refused(HTTPStatus.BAD_REQUEST, "a body has one Content-Length, or is chunked", headers=_CLOSE)


def _check_origin(headers: Headers, host: str | None) -> None:
    """Browsers say where a page that sends something came from; programs say nothing."""
    for origin in headers.getlist("origin"):
        if origin.lower().partition("://")[2] != host:
            raise Refused(HTTPStatus.FORBIDDEN, f"requests of pages from {origin[:200]!r} are not taken")


class BodyGuard:
    """Bounds bodies while they arrive, except those of uploads, which have limits of their own.

    `uploads` are the paths that take `multipart/form-data`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        uploads: Collection[str],
        body_bytes: int = BODY_BYTES,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self._app, self._uploads = app, frozenset(uploads)
        self._body_bytes, self._body_seconds = body_bytes, body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_upload(scope):
            await self._app(scope, receive, send)
            return
        # Not as a number: there is no end to what digits may say.
        declared = Headers(scope=scope).get("content-length", "").lstrip("0")
        most = str(self._body_bytes)
        if (len(declared), declared) > (len(most), most):
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._said(), headers=_CLOSE)
        await self._app(scope, self._bounded(receive), send)

    def _is_upload(self, scope: Scope) -> bool:
        kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        return scope["path"] in self._uploads and kind == "multipart/form-data"

    def _bounded(self, receive: Receive) -> Receive:
        arrived, whole = 0, False
        until: float | None = None

        async def bounded() -> Message:
            nonlocal arrived, whole, until
            if whole:
                return await receive()  # waits until the caller goes away
            now = asyncio.get_running_loop().time()
            until = now + self._body_seconds if until is None else until
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                # FastAPI passes this kind of exception on from where it reads bodies, and no other.
                raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, self._slow(arrived), headers=_CLOSE) from None
            arrived += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if arrived > self._body_bytes:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._said(), headers=_CLOSE)
            return message

        return bounded

    def _said(self) -> str:
        return f"the body is larger than the {self._body_bytes} bytes that a request may have here"

    def _slow(self, arrived: int) -> str:
        return f"{arrived} bytes of the body arrived in {self._body_seconds:g} s, and not its end"
