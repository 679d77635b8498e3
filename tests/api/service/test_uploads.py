"""Bodies as they arrive: what is taken, what is refused at once, and that nothing is left of the refused."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import itertools
import json
import os
import shutil
import socket
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from nvpstore.api.service import uploads
from nvpstore.api.service.problems import Refused
from nvpstore.api.service.state import Service
from nvpstore.api.service.uploads import BodyLimits, Upload, display_name, receive_form
from tests.api.service.served import again, service_behind, serving

BOUNDARY = b"----a-boundary"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY.decode()}"
PLENTY = BodyLimits(most_bytes=1 << 30, stall_seconds=30)


@pytest.fixture(scope="module")
def service(empty: Service) -> Service:
    return empty


def part(name: str, data: bytes, *, filename: str | None = None, more: str = "") -> bytes:
    said = f'Content-Disposition: form-data; name="{name}"'
    if filename is not None:
        said += f'; filename="{filename}"'
    return b"--" + BOUNDARY + b"\r\n" + said.encode() + more.encode() + b"\r\n\r\n" + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def received(pieces: list[bytes], folder: Path, limits: BodyLimits = PLENTY) -> Upload:
    """What `receive_form` makes of a body that arrives in these pieces."""
    left = [*pieces]

    async def receive() -> Message:
        piece = left.pop(0) if left else b""
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    scope = {
        "type": "http",
        "method": "POST",
        "headers": [(b"content-type", CONTENT_TYPE.encode())],
        "path": "/",
        "query_string": b"",
    }
    request = Request(scope, receive)
    return asyncio.run(receive_form(request, folder=folder, file_part="file", limits=limits))


def spool(service: Service) -> list[Path]:
    """What uploads have left on the disk."""
    folder = service.settings.spool_dir
    return sorted(folder.iterdir()) if folder.exists() else []


def send(client: TestClient, body: bytes, content_type: str = CONTENT_TYPE, **headers: str) -> Any:
    return client.post("/v1/videos", content=body, headers={"Content-Type": content_type, **headers})


Fresh = Callable[..., TestClient]


class TestForms:
    def test_an_upload_is_a_job_whose_file_has_the_bytes_that_were_sent(self, fresh: Fresh) -> None:
        client, data = fresh(), os.urandom(300_000)
        answer = client.post("/v1/videos", files={"file": ("gate.mp4", data)}, data={"name": "gate"})
        assert answer.status_code == 202, answer.text
        job = answer.json()
        assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
        assert job["video_id"] == hashlib.sha256(data).hexdigest()[:32]
        assert (job["kind"], job["state"], job["owner"]) == ("ingest", "queued", "local")
        request = service_behind(client).queue.get(job["id"]).request
        assert Path(request["file"]).read_bytes() == data
        assert request["sha256"] == hashlib.sha256(data).hexdigest()

    def test_fields_are_taken_before_and_behind_the_file(self, fresh: Fresh) -> None:
        client = fresh()
        body = form(
            part("tasks", b"labels"),
            part("tags", '{"camera": "Tür"}'.encode()),
            part("file", b"bytes", filename="gate.mp4"),
            part("tasks", b"depth"),
            part("recorded_at", b"2026-03-01T08:00:00+01:00"),
            part("mode", b"add"),
            part("name", b""),
        )
        job = send(client, body).json()
        request = job["request"]
        assert (job["kind"], request["tasks"], request["tags"]) == (
            "add",
            ["labels", "depth"],
            {"camera": "Tür"},
        )
        assert request["recorded_at"] == "2026-03-01T08:00:00+01:00"
        assert (request["name"], request["original_name"], request["keep_source"]) == (
            None,
            "gate.mp4",
            "copy",
        )

    def test_where_an_upload_lies_is_not_told(self, fresh: Fresh) -> None:
        client = fresh()
        answer = send(client, form(part("file", b"bytes", filename="gate.mp4")))
        assert str(service_behind(client).settings.state_dir) not in answer.text
        assert "file" not in answer.json()["request"]

    def test_the_sender_s_file_name_is_no_path(self, fresh: Fresh) -> None:
        client = fresh()
        body = form(part("file", b"bytes", filename="../../../etc/cron.d/evil"))
        job = send(client, body).json()
        assert job["request"]["original_name"] == "evil"
        (folder,) = spool(service_behind(client))
        assert [path.name for path in folder.iterdir()] == ["upload"]

    @given(
        data=st.binary(min_size=1, max_size=200),
        lookalikes=st.lists(
            st.sampled_from([b"\r\n--", b"\r\n----a-bound", b"\r", b"\r\n----a-boundar\r\n", b"--", b"\n"]),
            max_size=5,
        ),
        cuts=st.lists(st.integers(1, 700), max_size=30),
    )
    def test_a_body_means_the_same_however_it_is_cut(
        self, tmp_path_factory: pytest.TempPathFactory, data: bytes, lookalikes: list[bytes], cuts: list[int]
    ) -> None:
        content = b"".join(lookalikes) + data + b"".join(reversed(lookalikes))
        body = form(part("name", b"gate"), part("file", content, filename="a.mp4"), part("mode", b"add"))
        places = sorted({0, *(cut for cut in cuts if cut < len(body)), len(body)})
        pieces = [body[first:last] for first, last in itertools.pairwise(places)]
        found = received(pieces, tmp_path_factory.mktemp("cut") / "upload")
        assert found.path.read_bytes() == content
        assert (found.sha256, found.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
        assert found.fields == (("name", "gate"), ("mode", "add"))

    def test_memory_does_not_grow_with_the_body(self, tmp_path: Path) -> None:
        piece = os.urandom(1 << 16)
        pieces = [form(part("file", b"", filename="a"))[: -len(b"\r\n--" + BOUNDARY + b"--\r\n")]]
        pieces += [piece] * 1024 + [b"\r\n--" + BOUNDARY + b"--\r\n"]
        tracemalloc.start()
        try:
            found = received(pieces, tmp_path / "upload")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert found.size_bytes == 1024 << 16
        assert peak < 8 << 20


FILE = part("file", b"bytes", filename="a.mp4")
MALFORMED = {
    "no file": (form(part("name", b"gate")), 422),
    "an empty file": (form(part("file", b"", filename="a.mp4")), 422),
    "two files": (form(FILE, FILE), 422),
    "no end": (form(FILE)[:-10], 400),
    "nothing": (b"", 400),
    "no boundary at its start": (b"garbage" + form(FILE), 400),
    "no disposition": (form(b"--" + BOUNDARY + b"\r\nContent-Type: text/plain\r\n\r\nx\r\n", FILE), 400),
    "no name": (form(b"--" + BOUNDARY + b"\r\nContent-Disposition: form-data\r\n\r\nx\r\n", FILE), 400),
    "an encoding": (form(part("file", b"aGk=", more="\r\nContent-Transfer-Encoding: base64")), 400),
    "many parts": (form(*[part("tasks", b"labels")] * 300, FILE), 400),
    "large fields": (form(part("name", b"x" * (2 << 20)), FILE), 413),
    "large headers": (form(part("file", b"x", more="\r\nX-A: " + "y" * 9000)), 400),
    "a field that is no text": (form(part("name", b"\xff\xfe"), FILE), 400),
    "an unknown field": (form(part("colour", b"red"), FILE), 422),
    "a field twice": (form(part("name", b"a"), part("name", b"b"), FILE), 422),
    "tags that are no JSON": (form(part("tags", b"camera=gate"), FILE), 422),
    "tags that are no object": (form(part("tags", b"[1]"), FILE), 422),
    "tags nested deeply": (form(part("tags", b"[" * 100_000), FILE), 422),
    "control characters": (form(part("name", b"a\x07b"), FILE), 422),
    "a long name": (form(part("name", b"a" * 256), FILE), 422),
    "many tags": (form(part("tags", json.dumps({str(i): "" for i in range(65)}).encode()), FILE), 422),
    "a time without zone": (form(part("recorded_at", b"2026-03-01T08:00:00"), FILE), 422),
    "an unknown mode": (form(part("mode", b"delete"), FILE), 422),
    "an unknown preset": (form(part("preset", b"huge"), FILE), 400),
    "a task that is no name": (form(part("tasks", b"labels; DROP"), FILE), 422),
    "a reference to an upload": (form(part("keep_source", b"reference"), FILE), 422),
    "an added video that is not kept": (form(part("mode", b"add"), part("keep_source", b"none"), FILE), 422),
}


class TestRefusals:
    @pytest.mark.parametrize("case", MALFORMED)
    def test_a_malformed_form_is_a_problem_and_leaves_nothing(self, fresh: Fresh, case: str) -> None:
        client = fresh()
        body, status = MALFORMED[case]
        answer = send(client, body)
        assert answer.status_code == status, answer.text
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["detail"]
        assert spool(service_behind(client)) == []
        assert service_behind(client).queue.jobs() == []

    @pytest.mark.parametrize(
        "content_type",
        [
            "",
            "text/plain",
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/mixed; boundary=x",
        ],
    )
    def test_other_bodies_are_refused(self, fresh: Fresh, content_type: str) -> None:
        client = fresh()
        assert send(client, form(FILE), content_type).status_code == 415
        assert spool(service_behind(client)) == []

    def test_a_queue_that_is_full_takes_no_upload(self, fresh: Fresh) -> None:
        client = fresh(waiting_jobs=1)
        assert send(client, form(FILE)).status_code == 202
        answer = send(client, form(part("file", b"other", filename="b.mp4")))
        assert (answer.status_code, "Retry-After" in answer.headers) == (429, True)
        assert len(spool(service_behind(client))) == 1

    def test_more_than_is_free_on_the_disk_is_refused(
        self, fresh: Fresh, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = fresh()
        usage = type(shutil.disk_usage("/"))
        monkeypatch.setattr(uploads.shutil, "disk_usage", lambda _: usage(1, 1, uploads.SPARE_BYTES + 100))
        answer = send(client, form(part("file", b"x" * 1000)))
        assert (answer.status_code, "Retry-After" in answer.headers) == (507, True)
        assert spool(service_behind(client)) == []

    def test_a_disk_that_fills_up_meanwhile_ends_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(uploads.os, "fsync", full)
        with pytest.raises(Refused, match="no room") as refused:
            received([form(FILE)], tmp_path / "upload")
        assert refused.value.status == 507
        assert not (tmp_path / "upload").exists()


class TestSameKey:
    def send(self, client: TestClient, data: bytes, key: str = "once", **fields: str) -> Any:
        return client.post(
            "/v1/videos",
            files={"file": ("gate.mp4", data)},
            data=fields,
            headers={"Idempotency-Key": key},
        )

    def test_the_same_bytes_again_are_the_same_job_and_no_second_file(self, fresh: Fresh) -> None:
        client = fresh()
        first, second = self.send(client, b"bytes"), self.send(client, b"bytes")
        assert (first.status_code, second.status_code) == (202, 202)
        assert first.json()["id"] == second.json()["id"]
        (folder,) = spool(service_behind(client))
        job = service_behind(client).queue.get(first.json()["id"])
        assert Path(job.request["file"]).parent == folder

    @pytest.mark.parametrize(
        ("data", "fields"), [(b"others", {}), (b"bytes", {"name": "other"}), (b"bytes", {"mode": "add"})]
    )
    def test_something_else_under_the_same_key_is_refused(
        self, fresh: Fresh, data: bytes, fields: dict[str, str]
    ) -> None:
        client = fresh()
        self.send(client, b"bytes")
        assert self.send(client, data, **fields).status_code == 422
        assert len(spool(service_behind(client))) == 1

    def test_another_key_is_another_job(self, fresh: Fresh) -> None:
        client = fresh()
        ids = {self.send(client, b"bytes", key=key).json()["id"] for key in ("one", "two")}
        assert len(ids) == 2

    @pytest.mark.parametrize("key", ["", "x" * 256])
    def test_a_key_has_a_length(self, fresh: Fresh, key: str) -> None:
        client = fresh()
        assert self.send(client, b"bytes", key=key).status_code == 422
        assert spool(service_behind(client)) == []


# ---------------------------------------------------------------- over real connections


@pytest.fixture
def small(service: Service, tmp_path: Path) -> Iterator[tuple[Service, str]]:
    """A real server that takes 1 MiB, and waits for half a second."""
    own = again(service, tmp_path / "state", upload_bytes=1 << 20, stall_seconds=0.5)
    with serving(own) as url:
        yield own, url


def connected(url: str, head: str) -> socket.socket:
    """A connection on which a request for an upload has begun."""
    address = urlsplit(url)
    connection = socket.create_connection((address.hostname or "", address.port or 0), timeout=20)
    start = (
        f"POST /v1/videos HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: {CONTENT_TYPE}\r\n{head}\r\n"
    )
    connection.sendall(start.encode())
    return connection


def status_of(connection: socket.socket) -> int:
    return int(connection.makefile("rb").readline().split()[1])


def eventually(holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + 20
    while not holds() and time.monotonic() < until:
        time.sleep(0.02)
    return holds()


class TestConnections:
    def test_a_declared_size_that_is_too_large_is_refused_before_any_byte(
        self, small: tuple[Service, str]
    ) -> None:
        service, url = small
        with connected(url, f"Content-Length: {10**12}\r\n") as connection:
            assert status_of(connection) == 413
        assert spool(service) == []

    def test_a_queue_that_is_full_is_told_before_any_byte(self, service: Service, tmp_path: Path) -> None:
        own = again(service, tmp_path / "state", waiting_jobs=1)
        own.queue.submit("ingest", {}, owner="somebody")
        with serving(own) as url:
            with connected(url, "Content-Length: 500000\r\n") as connection:
                assert status_of(connection) == 429
            with connected(url, "Content-Length: 500000\r\nIdempotency-Key: once\r\n") as connection:
                connection.sendall(part("file", b"x", filename="a.mp4"))
                assert eventually(lambda: len(spool(own)) == 1)
        assert eventually(lambda: spool(own) == [])

    def test_a_body_without_a_size_is_cut_off_where_it_is_too_large(self, small: tuple[Service, str]) -> None:
        service, url = small
        sent = 0

        def body() -> Iterator[bytes]:
            nonlocal sent
            yield part("file", b"", filename="a.mp4")[:-2]
            for _ in range(4096):
                sent += 1 << 16
                yield b"x" * (1 << 16)

        try:
            answer = httpx2.post(f"{url}/v1/videos", content=body(), headers={"Content-Type": CONTENT_TYPE})
            assert answer.status_code == 413
        except httpx2.TransportError:
            pass  # the connection ended while it was still sending
        assert sent < 128 << 20
        assert eventually(lambda: spool(service) == [])

    def test_who_sends_too_slowly_is_cut_off(self, small: tuple[Service, str]) -> None:
        service, url = small
        ended = threading.Event()
        with connected(url, "Content-Length: 100000\r\n") as connection:

            def drip() -> None:
                while not ended.wait(0.1):
                    try:
                        connection.sendall(b"-")
                    except OSError:
                        return

            connection.sendall(part("file", b"", filename="a.mp4"))
            dripping = threading.Thread(target=drip)
            dripping.start()
            try:
                assert status_of(connection) == 408
            finally:
                ended.set()
                dripping.join()
        assert eventually(lambda: spool(service) == [])

    def test_of_an_upload_that_ends_early_nothing_stays(self, small: tuple[Service, str]) -> None:
        service, url = small
        with connected(url, "Content-Length: 500000\r\n") as connection:
            connection.sendall(part("file", b"x" * 100_000, filename="a.mp4"))
            assert eventually(lambda: len(spool(service)) == 1)
        assert eventually(lambda: spool(service) == [])
        assert service.queue.jobs() == []

    def test_a_sender_that_pauses_but_keeps_up_is_taken(self, small: tuple[Service, str]) -> None:
        _, url = small
        content = os.urandom(200_000)

        async def body() -> AsyncIterator[bytes]:
            whole = form(part("file", content, filename="a.mp4"))
            for start in range(0, len(whole), 1 << 16):
                yield whole[start : start + (1 << 16)]
                await asyncio.sleep(0.2)

        async def post() -> httpx2.Response:
            async with httpx2.AsyncClient() as client:
                return await client.post(
                    f"{url}/v1/videos", content=body(), headers={"Content-Type": CONTENT_TYPE}
                )

        answer = asyncio.run(post())
        assert answer.status_code == 202, answer.text
        assert answer.json()["video_id"] == hashlib.sha256(content).hexdigest()[:32]


@pytest.mark.parametrize(
    ("given_name", "shown"),
    [
        ("gate.mp4", "gate.mp4"),
        ("a/b/gate.mp4", "gate.mp4"),
        ("C:\\videos\\gate.mp4", "gate.mp4"),
        ("..", "upload"),
        ("", "upload"),
        ("\x00\x1b[31mred\u202e.mp4", "[31mred.mp4"),
        ("Tu\u0308r.mp4", "Tür.mp4"),
        ("x" * 500, "x" * 255),
    ],
)
def test_a_file_s_name_is_shown_without_what_could_mislead(given_name: str, shown: str) -> None:
    assert display_name(given_name) == shown
