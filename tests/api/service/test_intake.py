"""Videos by URI: only under the roots that the operator allows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from nvpstore.api.service.intake import under_roots
from nvpstore.api.service.problems import Refused
from nvpstore.api.service.state import Service
from tests.api.service.served import service_behind

ROOTS = ("/srv/videos", "s3://camera-1/2026", "https://cameras.example/clips/")
Fresh = Callable[..., TestClient]


@pytest.fixture(scope="module")
def service(empty: Service) -> Service:
    return empty


@pytest.mark.parametrize(
    ("uri", "fetched"),
    [
        ("/srv/videos/gate.mp4", "/srv/videos/gate.mp4"),
        ("/srv/videos//a/gate.mp4", "/srv/videos/a/gate.mp4"),
        ("file:///srv/videos/T%C3%BCr%20auf.mp4", "/srv/videos/Tür auf.mp4"),
        ("s3://camera-1/2026/03/gate.mp4", "s3://camera-1/2026/03/gate.mp4"),
        ("S3://Camera-1/2026/gate.mp4", "s3://camera-1/2026/gate.mp4"),
        ("https://cameras.example/clips/gate.mp4", "https://cameras.example/clips/gate.mp4"),
    ],
)
def test_what_is_under_a_root_is_fetched(uri: str, fetched: str) -> None:
    assert under_roots(uri, ROOTS) == fetched


@pytest.mark.parametrize(
    "uri",
    [
        "/etc/passwd",
        "/srv/videos-private/gate.mp4",
        "/srv/videos/../secrets/gate.mp4",
        "/srv/videos/%2e%2e/secrets/gate.mp4",
        "file:///srv/videos/..%2fsecrets/gate.mp4",
        "file://elsewhere/srv/videos/gate.mp4",
        "srv/videos/gate.mp4",
        "s3://camera-1/2025/gate.mp4",
        "s3://camera-1/2026/../2025/gate.mp4",
        "s3://camera-1/20260/gate.mp4",
        "s3://camera-1@evil/2026/gate.mp4",
        "s3://camera-1/2026/gate.mp4?versionId=1",
        "https://cameras.example.evil/clips/gate.mp4",
        "https://user:word@cameras.example/clips/gate.mp4",
        "https://cameras.example/clips\\..\\gate.mp4",
        "http://cameras.example/clips/gate.mp4",
        "http://169.254.169.254/latest/meta-data",
        "gopher://cameras.example/clips/gate.mp4",
        "//cameras.example/clips/gate.mp4",
        "http://[::1",
    ],
)
def test_what_is_elsewhere_is_refused(uri: str) -> None:
    with pytest.raises(Refused) as refused:
        under_roots(uri, ROOTS)
    assert refused.value.status == 422


def test_without_roots_videos_come_by_upload_only() -> None:
    with pytest.raises(Refused, match="upload only"):
        under_roots("/srv/videos/gate.mp4", ())


class TestRoute:
    def post(self, client: TestClient, **body: Any) -> Any:
        return client.post("/v1/videos", json=body)

    def test_a_video_under_a_root_is_a_job(self, fresh: Fresh, tmp_path: Path) -> None:
        client = fresh(roots=(str(tmp_path),))
        answer = self.post(client, uri=f"{tmp_path}/gate.mp4", mode="add", tags={"camera": "gate"})
        assert answer.status_code == 202, answer.text
        job = answer.json()
        assert (job["kind"], job["video_id"]) == ("add", None)
        assert job["request"]["uri"] == f"{tmp_path}/gate.mp4"
        assert (job["request"]["original_name"], job["request"]["keep_source"]) == ("gate.mp4", "reference")

    def test_the_same_key_is_the_same_job(self, fresh: Fresh, tmp_path: Path) -> None:
        client = fresh(roots=(str(tmp_path),))
        body, headers = {"uri": f"{tmp_path}/gate.mp4"}, {"Idempotency-Key": "once"}
        answers = [client.post("/v1/videos", json=body, headers=headers) for _ in range(2)]
        assert len({answer.json()["id"] for answer in answers}) == 1
        other = client.post("/v1/videos", json={**body, "preset": "micro"}, headers=headers)
        assert other.status_code == 422

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ('{"uri": "/etc/passwd"}', 422),
            ('{"uri": ""}', 422),
            ('{"uri": "/a\\u0000b"}', 422),
            ('{"uri": "\\ud800"}', 422),
            ("{}", 422),
            ("[]", 422),
            ("null", 422),
            ('{"uri": "/a", "file": "/etc/passwd"}', 422),
            ('{"uri": "/a", "original_name": "x"}', 422),
            ('{"uri": NaN}', 400),
            ("{", 400),
            ("", 400),
            ("[" * 100_000, 400),
        ],
    )
    def test_other_bodies_are_problems(self, fresh: Fresh, body: str, status: int) -> None:
        client = fresh()
        answer = client.post("/v1/videos", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == status, answer.text
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert service_behind(client).queue.jobs() == []
