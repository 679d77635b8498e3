"""What every request passes through: an id, safe headers, a log line, the audit, an answer to failures."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from nvpstore.api.service.guards import HostGuard
from nvpstore.api.service.problems import Refused
from nvpstore.errors import StoreError
from tests.api.service.small import audited, bearer, service_behind, small_client

ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
VIDEO = "/v1/videos/abc"


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    return small_client(tmp_path)


def request_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.fields for record in caplog.records if record.name == "nvpstore.service.requests"]  # type: ignore[attr-defined]


def samples(client: TestClient, name: str) -> dict[str, float]:
    """Figures of one name, by their labels."""
    found = re.findall(rf"^{name}(\{{.*\}})? (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


class TestIdentity:
    def test_a_sane_id_is_kept(self, client: TestClient) -> None:
        answer = client.get(VIDEO, headers={"X-Request-Id": "pipeline-7.b_1"})
        assert answer.headers["X-Request-Id"] == "pipeline-7.b_1"

    @pytest.mark.parametrize("given", ["", "a b", "x" * 65, "id\tid", 'x"}', "é", "a;b"])
    def test_any_other_gets_one_of_ours(self, client: TestClient, given: str) -> None:
        answer = client.get(VIDEO, headers=[("X-Request-Id", given.encode())])
        assert ULID.fullmatch(answer.headers["X-Request-Id"])

    def test_two_ids_are_none(self, client: TestClient) -> None:
        answer = client.get(VIDEO, headers=[("X-Request-Id", "a"), ("X-Request-Id", "b")])
        assert ULID.fullmatch(answer.headers["X-Request-Id"])

    def test_problems_name_the_request(self, client: TestClient) -> None:
        for path in ("/v1/nowhere", "/v1/bug", "/v1/store"):
            answer = client.get(path)
            assert answer.json()["instance"] == answer.headers["X-Request-Id"]

    @pytest.mark.parametrize("path", [VIDEO, "/healthz", "/v1/nowhere", "/v1/bug", "/v1/store", "/metrics"])
    def test_every_answer_has_the_headers_that_browsers_heed(self, client: TestClient, path: str) -> None:
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        policy = headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["Cache-Control"] == "no-store"
        assert "server" not in headers

    def test_a_line_end_in_a_header_is_an_error_not_a_header(self, client: TestClient) -> None:
        answer = client.get("/v1/header", params={"value": "a\r\nSet-Cookie: x=1"})
        assert answer.status_code == 500
        assert "set-cookie" not in answer.headers
        assert client.get("/v1/header", params={"value": "fine"}).headers["X-Said"] == "fine"


class TestFailures:
    def test_an_error_of_ours_is_said_without_its_words(
        self, client: TestClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        answer = client.get("/v1/bug")
        assert answer.status_code == 500
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert "vault" not in answer.text
        (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
        assert record.exc_info is not None
        assert "vault" in str(record.exc_info[1])
        assert record.fields == {"request": answer.headers["X-Request-Id"]}  # type: ignore[attr-defined]

    def test_an_error_within_an_answer_ends_the_connection(
        self, client: TestClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        with pytest.raises(RuntimeError, match="in the middle"):
            client.get("/v1/half")
        (line,) = request_lines(caplog)
        assert (line["status"], line["whole"]) == (200, False)

    def test_names_of_stores_are_for_who_was_let_in(self, client: TestClient) -> None:
        stranger, known = client.get("/v1/store"), client.get("/v1/known-store")
        assert (stranger.status_code, known.status_code) == (503, 503)
        assert "bucket" not in stranger.text
        assert "s3://bucket/prefix" in known.json()["detail"]
        assert known.headers["Retry-After"] == "5"


class TestLog:
    def test_a_request_is_one_line_with_its_route_and_key(
        self, client: TestClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        answer = client.get(VIDEO, headers=bearer(service_behind(client), "read"))
        (line,) = request_lines(caplog)
        assert line == {
            "request": answer.headers["X-Request-Id"],
            "method": "GET",
            "route": "/v1/videos/{video_id}",
            "status": 200,
            "ms": line["ms"],
            "bytes": len(answer.content),
            "whole": True,
            "key": answer.json()["caller"],
            "client": "testclient",
        }
        assert line["ms"] > 0

    def test_lines_hold_neither_secrets_nor_sql(
        self, client: TestClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        headers = bearer(service_behind(client), "query")
        secret = headers["Authorization"].removeprefix("Bearer ")
        client.post("/v1/query", json={"words": ["SELECT secret FROM vault"]}, headers=headers)
        client.get(f"/v1/nowhere/{secret}", params={"key": secret, "sql": "SELECT secret"})
        client.get("/v1/bug", headers={"Authorization": f"Bearer {secret}x"})
        ours = [record for record in caplog.records if record.name.startswith("nvpstore")]
        said = json.dumps([{**vars(record), "said": record.getMessage()} for record in ours], default=str)
        assert len(ours) == 4
        assert secret not in said
        assert "SELECT" not in said


class TestMetrics:
    def test_labels_are_templates_however_many_paths_there_are(self, client: TestClient) -> None:
        for number in range(20):
            client.get(f"/v1/videos/{number}")
            client.get(f"/v1/nowhere/{number}")
            client.request(f"METHOD{number}", f"/elsewhere{number}")
        counts = samples(client, "nvp_request_seconds_count")
        assert counts['{method="GET",route="/v1/videos/{video_id}",status="200"}'] == 20
        assert counts['{method="GET",route="unmatched",status="404"}'] == 20
        assert sum(value for labels, value in counts.items() if 'method="other"' in labels) == 20
        assert len(counts) <= 6


class TestAudit:
    def test_what_changes_something_is_written_down_with_its_target(self, client: TestClient) -> None:
        service = service_behind(client)
        headers = {**bearer(service, "admin"), "X-Request-Id": "r-1"}
        client.delete(VIDEO, headers=headers)
        (line,) = audited(service)
        assert line == {
            "at": line["at"],
            "action": "DELETE /v1/videos/{video_id}",
            "target": {"video_id": "abc"},
            "status": 200,
            "key": service.keys.keys()[0].id,
            "name": "test",
            "address": "testclient",
            "request": "r-1",
        }

    def test_originals_are_written_down_and_other_reads_are_not(self, client: TestClient) -> None:
        client.get(VIDEO)
        client.get(f"{VIDEO}/original")
        assert [line["action"] for line in audited(service_behind(client))] == [
            "GET /v1/videos/{video_id}/original"
        ]

    def test_a_key_that_may_not_is_written_down(self, client: TestClient) -> None:
        service = service_behind(client)
        client.delete(VIDEO, headers=bearer(service, "read"))
        assert [(line["action"], line["status"]) for line in audited(service)] == [
            ("DELETE /v1/videos/{video_id}", 403)
        ]

    def test_strangers_and_the_impatient_cannot_fill_it(self, tmp_path: Path) -> None:
        client = small_client(tmp_path, loopback=False, rate="1/hour")
        service = service_behind(client)
        headers = bearer(service, "admin")
        for _ in range(5):
            client.delete(VIDEO)
            client.delete(VIDEO, headers=headers)
        assert [line["status"] for line in audited(service)] == [200]

    def test_it_is_on_the_disk_before_the_caller_hears(
        self, client: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        service, order = service_behind(client), []
        write = type(service.audit).write
        monkeypatch.setattr(
            type(service.audit), "write", lambda log, deed: (order.append("audit"), write(log, deed))
        )
        with client.stream("DELETE", VIDEO) as answer:
            order.append("answer")
            assert answer.status_code == 200
        assert order == ["audit", "answer"]

    def test_a_full_disk_is_shouted_and_the_answer_stays_true(
        self, client: TestClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(log: object, deed: object) -> None:
            raise StoreError("no space left")

        monkeypatch.setattr(type(service_behind(client).audit), "write", full)
        assert client.delete(VIDEO).status_code == 200
        assert [r.levelname for r in caplog.records if "audit log" in r.getMessage()] == ["CRITICAL"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("Content-Length", "2"), ("Transfer-Encoding", "chunked")], 400),
        ([("Content-Length", "2"), ("Content-Length", "3")], 400),
        ([(f"X-{i}", "1") for i in range(150)], 431),
    ],
    ids=["length and chunks", "two lengths", "too many"],
)
def test_what_can_be_read_in_two_ways_is_refused(headers: list[tuple[str, str]], status: int) -> None:
    async def never(*_: object) -> None:
        raise AssertionError("a route was reached")

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/videos",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
    }
    with pytest.raises(Refused) as refused:
        asyncio.run(HostGuard(never, hosts=())(scope, never, never))
    assert refused.value.status == status
