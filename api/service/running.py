"""Queries on threads of their own, and the way of their answers from there to the event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Coroutine, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from nvpstore.api.service.answers import Head
from nvpstore.api.service.metrics import Metrics
from nvpstore.api.service.problems import Refused, status_of
from nvpstore.api.service.state import Service
from nvpstore.errors import NvpError, QueryTimeout, StoreError

# Queries of all callers that run; the others wait in line. More of them only take each other's time.
AT_ONCE = max(8, 2 * (os.cpu_count() or 1))
MOST_WAITING = 256
_PIECES_AHEAD = 2  # of an answer that is read more slowly than it is made
_POLL_SECONDS = 0.05
_log = logging.getLogger("nvpstore.service")

Piece = Head | bytes
Make = Callable[[threading.Event], Generator[Piece, None, None]]


class CallerGone(Exception):
    """Nobody waits for an answer any more."""


class AnswerBroke(Exception):
    """An answer ended in an error after its first byte: the connection must end without its last chunk."""


class Desk:
    """One server's running queries: on a bounded number of threads, a bounded number of each caller's.

    Callers take turns: a query waits for at most one of each other caller's, however many those have.
    """

    def __init__(self, *, each: int, metrics: Metrics, at_once: int = AT_ONCE) -> None:
        """`each` is how many queries a caller may have at once, waiting ones included."""
        self._each, self._metrics = each, metrics
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="service-query")
        self._running: Counter[str] = Counter()
        self._line: OrderedDict[str, deque[Run]] = OrderedDict()  # the caller whose turn it is first
        self._counting = threading.Lock()
        self._most = at_once + MOST_WAITING

    def start(self, caller: str, make: Make) -> Run:
        """Begin a query, or let it wait for a thread. To be called on the event loop.

        Raises Refused: 429 where this caller has as many as may be, 503 where all together have.
        """
        with self._counting:
            self._check_turn(caller)
            self._running[caller] += 1
        run = Run(
            make,
            loop=asyncio.get_running_loop(),
            metrics=self._metrics,
            on_end=lambda: self._ended(caller),
        )
        with self._counting:
            self._line.setdefault(caller, deque()).append(run)
        self._threads.submit(self._carry_out_next)
        return run

    def _carry_out_next(self) -> None:
        with self._counting:
            caller, runs = self._line.popitem(last=False)
            run = runs.popleft()
            if runs:
                self._line[caller] = runs  # behind all others
        run.carry_out()

    def _check_turn(self, caller: str) -> None:
        if self._running[caller] >= self._each:
            raise Refused(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{self._running[caller]} of your queries run, as many as may at once (NVP_QUERIES_AT_ONCE):"
                " wait for one, or ask with Prefer: respond-async",
                headers={"Retry-After": "1"},
            )
        if self._running.total() >= self._most:
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self._running.total()} queries wait for their turn, as many as may",
                headers={"Retry-After": "5"},
            )

    def _ended(self, caller: str) -> None:
        with self._counting:
            self._running[caller] -= 1
            if not self._running[caller]:
                del self._running[caller]


def desk_of(request: Request, service: Service) -> Desk:
    """The server's own. To be called on the event loop, so that two requests do not make two."""
    state = request.app.state
    if not hasattr(state, "query_desk"):
        state.query_desk = Desk(each=service.settings.queries_at_once, metrics=service.metrics)
    desk = state.query_desk
    assert isinstance(desk, Desk), "set here"
    return desk


class Run:
    """One query: `carry_out` makes its answer on a thread, `next` gives the pieces on the event loop.

    At most a few pieces wait for whoever reads them. `stop` it, and the query ends at its next batch.
    """

    def __init__(
        self,
        make: Make,
        *,
        loop: asyncio.AbstractEventLoop,
        metrics: Metrics,
        on_end: Callable[[], None],
    ) -> None:
        """`on_end` is called once nothing runs any more, before the last piece is given."""
        self._make, self._loop, self._metrics, self._on_end = make, loop, metrics, on_end
        self._pieces: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()
        self._room = threading.Semaphore(_PIECES_AHEAD)
        self._stopped = threading.Event()  # by us
        self._cancel = threading.Event()  # the query's own, which its deadline sets as well
        self._began = time.monotonic()

    def stop(self) -> None:
        self._stopped.set()
        self._cancel.set()

    # ------------------------------------------------------------ on its thread

    def carry_out(self) -> None:
        error = self._failed()
        outcome = "cancelled" if self._stopped.is_set() else _outcome(error)
        self._metrics.query(time.monotonic() - self._began, outcome)
        self._on_end()
        with suppress(CallerGone):
            self._put(error)

    def _failed(self) -> Exception | None:
        """Give all pieces; what went wrong."""
        try:
            if self._stopped.is_set():
                raise CallerGone
            with closing(self._make(self._cancel)) as pieces:
                for piece in pieces:
                    self._put(piece)
        except Exception as error:
            return error
        return None

    def _put(self, piece: Piece | Exception | None) -> None:
        while not self._room.acquire(timeout=_POLL_SECONDS):
            if self._stopped.is_set():
                raise CallerGone
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
        except RuntimeError as cause:  # the loop ended first
            raise CallerGone from cause

    # ------------------------------------------------------------ on the event loop

    async def next(self) -> Piece | None:
        """The next piece; None at the end. Raises the query's error."""
        piece = await self._pieces.get()
        self._room.release()
        if isinstance(piece, Exception):
            raise piece
        return piece


def _outcome(error: Exception | None) -> str:
    if error is None:
        return "done"
    if isinstance(error, QueryTimeout):
        return "timeout"
    return "refused" if isinstance(error, NvpError) and not isinstance(error, StoreError) else "failed"


async def respond(run: Run, request: Request, *, media_type: str) -> Response:
    """The answer to a request, once its first rows are there. Stops the run where the caller goes away.

    Raises the query's error, where it comes before.
    """
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        head = await _unless(gone, run.next())
    except CallerGone:
        run.stop()
        return Response(status_code=HTTPStatus.NO_CONTENT)  # which nobody reads
    except BaseException:
        run.stop()
        raise
    finally:
        gone.cancel()
    assert isinstance(head, Head), "comes first"
    return _Answer(run, head.headers(), media_type=media_type)


class _Answer(Response):
    """Sends a run's pieces as they come. Where it breaks off, the body has no end."""

    def __init__(self, run: Run, headers: Mapping[str, str], *, media_type: str) -> None:
        # Not Response's own: without a body there is no length to tell.
        self.status_code, self.background, self.media_type = HTTPStatus.OK, None, media_type
        self._run = run
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            while (piece := await _unless(gone, self._run.next())) is not None:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except CallerGone:
            return
        except NvpError as error:
            # Of what is a caller's fault, messages have parts of their SQL.
            ours = status_of(error) >= HTTPStatus.INTERNAL_SERVER_ERROR
            _log.warning("an answer broke off: %s", error if ours else type(error).__name__)
            raise AnswerBroke(type(error).__name__) from None
        finally:
            self._run.stop()
            gone.cancel()


async def _gone(receive: Receive) -> None:
    """Returns once the caller goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless(gone: asyncio.Future[None], wanted: Coroutine[Any, Any, Piece | None]) -> Piece | None:
    """What `wanted` gives. Raises CallerGone where the caller goes away before."""
    getting = asyncio.ensure_future(wanted)
    either: set[asyncio.Future[Any]] = {getting, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not getting.done():
            raise CallerGone
        return getting.result()
    finally:
        getting.cancel()
