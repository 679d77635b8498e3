"""A reverse proxy before an S3 server: it counts requests, and breaks some of them on purpose."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

import aiohttp
from aiohttp import web
from yarl import URL

Fault = Literal["error_503", "error_500", "reset", "lost_answer", "truncated", "stall"]

FAULTS: tuple[Fault, ...] = ("error_503", "error_500", "reset", "lost_answer", "truncated", "stall")

_PIECE_BYTES = 2**18
# Of one connection, not of what passes through it.
_HOP_HEADERS = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect"}
)
_ERRORS = {"error_503": (503, "SlowDown"), "error_500": (500, "InternalError")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as it came. `path` is /bucket/key, decoded; `byte_range` the Range header, or ''.

    `sent_bytes` and `received_bytes` are the bodies' lengths as the client sees them. `status` is 0 where the
    client got no answer. `fault` names what was done to it, '' for nothing.
    """

    method: str
    path: str
    query: str
    byte_range: str
    sent_bytes: int
    received_bytes: int
    status: int
    fault: Fault | Literal[""]


@dataclass(kw_only=True)
class _Passing:
    """What is known of a request while it passes."""

    fault: Fault | Literal[""]
    status: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


@dataclass(kw_only=True)
class Faults:
    """Which share of requests (0 to 1) fails, and how: each kind is as likely as the next.

    A stall lasts `stall_seconds`, then the request goes on.
    """

    rate: float = 0.0
    kinds: tuple[Fault, ...] = FAULTS
    seed: int = 0
    stall_seconds: float = 2.0
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def next(self) -> Fault | Literal[""]:
        """The next request's fault."""
        return self._random.choice(self.kinds) if self._random.random() < self.rate else ""


class Proxy:
    """Serves `endpoint` under its own URL, from a thread of its own, while its context is entered.

    Requests pass as they are, with their Host header, so that their signatures hold.
    """

    def __init__(self, endpoint: str) -> None:
        self._target = URL(endpoint)
        self._faults = Faults()
        self._requests: list[Request] = []
        self._under_way = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._port = 0

    def __enter__(self) -> Proxy:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def endpoint(self) -> str:
        """The proxy's URL, to be used as AWS_ENDPOINT_URL."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def requests(self) -> tuple[Request, ...]:
        """All requests since the last reset, in the order in which they ended; waits for those under way."""
        asyncio.run_coroutine_threadsafe(self._idle(), self._loop).result()
        return tuple(self._requests)

    def reset(self, faults: Faults | None = None) -> None:
        """Forget all requests; from now on break those that `faults` says, by default none."""
        asyncio.run_coroutine_threadsafe(self._idle(), self._loop).result()
        self._requests = []
        self._faults = faults or Faults()

    async def _idle(self) -> None:
        # A client has its answer a moment before the request is written down.
        while self._under_way:
            await asyncio.sleep(0.001)

    async def _start(self) -> None:
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
            connector=aiohttp.TCPConnector(limit=0),
        )
        application = web.Application(client_max_size=0)
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(application, access_log=None, auto_decompress=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        passing = _Passing(fault=self._faults.next())
        self._under_way += 1
        try:
            return await self._pass(request, passing)
        finally:
            self._under_way -= 1
            self._requests.append(
                Request(
                    method=request.method,
                    path=request.path,
                    query=request.query_string,
                    byte_range=request.headers.get("Range", ""),
                    sent_bytes=passing.sent_bytes,
                    received_bytes=passing.received_bytes,
                    status=passing.status,
                    fault=passing.fault,
                )
            )

    async def _pass(self, request: web.Request, passing: _Passing) -> web.StreamResponse:
        if passing.fault in _ERRORS:
            return await _refused(request, passing)
        if passing.fault == "reset":
            return _cut(request)
        if passing.fault == "stall":
            await asyncio.sleep(self._faults.stall_seconds)
        async with self._session.request(
            request.method,
            # Signed as it was spelled, so not one character may change.
            self._target.join(URL(request.raw_path, encoded=True)),
            headers=_passed(request.headers),
            data=_body(request, passing) if request.can_read_body else None,
            skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
            allow_redirects=False,
        ) as answer:
            if passing.fault == "lost_answer":
                await answer.read()
                return _cut(request)
            return await _answered(request, answer, passing)


async def _answered(
    request: web.Request, answer: aiohttp.ClientResponse, passing: _Passing
) -> web.StreamResponse:
    passing.status = answer.status
    response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=_passed(answer.headers))
    length = int(answer.headers.get("Content-Length", 0))
    most = length // 2 if passing.fault == "truncated" and request.method == "GET" else length
    await response.prepare(request)
    async for piece in answer.content.iter_chunked(_PIECE_BYTES):
        piece = piece[: most - passing.received_bytes] if answer.content_length is not None else piece
        passing.received_bytes += len(piece)
        await response.write(piece)
        if passing.received_bytes == most < length:
            _close(request)
            return response
    await response.write_eof()
    return response


async def _refused(request: web.Request, passing: _Passing) -> web.StreamResponse:
    passing.status, code = _ERRORS[passing.fault]
    passing.sent_bytes = len(await request.read())
    body = f"<Error><Code>{code}</Code><Message>Please reduce your request rate.</Message></Error>"
    return web.Response(
        status=passing.status,
        body=b"" if request.method == "HEAD" else body.encode(),
        content_type="application/xml",
    )


def _cut(request: web.Request) -> web.StreamResponse:
    """Reset the connection; what is returned goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _close(request: web.Request) -> None:
    """End the connection after what was written to it."""
    if request.transport is not None:
        request.transport.close()


async def _body(request: web.Request, passing: _Passing) -> AsyncIterator[bytes]:
    async for piece in request.content.iter_chunked(_PIECE_BYTES):
        passing.sent_bytes += len(piece)
        yield piece


def _passed(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _HOP_HEADERS}
