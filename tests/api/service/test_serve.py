"""Starting and stopping the server: what it refuses, and what a signal does to requests and workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nvpstore.api.auth.keys import KeyRing
from nvpstore.api.service.serve import Server, build_service, is_loopback, run
from nvpstore.api.service.settings import ServiceSettings
from nvpstore.archive import Archive
from nvpstore.errors import StoreError, UsageError
from tests.api.service.real import serving
from tests.api.service.small import small_app, small_service
from tests.conftest import open_micro


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return open_micro(tmp_path / "archive", tmp_path / "cache", create=True)


class TestBuilding:
    def test_each_archive_has_its_own_state(self, archive: Archive, tmp_path: Path) -> None:
        service = build_service(archive, ServiceSettings(state_dir=tmp_path / "state"), True)
        folder = tmp_path / "state" / archive.log.archive_id
        assert service.settings.state_dir == folder
        assert {path.name for path in folder.iterdir()} >= {"jobs.sqlite", "keys.sqlite"}
        assert service.audit.path == folder / "audit.jsonl"

    def test_a_malformed_rate_is_refused_at_the_start(self, archive: Archive, tmp_path: Path) -> None:
        settings = ServiceSettings(state_dir=tmp_path / "state", rate="often")
        with pytest.raises(UsageError, match="NVP_RATE_LIMIT"):
            build_service(archive, settings, True)

    def test_a_folder_that_cannot_be_is_said(self, archive: Archive, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match="file"):
            build_service(archive, ServiceSettings(state_dir=tmp_path / "file"), True)


@pytest.mark.parametrize(("host", "answer"), [
    ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True),
    ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("nvp.example", False), ("", False),
    ("localhost.evil.example", False), ("127.0.0.1.evil.example", False),
])  # fmt: skip
def test_what_counts_as_loopback(host: str, answer: bool) -> None:
    assert is_loopback(host) is answer


class TestRefusals:
    def test_off_loopback_it_does_not_start_without_a_key(self, archive: Archive, tmp_path: Path) -> None:
        service = build_service(archive, ServiceSettings(state_dir=tmp_path / "state"), False)
        with pytest.raises(UsageError, match="nvp keys add"):
            run(service, "0.0.0.0", 0)

    def test_revoked_keys_do_not_count(self, archive: Archive, tmp_path: Path) -> None:
        service = build_service(archive, ServiceSettings(state_dir=tmp_path / "state"), False)
        service.keys.revoke(service.keys.add("ops", ["admin"])[0].id)
        with pytest.raises(UsageError, match="nvp keys add"):
            run(service, "0.0.0.0", 0)

    def test_a_port_that_is_taken_is_said(self, archive: Archive, tmp_path: Path) -> None:
        service = build_service(archive, ServiceSettings(state_dir=tmp_path / "state", workers=0), True)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(UsageError, match=f"port {port}"):
                run(service, "127.0.0.1", port)


class TestStopping:
    """The server's own part, over a few routes that take their time."""

    @contextmanager
    def small(self, folder: Path) -> Iterator[tuple[Server, int, list[str]]]:
        said: list[str] = []
        server = Server(
            small_app(small_service(folder)),
            stopping=lambda: said.append("workers"),
            started=lambda: said.append("started"),
        )
        with serving(server) as port:
            yield server, port, said

    def test_a_request_that_runs_is_finished(self, tmp_path: Path) -> None:
        answers: list[Any] = []
        with self.small(tmp_path) as (server, port, said):
            asking = threading.Thread(target=lambda: answers.append(get(port, "/v1/slow?seconds=1")))
            asking.start()
            wait_for_tasks(server, 1)
            server.should_exit = True
            asking.join(30)
        assert answers == [{"slept": 1.0}]
        assert said == ["started", "workers"]

    def test_streams_of_events_end_properly_and_at_once(self, tmp_path: Path) -> None:
        with (
            self.small(tmp_path) as (server, port, _),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/events", timeout=15) as events,
        ):
            said = events.readline()
            assert said == b": tick\n"
            server.should_exit = True
            # To the end of a chunked answer: urllib raises IncompleteRead where it is missing.
            said += events.read()
        assert said.endswith(b": tick\n\n")  # perhaps there was no time for a second one


