"""What is refused before any route sees it: hosts, origins, and bodies that are too large or too slow."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from nvpstore.api.service.guards import BODY_BYTES, BodyGuard
from tests.api.service.small import small_client

VIDEO = "/v1/videos/abc"


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    return small_client(tmp_path)


class TestHosts:
    @pytest.mark.parametrize(
        "host", ["a b", "a/b", "user@host", "host:port", "host:1:2", "", "h\x00st", "[::1", "x" * 300]
    )
    def test_malformed_hosts_are_refused(self, client: TestClient, host: str) -> None:
        answer = client.get(VIDEO, headers={"Host": host})
        assert answer.status_code == 400
        assert answer.headers["Content-Type"] == "application/problem+json"

    def test_two_hosts_are_refused(self, client: TestClient) -> None:
        assert client.get(VIDEO, headers=[("Host", "a"), ("Host", "b")]).status_code == 400

    @pytest.mark.parametrize("host", ["nvp.example", "NVP.example:8000", "[::1]:80"])
    def test_with_names_only_these_are_served(self, tmp_path: Path, host: str) -> None:
        client = small_client(tmp_path, hosts=("nvp.example", "[::1]"))
        assert client.get(VIDEO, headers={"Host": host}).status_code == 200

    def test_a_site_with_a_name_of_its_own_is_refused(self, tmp_path: Path) -> None:
        client = small_client(tmp_path, hosts=("localhost", "127.0.0.1"))
        answer = client.get(VIDEO, headers={"Host": "rebound.example"})
        assert answer.status_code == 421
        assert "NVP_HOSTS" in answer.json()["detail"]

    def test_who_watches_may_ask_by_address(self, tmp_path: Path) -> None:
        client = small_client(tmp_path, hosts=("nvp.example",))
        assert client.get("/healthz", headers={"Host": "10.0.0.7:8000"}).status_code == 200
        assert client.get("/readyz", headers={"Host": "10.0.0.7:8000"}).status_code == 200


class TestOrigins:
    @pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://testserver:81", "http://["])
    def test_pages_of_other_sites_change_nothing(self, client: TestClient, origin: str) -> None:
        answer = client.delete(VIDEO, headers={"Origin": origin})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers

    def test_our_own_pages_may(self, client: TestClient) -> None:
        assert client.delete(VIDEO, headers={"Origin": "http://testserver"}).status_code == 200

    def test_no_preflight_is_answered(self, client: TestClient) -> None:
        asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "DELETE"}
        answer = client.options(VIDEO, headers=asked)
        assert answer.status_code == 405
        assert not [name for name in answer.headers if name.startswith("access-control")]


class TestBodies:
    def test_a_body_of_the_limit_is_taken(self, client: TestClient) -> None:
        frame = b'{"words": [""]}'
        body = frame.replace(b'""', b'"' + b"x" * (BODY_BYTES - len(frame)) + b'"')
        assert len(body) == BODY_BYTES
        answer = client.post("/v1/query", content=body, headers={"Content-Type": "application/json"})
        assert answer.json() == {"words": 1}

    @pytest.mark.parametrize("declared", [str(BODY_BYTES + 1), "9" * 5_000, "000" + str(BODY_BYTES + 1)])
    def test_a_declared_length_is_refused_unread(self, client: TestClient, declared: str) -> None:
        def body() -> Iterator[bytes]:
            yield b"{}"

        answer = client.post("/v1/query", content=body(), headers={"Content-Length": declared})
        assert answer.status_code == 413
        assert answer.headers["Connection"] == "close"
        assert answer.json()["title"] == HTTPStatus(413).phrase

    @pytest.mark.parametrize("path", ["/v1/query", "/v1/videos"])
    def test_a_body_without_end_is_cut_off(self, client: TestClient, path: str) -> None:
        sent = 0

        def body() -> Iterator[bytes]:
            nonlocal sent
            for _ in range(100):
                sent += 1
                yield b"x" * (BODY_BYTES // 8)

        answer = client.post(path, content=body(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 413

    def test_a_form_is_an_upload_only_where_uploads_are_taken(self, client: TestClient) -> None:
        form = {"Content-Type": "multipart/form-data; boundary=x"}
        large = b"x" * (BODY_BYTES + 1)
        assert client.post("/v1/query", content=large, headers=form).status_code == 413
        assert client.post("/v1/videos", content=large, headers=form).json() == {"bytes": len(large)}

    def test_a_body_that_takes_too_long_is_given_up(self) -> None:
        async def reads_all(scope: Scope, receive: Receive, send: Send) -> None:
            while (await receive()).get("more_body"):
                pass

        async def a_byte_at_a_time() -> Message:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b"x", "more_body": True}

        async def nowhere(message: Message) -> None:
            raise AssertionError("nothing is answered here")

        guard = BodyGuard(reads_all, uploads=(), body_seconds=0.1)
        scope = {"type": "http", "method": "POST", "path": "/v1/query", "headers": []}
        with pytest.raises(HTTPException) as caught:
            asyncio.run(guard(scope, a_byte_at_a_time, nowhere))
        assert caught.value.status_code == 408

    def test_once_the_body_is_there_callers_may_wait_for_the_answer(self) -> None:
        messages: list[Message] = [
            {"type": "http.request", "body": b"x", "more_body": False},
            {"type": "http.disconnect"},
        ]
        seen: list[str] = []

        async def waits(scope: Scope, receive: Receive, send: Send) -> None:
            seen.extend([(await receive())["type"], (await receive())["type"]])

        async def receive() -> Message:
            if len(messages) == 1:
                await asyncio.sleep(0.15)
            return messages.pop(0)

        async def nowhere(message: Message) -> None:
            raise AssertionError("nothing is answered here")

        guard = BodyGuard(waits, uploads=(), body_seconds=0.05)
        scope = {"type": "http", "method": "POST", "path": "/v1/query", "headers": []}
        asyncio.run(guard(scope, receive, nowhere))
        assert seen == ["http.request", "http.disconnect"]
