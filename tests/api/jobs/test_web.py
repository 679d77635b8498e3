"""Files over HTTP: what is public, where a connection really goes, and what a server may answer."""

from __future__ import annotations

import http.server
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from nvpstore.api.jobs import spool, web
from nvpstore.api.jobs.sources import at_hand
from nvpstore.errors import SourceError, StoreError, UsageError

BODY = bytes(range(256)) * 1000
MOST_BYTES = 10**6


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the path, and notes what it was asked."""

    asked: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.asked.append((self.path, str(self.headers["Host"])))
        name = self.path.partition("?")[0].rpartition("/")[2]
        if name.isdigit():
            self.send_response(int(name))
            self.send_header("Location", "/clip.mp4")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        if name != "endless":
            self.send_header("Content-Length", str(len(BODY) * (2 if name == "short" else 1)))
        self.end_headers()
        self.wfile.write(BODY * (20 if name == "endless" else 1))

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    Handler.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def fetch(server: http.server.ThreadingHTTPServer, tmp_path: Path) -> Callable[[str], bytes]:
    """A file of the server, which an operator has named; and nothing stays of it."""
    root = f"http://films.example:{server.server_port}/"

    def fetched(path: str) -> bytes:
        with at_hand(
            root + path,
            [root],
            spool_dir=tmp_path,
            most_bytes=MOST_BYTES,
            resolve=lambda host, port: ["127.0.0.1"],
        ) as found:
            data = found.path.read_bytes()
        assert list(tmp_path.iterdir()) == []
        return data

    return fetched


class TestAddresses:
    @pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111"])
    def test_anybodys_are_public(self, address: str) -> None:
        assert web.is_public(address)

    @pytest.mark.parametrize(
        "address",
        [
            "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
            "100.64.0.1", "224.0.0.1", "255.255.255.255", "198.18.0.1", "::", "::1", "fe80::1%eth0",
            "fc00::1", "fd12::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ],
    )  # fmt: skip
    def test_those_of_machines_and_networks_are_not(self, address: str) -> None:
        assert not web.is_public(address)

    @pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::1"]])
    def test_an_unnamed_host_with_one_of_these_is_never_connected_to(
        self, addresses: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def connect(*_: object, **__: object) -> socket.socket:
            raise AssertionError("connected")

        monkeypatch.setattr(socket, "create_connection", connect)
        with (
            pytest.raises(UsageError, match="no public address"),
            at_hand(
                "https://rebound.example/x",
                ["https://"],
                spool_dir=tmp_path,
                most_bytes=MOST_BYTES,
                resolve=lambda host, port: addresses,
            ),
        ):
            pass

    def test_the_connection_goes_to_the_address_that_was_looked_at(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connected: list[object] = []

        def connect(address: object, *_: object, **__: object) -> socket.socket:
            connected.append(address)
            raise ConnectionRefusedError(111, "Connection refused")

        monkeypatch.setattr(socket, "create_connection", connect)
        looked_up: list[tuple[str, int]] = []

        def resolve(host: str, port: int) -> Sequence[str]:
            looked_up.append((host, port))
            return ["93.184.216.34"]

        with (
            pytest.raises(StoreError, match="cannot be fetched"),
            at_hand(
                "https://films.example/x",
                ["https://"],
                spool_dir=tmp_path,
                most_bytes=MOST_BYTES,
                resolve=resolve,
            ),
        ):
            pass
        assert looked_up == [("films.example", 443)]
        assert connected == [("93.184.216.34", 443)]

    def test_a_name_that_nobody_knows_is_no_address(self) -> None:
        with pytest.raises(StoreError, match="cannot be found"):
            web.addresses_of("a" * 64 + ".invalid", 443)


class TestFetch:
    def test_a_file_arrives_as_it_is(self, fetch: Callable[[str], bytes]) -> None:
        assert fetch("folder/clip.mp4?token=a b&x=%20") == BODY
        path, host = Handler.asked[0]
        assert path == "/folder/clip.mp4?token=a%20b&x=%20"
        assert host.startswith("films.example:")

    def test_it_tells_how_far_it_is(self, server: http.server.ThreadingHTTPServer, tmp_path: Path) -> None:
        told: list[tuple[int, int]] = []
        web.fetch(
            f"http://films.example:{server.server_port}/clip.mp4",
            tmp_path,
            most_bytes=MOST_BYTES,
            named=True,
            resolve=lambda host, port: ["127.0.0.1"],
            progress=lambda done, total: told.append((done, total)),
        )
        assert told[-1] == (len(BODY), len(BODY))

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_redirects_are_not_followed(self, fetch: Callable[[str], bytes], status: int) -> None:
        with pytest.raises(SourceError, match="redirects are not followed"):
            fetch(str(status))
        assert len(Handler.asked) == 1

    @pytest.mark.parametrize(
        ("status", "error"), [(403, SourceError), (404, SourceError), (429, StoreError), (503, StoreError)]
    )
    def test_what_passes_is_told_from_what_stays(
        self, fetch: Callable[[str], bytes], status: int, error: type[Exception]
    ) -> None:
        with pytest.raises(error, match=str(status)):
            fetch(str(status))

    def test_more_bytes_than_allowed_are_not_kept(self, fetch: Callable[[str], bytes]) -> None:
        with pytest.raises(SourceError, match="more than the 1000000 bytes"):
            fetch("endless")

    def test_a_disk_that_becomes_full_ends_it(
        self, fetch: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage("/")
        monkeypatch.setattr(web, "_PIECE_BYTES", 1 << 16)
        monkeypatch.setattr(
            spool.shutil, "disk_usage", lambda _: usage._replace(free=spool.SPARE_BYTES + 1000)
        )
        with pytest.raises(StoreError, match="the disk is full"):
            fetch("endless")

    def test_one_that_breaks_off_is_not_taken_for_whole(self, fetch: Callable[[str], bytes]) -> None:
        with pytest.raises(StoreError, match=r"broke off after 256000 of 512000 bytes"):
            fetch("short")

    def test_a_server_that_is_none_is_an_error_of_the_store(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with pytest.raises(StoreError, match="cannot be fetched"):
            web.fetch(
                f"http://films.example:{port}/x",
                tmp_path,
                most_bytes=MOST_BYTES,
                named=True,
                resolve=lambda host, port: ["127.0.0.1"],
            )