def get(port: int, path: str, *, host: str = "127.0.0.1", **headers: str) -> Any:
    request = urllib.request.Request(f"http://{host}:{port}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def wait_for_tasks(server: Server, count: int) -> None:
    ready = threading.Event()
    while len(server.server_state.tasks) < count:
        ready.wait(0.01)


@pytest.mark.slow  # a process with its workers each
class TestProcess:
    @pytest.fixture
    def environment(self, archive: Archive, tmp_path: Path) -> dict[str, str]:
        return {
            **os.environ,
            "NVP_ARCHIVE": str(tmp_path / "archive"),
            "NVP_CACHE": str(tmp_path / "cache"),
            "NVP_STATE": str(tmp_path / "state"),
        }

    @contextmanager
    def server(
        self, environment: dict[str, str], *arguments: str
    ) -> Iterator[tuple[subprocess.Popen[str], int]]:
        command = [sys.executable, "-m", "nvpstore.api.cli", "serve", "--port", "0", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, env=environment, text=True, **pipes)  # type: ignore[call-overload]
        try:
            line = process.stdout.readline()
            assert line.startswith("serving "), process.stderr.read()
            yield process, int(line.rsplit(":", 1)[1])
        finally:
            process.kill()
            process.communicate()

    def test_sigterm_ends_it_with_status_0_and_its_workers_with_it(self, environment: dict[str, str]) -> None:
        with self.server(environment, "--workers", "1") as (process, port):
            assert get(port, "/readyz")["ready"]
            children = children_of(process.pid)
            assert children
            process.send_signal(signal.SIGTERM)
            _, logged = process.communicate(timeout=60)
        assert process.returncode == 0, logged
        assert [child for child in children if lives(child)] == []
        assert all(json.loads(line)["level"] != "error" for line in logged.splitlines())

    def test_on_loopback_it_warns_that_there_are_no_keys(self, environment: dict[str, str]) -> None:
        with self.server(environment, "--workers", "0") as (process, port):
            assert get(port, "/healthz") == {"status": "alive"}
            process.send_signal(signal.SIGINT)
            _, logged = process.communicate(timeout=60)
        assert process.returncode == 0
        warnings = [json.loads(line) for line in logged.splitlines() if '"warning"' in line]
        assert "there are no keys" in warnings[0]["message"]

    def test_sigterm_during_a_request_lets_it_end(self, environment: dict[str, str]) -> None:
        body = b'{"sql": "SELECT count(*) AS n FROM videos"}'
        head = (
            "POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with self.server(environment, "--workers", "0") as (process, port):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as caller:
                caller.sendall(head.encode() + body[:5])
                # Answered on another connection: by then it has begun.
                assert get(port, "/healthz") == {"status": "alive"}
                process.send_signal(signal.SIGTERM)
                assert refused_soon(port)
                caller.sendall(body[5:])
                answer = read_to_end(caller)
            process.communicate(timeout=60)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b'"n"' in answer
        assert process.returncode == 0

    def test_a_second_signal_ends_it_at_once(self, environment: dict[str, str]) -> None:
        with self.server(environment, "--workers", "0") as (process, port):
            caller = socket.create_connection(("127.0.0.1", port))
            body = "POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{"
            caller.sendall(body.encode())
            # Answered on another connection: by then it has begun.
            assert get(port, "/healthz") == {"status": "alive"}
            process.send_signal(signal.SIGTERM)
            assert refused_soon(port)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=15)
        assert process.returncode == 128 + signal.SIGTERM

    def test_on_loopback_other_names_are_not_served(self, environment: dict[str, str]) -> None:
        with self.server(environment, "--workers", "0") as (_, port):
            with pytest.raises(urllib.error.HTTPError) as refused:
                get(port, "/v1/videos", Host="rebound.example")
            assert refused.value.code == 421
            assert get(port, "/v1/videos", Host=f"localhost:{port}")

    def test_a_new_key_is_needed_at_once_and_logs_hold_no_secret(self, environment: dict[str, str]) -> None:
        ring = KeyRing(self.keys_of(environment))
        with self.server(environment, "--workers", "0") as (process, port):
            assert get(port, "/v1/videos")
            _, secret = ring.add("test", ["read"])
            with pytest.raises(urllib.error.HTTPError) as refused:
                get(port, f"/v1/videos?key={secret}")
            assert refused.value.code == 401
            assert get(port, "/v1/videos", Authorization=f"Bearer {secret}")
            process.send_signal(signal.SIGTERM)
            _, logged = process.communicate(timeout=60)
        assert secret not in logged
        assert [json.loads(line)["status"] for line in logged.splitlines() if "/v1/videos" in line] == [
            200, 401, 200,
        ]  # fmt: skip

    def keys_of(self, environment: dict[str, str]) -> Path:
        """Where the keys of the archive will be."""
        archive = open_micro(environment["NVP_ARCHIVE"], Path(environment["NVP_CACHE"]))
        return Path(environment["NVP_STATE"]) / archive.log.archive_id / "keys.sqlite"


def read_to_end(caller: socket.socket) -> bytes:
    parts = []
    while part := caller.recv(65_536):
        parts.append(part)
    return b"".join(parts)


def children_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in found for child in path.read_text().split()]


def lives(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def refused_soon(port: int) -> bool:
    """Whether new connections are refused, which is so once the first signal was seen."""
    waiting = threading.Event()
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            return True
        waiting.wait(0.02)
    return False
