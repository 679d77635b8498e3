"""Slow callers, over real sockets: who sends or reads next to nothing is cut off, and nobody else is."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from nvpstore.api.service.protocol import HEADER_BYTES, PatientProtocol
from tests.api.service.real import serving

PATIENCE_SECONDS = 0.4
LARGE_BYTES = 256 << 20


class ImpatientProtocol(PatientProtocol):
    header_seconds = PATIENCE_SECONDS
    reader_seconds = PATIENCE_SECONDS


async def answers(scope: Scope, receive: Receive, send: Send) -> None:
    """`/large` is more than sockets hold; all else is "ok" after more than the patience."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/large":
        for _ in range(LARGE_BYTES // 65_536):
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
    await asyncio.sleep(PATIENCE_SECONDS * 2)
    await send({"type": "http.response.body", "body": b"ok", "more_body": False})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    config = uvicorn.Config(
        answers, http=ImpatientProtocol, h11_max_incomplete_event_size=HEADER_BYTES, ws="none",
        lifespan="off", log_config=None,
    )  # fmt: skip
    with serving(uvicorn.Server(config)) as port:
        yield port


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as caller:
        yield caller


def drip(caller: socket.socket, text: bytes) -> None:
    for byte in text:
        caller.sendall(bytes([byte]))
        time.sleep(PATIENCE_SECONDS / 10)


def read_to_end(caller: socket.socket) -> bytes:
    parts = []
    while part := caller.recv(65_536):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_headers_that_do_not_come_are_given_up(port: int, sent: bytes) -> None:
    with connected(port) as caller:
        caller.sendall(sent)
        assert read_to_end(caller) == b""


def test_a_byte_at_a_time_does_not_help(port: int) -> None:
    with connected(port) as caller, pytest.raises((BrokenPipeError, ConnectionResetError)):
        drip(caller, b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"x" * 1_000)


def test_a_second_request_of_a_connection_has_to_come_as_well(port: int) -> None:
    with connected(port) as caller:
        caller.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += caller.recv(65_536)
        assert b"200 OK" in received
        caller.sendall(b"GET / HT")
        assert read_to_end(caller) == b""


def test_an_answer_may_take_its_time(port: int) -> None:
    with connected(port) as caller:
        caller.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"ok" in read_to_end(caller)


def test_who_reads_nothing_is_cut_off(port: int) -> None:
    with socket.socket() as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        caller.settimeout(10)
        caller.connect(("127.0.0.1", port))
        caller.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(PATIENCE_SECONDS * 3)
        assert len(read_to_end(caller)) < LARGE_BYTES


def test_headers_without_end_are_refused(port: int) -> None:
    with connected(port) as caller:
        caller.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * (2 * HEADER_BYTES))
        assert caller.recv(65_536).startswith(b"HTTP/1.1 400 ")
