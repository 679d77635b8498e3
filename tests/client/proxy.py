"""A proxy in front of a real server that misbehaves as told, request by request."""

from __future__ import annotations

import http.client
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to one request instead of what should.

    With `status` the proxy answers itself. With `cut_after`, the server's answer breaks off after so many
    bytes of its body. With `lose`, the server does its work, but nobody hears of it.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_after: int | None = None
    lose: bool = False


@dataclass(frozen=True, kw_only=True)
class Seen:
    method: str
    path: str
    headers: Mapping[str, str]


class Proxy:
    """Passes requests on to `target`; `faults` are used up in order by those whose path holds `only`."""

    def __init__(self, target: str, *faults: Fault, only: str = "/") -> None:
        self.target, self.faults, self.only = urlsplit(target), deque(faults), only
        self.seen: list[Seen] = []
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault_for(self, path: str) -> Fault:
        return self.faults.popleft() if self.faults and self.only in path else Fault()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        self.close_connection = True
        self.proxy.seen.append(Seen(method=self.command, path=self.path, headers=dict(self.headers)))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.fault_for(self.path)
        if fault.status is not None:
            self._answer(fault.status, {**fault.headers, "Content-Length": str(len(fault.body))})
            self.wfile.write(fault.body)
            return
        self._forward(body, fault)

    do_GET = do_POST = do_PATCH = do_DELETE = handle_any

    def _forward(self, body: bytes, fault: Fault) -> None:
        target = self.proxy.target
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        connection.request(self.command, self.path, body or None, headers)
        answer = connection.getresponse()
        if fault.lose:
            answer.read()
            return
        # Chunked, so that a body which breaks off is seen to.
        passed = {n: v for n, v in answer.getheaders() if n.lower() not in ("content-length", "connection")}
        self._answer(answer.status, {**passed, "Transfer-Encoding": "chunked"})
        left = fault.cut_after
        while piece := answer.read1(65536):
            if left is not None and len(piece) >= left:
                self._chunk(piece[:left])
                return
            left = None if left is None else left - len(piece)
            self._chunk(piece)
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() != "transfer-encoding" or value == "chunked":
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def _chunk(self, piece: bytes) -> None:
        if piece:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()

    def log_message(self, format: str, *values: object) -> None:
        pass
