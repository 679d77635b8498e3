"""Videos over HTTP against the archive itself."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient

from nvpstore.api.auth.keys import Scope
from nvpstore.api.output import plain
from nvpstore.api.service.state import Service
from tests.api.service.served import service_behind

pytestmark = pytest.mark.slow  # one fit

Fresh = Callable[..., TestClient]


def bearer(client: TestClient, *scopes: Scope) -> dict[str, str]:
    """The header of a new key."""
    _, secret = service_behind(client).keys.add("test", scopes)
    return {"Authorization": f"Bearer {secret}"}


def ids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [video["video_id"] for video in answer.json()["videos"]]


class TestList:
    def test_it_has_the_rows_of_the_view(self, client: TestClient, service: Service) -> None:
        answer = client.get("/v1/videos").json()
        assert answer == {"videos": plain(service.archive.videos()), "next": None}

    def test_pages_follow_each_other(self, client: TestClient, fitted: str, added: str) -> None:
        first = client.get("/v1/videos", params={"limit": 1})
        second = client.get("/v1/videos", params={"limit": 1, "cursor": first.json()["next"]})
        assert {*ids(first), *ids(second)} == {fitted, added}
        assert second.json()["next"] is None

    def test_filters_are_joined(self, client: TestClient, fitted: str, added: str) -> None:
        assert ids(client.get("/v1/videos", params={"name": "SQUA"})) == [added]
        assert ids(client.get("/v1/videos", params={"state": "added"})) == [added]
        assert ids(client.get("/v1/videos", params={"tag": "camera:gate"})) == [fitted]
        assert ids(client.get("/v1/videos", params={"tag": ["camera:yard", "draft:yes"]})) == [added]
        assert ids(client.get("/v1/videos", params={"tag": ["camera:yard", "draft:no"]})) == []

    @pytest.mark.parametrize(
        "asked",
        [
            {"limit": 0},
            {"limit": 1001},
            {"cursor": "x"},
            {"state": "lost"},
            {"tag": "camera"},
            {"tag": ["a:b"] * 65},
            {"name": "x" * 256},
        ],
    )
    def test_other_questions_are_problems(self, client: TestClient, asked: dict[str, Any]) -> None:
        answer = client.get("/v1/videos", params=asked)
        assert answer.status_code == 422
        assert answer.headers["Content-Type"] == "application/problem+json"

    def test_polling_costs_nothing_until_something_changes(self, changing: TestClient) -> None:
        first = changing.get("/v1/videos")
        held = {"If-None-Match": first.headers["ETag"]}
        unchanged = changing.get("/v1/videos", headers=held)
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["ETag"] == first.headers["ETag"]
        changing.patch(f"/v1/videos/{ids(first)[0]}", json={"name": "other"})
        changed = changing.get("/v1/videos", headers=held)
        assert changed.json()["videos"][0]["name"] == "other"
        assert changed.headers["ETag"] != first.headers["ETag"]


class TestShow:
    @pytest.mark.parametrize("which", ["fitted", "added"])
    def test_it_is_the_archive_s_own_and_what_it_comes_from(
        self, client: TestClient, service: Service, request: pytest.FixtureRequest, which: str
    ) -> None:
        video_id = request.getfixturevalue(which)
        found = client.get(f"/v1/videos/{video_id}").json()
        shown = plain(service.archive.show(video_id))
        assert {name: found[name] for name in shown} == shown
        video = service.archive.catalog.snapshot().video(video_id)
        assert (found["sha256"], found["attempt"]) == (video.sha256, video.attempt)
        assert (found["time_base"], found["pts_origin"]) == (str(video.time_base), video.pts_origin or 0)
        assert (found["hold"], found["original"]) == (False, "reference" if which == "fitted" else "copy")

    def test_a_name_and_the_beginning_of_an_id_will_do(self, client: TestClient, added: str) -> None:
        for ref in ("square", added[:8]):
            assert client.get(f"/v1/videos/{ref}").json()["video_id"] == added

    @pytest.mark.parametrize("ref", ["nothing", "f" * 32, "'; DROP TABLE videos; --", "%25", "x" * 256])
    def test_what_is_not_there_is_a_problem(self, client: TestClient, ref: str) -> None:
        answer = client.get(f"/v1/videos/{ref}")
        assert answer.status_code == (422 if len(ref) > 255 else 404)
        assert answer.headers["Content-Type"] == "application/problem+json"

    def test_it_is_not_sent_again(self, client: TestClient, fitted: str) -> None:
        etag = client.get(f"/v1/videos/{fitted}").headers["ETag"]
        assert client.get(f"/v1/videos/{fitted}", headers={"If-None-Match": etag}).status_code == 304


class TestChange:
    def test_what_is_said_changes_and_the_rest_stays(self, changing: TestClient, fitted: str) -> None:
        path = f"/v1/videos/{fitted}"
        answer = changing.patch(
            path, json={"tags": {"place": "yard"}, "recorded_at": "2026-03-01T08:00:00+01:00"}
        )
        assert answer.json() == {
            "video_id": fitted,
            "name": "bikes.mp4",
            "tags": {"camera": "gate", "place": "yard"},
            "recorded_at": "2026-03-01T07:00:00Z",
            "hold": False,
        }
        answer = changing.patch(path, json={"name": "bikes", "tags": {"camera": None, "never": None}})
        assert (answer.json()["name"], answer.json()["tags"]) == ("bikes", {"place": "yard"})
        meta = service_behind(changing).archive.catalog.snapshot().meta(fitted)
        assert (meta.name, meta.tags) == ("bikes", {"place": "yard"})
        assert meta.recorded_at == datetime(2026, 3, 1, 7, tzinfo=UTC)

    def test_nothing_said_changes_nothing(self, changing: TestClient, fitted: str) -> None:
        archive = service_behind(changing).archive
        before = archive.catalog.snapshot().number
        assert changing.patch(f"/v1/videos/{fitted}", json={}).json()["name"] == "bikes.mp4"
        assert archive.catalog.snapshot().number == before

    @pytest.mark.parametrize(
        "changes",
        [
            {"name": None},
            {"name": ""},
            {"name": "a\nb"},
            {"recorded_at": None},
            {"recorded_at": "2026-03-01T08:00:00"},
            {"recorded_at": "9999-12-31T23:59:59Z"},
            {"hold": None},
            {"tags": None},
            {"tags": {"a": 1}},
            {"tags": {f"k{i}": "v" for i in range(65)}},
            {"tags": {f"k{i}": "v" for i in range(64)}},
            {"video_id": "0" * 32},
            [],
        ],
    )
    def test_other_changes_are_problems(self, changing: TestClient, fitted: str, changes: object) -> None:
        archive = service_behind(changing).archive
        before = archive.catalog.snapshot().number
        assert changing.patch(f"/v1/videos/{fitted}", json=changes).status_code == 422
        assert archive.catalog.snapshot().number == before

    def test_a_hold_is_an_admin_s(self, changing: TestClient, fitted: str) -> None:
        key = bearer(changing, "ingest")
        path = f"/v1/videos/{fitted}"
        assert changing.patch(path, json={"hold": True}, headers=key).status_code == 403
        assert changing.patch(path, json={"name": "bikes"}, headers=key).status_code == 200
        assert changing.patch(path, json={"hold": True}, headers=bearer(changing, "admin")).json()["hold"]


class TestErase:
    def test_only_the_id_remains(self, changing: TestClient, fitted: str) -> None:
        path = f"/v1/videos/{fitted}"
        assert changing.get(f"{path}/clip.mp4", params={"end": 0.2}).status_code == 200
        clips = service_behind(changing).settings.state_dir / "clips" / fitted
        assert list(clips.iterdir())
        answer = changing.delete(path)
        assert (answer.status_code, answer.json()["video_id"]) == (200, fitted)
        assert answer.json()["objects"] > 0
        assert not clips.exists()
        assert changing.get(path).status_code == 404
        assert changing.get(f"{path}/clip.mp4", params={"end": 0.2}).status_code == 404
        assert changing.get(f"{path}/frames/0.png").status_code == 404
        assert changing.delete(path).status_code == 200  # deletes what killed writers left since

    def test_a_video_on_hold_stays(self, changing: TestClient, fitted: str) -> None:
        changing.patch(f"/v1/videos/{fitted}", json={"hold": True})
        answer = changing.delete(f"/v1/videos/{fitted}")
        assert (answer.status_code, "on hold" in answer.json()["detail"]) == (409, True)
        assert changing.get(f"/v1/videos/{fitted}").status_code == 200

    def test_only_an_admin_erases(self, changing: TestClient, fitted: str) -> None:
        key = bearer(changing, "read", "query", "ingest")
        assert changing.delete(f"/v1/videos/{fitted}", headers=key).status_code == 403
        assert changing.get(f"/v1/videos/{fitted}", headers=key).status_code == 200


class TestFit:
    def test_it_is_a_job_for_the_whole_id(self, fresh: Fresh, added: str) -> None:
        client = fresh()
        asked = {"preset": "micro", "tasks": ["labels"], "keep_source": "copy"}
        answer = client.post("/v1/videos/square/fit", json=asked)
        assert answer.status_code == 202, answer.text
        job = answer.json()
        assert (job["kind"], job["video_id"]) == ("fit", added)
        assert job["request"] == {**asked, "video": added, "refit": False}
        assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"

    def test_the_same_key_is_the_same_job(self, fresh: Fresh) -> None:
        client = fresh()
        headers = {"Idempotency-Key": "once"}
        answers = [client.post("/v1/videos/square/fit", json={}, headers=headers) for _ in range(2)]
        assert answers[0].json()["id"] == answers[1].json()["id"]

    @pytest.mark.parametrize(
        ("ref", "asked", "status"),
        [
            ("nothing", {}, 404),
            ("square", {"preset": "huge"}, 400),
            ("square", {"tasks": []}, 422),
            ("square", {"tasks": ["no task!"]}, 422),
            ("square", {"device": "cuda"}, 422),
        ],
    )
    def test_what_cannot_be_fitted_is_no_job(
        self, fresh: Fresh, ref: str, asked: dict[str, Any], status: int
    ) -> None:
        client = fresh()
        assert client.post(f"/v1/videos/{ref}/fit", json=asked).status_code == status
        assert service_behind(client).queue.jobs() == []


def test_each_route_needs_its_scope(fresh: Fresh, fitted: str) -> None:
    client = fresh()
    read, ingest = bearer(client, "read"), bearer(client, "ingest")
    assert client.get("/v1/videos").status_code == 401
    assert client.get("/v1/videos", headers=ingest).status_code == 403
    assert client.get(f"/v1/videos/{fitted}", headers=ingest).status_code == 403
    assert client.get(f"/v1/videos/{fitted}/frames/0.png", headers=ingest).status_code == 403
    assert client.get(f"/v1/videos/{fitted}/clip.mp4", headers=ingest).status_code == 403
    assert client.get(f"/v1/videos/{fitted}/original", headers=ingest).status_code == 403
    assert client.post("/v1/videos", files={"file": b"x"}, headers=read).status_code == 403
    assert client.post(f"/v1/videos/{fitted}/fit", json={}, headers=read).status_code == 403
    assert client.patch(f"/v1/videos/{fitted}", json={}, headers=read).status_code == 403
    assert client.post("/v1/tasks", json={"name": "labels"}, headers=ingest).status_code == 403
    assert client.post("/v1/tasks/labels/train", json={}, headers=read).status_code == 403
