"""What every request passes through, outermost first.

Plain ASGI, so that streams are passed on as they come and a caller who goes away is noticed.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nvpstore.api.auth.audit import Deed
from nvpstore.api.service.guards import SAFE_METHODS, BodyGuard, HostGuard
from nvpstore.api.service.logs import REQUESTS
from nvpstore.api.service.offloop import off_loop
from nvpstore.api.service.problems import Refused, refusal, unexpected
from nvpstore.api.service.security import Caller
from nvpstore.api.service.state import Service
from nvpstore.errors import StoreError
from nvpstore.storage.keys import new_attempt

# No script and no style in pages; pictures and clips fetched with a key are blobs.
CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' blob:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
ORIGINALS = "/original"  # how routes end that give an original away
UNMATCHED = "unmatched"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_BROKEN = re.compile(r"[\r\n\0]")
_log = logging.getLogger("nvpstore.service")


def add_middleware(app: FastAPI, service: Service, *, prefix: str, uploads: Collection[str]) -> None:
    """`prefix` is that of the routes with versions; `uploads` are the paths that take files."""
    layers: list[tuple[Any, dict[str, Any]]] = [
        (Identity, {}),
        (Observation, {"service": service, "prefix": prefix}),
        (Draining, {}),
        (Audit, {"service": service, "prefix": prefix}),
        (Answering, {}),
        (HostGuard, {"hosts": service.settings.hosts}),
        (BodyGuard, {"uploads": uploads}),
    ]
    for layer, options in reversed(layers):  # Starlette puts the last one outside
        app.add_middleware(layer, **options)


def route_of(scope: Scope, prefix: str) -> str:
    """The template of the route that a request met, such as `/v1/videos/{video_id}`."""
    template = getattr(scope.get("route"), "path", None)
    if not isinstance(template, str):
        return UNMATCHED
    # A router that is included with a prefix does not know it.
    if scope["path"].startswith(f"{prefix}/") and not template.startswith(f"{prefix}/"):
        return prefix + template
    return template


class Identity:
    """Gives each request an id, and each answer that id and the headers that browsers heed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).getlist("x-request-id")
        sane = len(given) == 1 and _REQUEST_ID.fullmatch(given[0])
        request_id = given[0] if sane else new_attempt()
        scope.setdefault("state", {})["request_id"] = request_id

        async def identified(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                # With an ETag it is asked for again each time, and otherwise never kept.
                kept = "private, no-cache" if "etag" in headers else "no-store"
                headers.setdefault("Cache-Control", kept)
                if (allowance := scope["state"].get("allowance")) is not None:
                    for name, value in allowance.headers().items():
                        headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, identified)


@dataclass(slots=True)
class _Sent:
    """What of an answer has left so far."""

    status: int | None = None
    bytes: int = 0
    whole: bool = False

    def note(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.bytes += len(message.get("body", b""))
            self.whole = not message.get("more_body", False)


class Observation:
    """One line in the log and one observation in the metrics a request, once it is over."""

    def __init__(self, app: ASGIApp, *, service: Service, prefix: str) -> None:
        self._app, self._service, self._prefix = app, service, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, sent = time.perf_counter(), _Sent()

        async def noted(message: Message) -> None:
            sent.note(message)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._over(scope, sent, time.perf_counter() - began)

    def _over(self, scope: Scope, sent: _Sent, seconds: float) -> None:
        route, status = route_of(scope, self._prefix), sent.status or 499  # nobody waited for an answer
        self._service.metrics.request(scope["method"], route, status, seconds=seconds, sent_bytes=sent.bytes)
        caller: Caller | None = scope["state"].get("caller")
        fields = {
            "request": scope["state"]["request_id"],
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 1),
            "bytes": sent.bytes,
            "whole": sent.whole,
            "key": caller.key_id if caller else None,
            "client": scope["client"][0] if scope.get("client") else None,
        }
        # Neither path nor query: people write keys and SQL everywhere.
        REQUESTS.info("request", extra={"fields": fields})


@dataclass(slots=True)
class Streams:
    """Answers that go on until somebody ends them. `end` ends all of them, as a server does that stops."""

    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _ending: bool = False

    def end(self) -> None:
        self._ending = True
        for task in self._tasks:
            task.cancel()

    @property
    def ending(self) -> bool:
        return self._ending

    def add(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        if self._ending:
            task.cancel()

    def remove(self, task: asyncio.Task[Any]) -> bool:
        """Whether it was one of them."""
        known = task in self._tasks
        self._tasks.discard(task)
        return known


class Draining:
    """Ends streams of events properly when the server stops: they would use up all the time that it has."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        streams = getattr(scope["app"].state, "streams", None)
        task = asyncio.current_task()
        if scope["type"] != "http" or streams is None or task is None:
            await self._app(scope, receive, send)
            return

        sent = _Sent()

        async def watched(message: Message) -> None:
            sent.note(message)
            if message["type"] == "http.response.start":
                kind = Headers(raw=message["headers"]).get("content-type", "")
                if kind.startswith("text/event-stream"):
                    streams.add(task)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            # Other answers that are cut off must not look whole.
            if not (streams.ending and streams.remove(task)) or sent.whole:
                raise
            task.uncancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            streams.remove(task)


class Audit:
    """Writes down what callers do, before they hear of it: all but reads, and reads of originals.

    Who was not let in did nothing, and must not fill the log.
    """

    def __init__(self, app: ASGIApp, *, service: Service, prefix: str) -> None:
        self._app, self._service, self._prefix = app, service, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def written(message: Message) -> None:
            if message["type"] == "http.response.start":
                caller: Caller | None = scope["state"].get("caller")
                route, status = route_of(scope, self._prefix), message["status"]
                counts = scope["method"] not in SAFE_METHODS or route.endswith(ORIGINALS)
                if caller is not None and counts and status != HTTPStatus.TOO_MANY_REQUESTS:
                    await self._write(scope, caller, route, status)
            await send(message)

        await self._app(scope, receive, written)

    async def _write(self, scope: Scope, caller: Caller, route: str, status: int) -> None:
        deed = Deed(
            action=f"{scope['method']} {route}",
            target={name: str(value) for name, value in scope.get("path_params", {}).items()},
            status=status,
            key=caller.key_id,
            name=caller.name,
            address=scope["client"][0] if scope.get("client") else None,
            request=scope["state"]["request_id"],
        )
        try:
            await off_loop(lambda: self._service.audit.write(deed))
        except StoreError as cause:
            # It has happened: to answer with an error would only have it done again.
            _log.critical("not in the audit log: %s: %s", deed, cause)


class Answering:
    """Every failure is answered, by a problem or, once an answer has begun, by the end of the connection."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = _Sent()

        async def checked(message: Message) -> None:
            if message["type"] == "http.response.start":
                _check_headers(message)
            sent.note(message)
            await send(message)

        try:
            await self._app(scope, receive, checked)
        except Refused as error:
            await refusal(Request(scope), error)(scope, receive, send)
        except Exception as error:
            answer = unexpected(Request(scope), error)
            if sent.status is not None:
                raise  # the server closes the connection: nobody takes a part for the whole
            await answer(scope, receive, send)


def _check_headers(message: Message) -> None:
    """What callers said may stand in a header, but not end it."""
    for name, value in message["headers"]:
        if _BROKEN.search(name.decode("latin-1")) or _BROKEN.search(value.decode("latin-1")):
            raise ValueError(f"header {name!r} holds a line's end")
