"""HTTP/1.1 as uvicorn speaks it, with a limit on how long a caller may take to say what it wants."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
READER_SECONDS = 300.0  # a paused video player comes back with a Range request
HEADER_BYTES = 32 << 10


class PatientProtocol(H11Protocol):
    """Ends connections whose request line and headers are not there after `header_seconds`, and those who
    read nothing of an answer for `reader_seconds`.

    uvicorn itself waits for ever, so that as many callers as there may be, a byte a minute each, would keep
    all others out.
    """

    header_seconds = HEADER_SECONDS
    reader_seconds = READER_SECONDS

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._out_of_patience: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._out_of_patience is None:
            self._wait_for_headers()  # the next request of a connection has begun

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.reader_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._is_read()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._is_read()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        self._out_of_patience = self.loop.call_later(self.header_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._out_of_patience is not None:
            self._out_of_patience.cancel()
            self._out_of_patience = None

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _give_up(self) -> None:
        self._out_of_patience = None
        if not self.transport.is_closing():
            self.transport.close()
