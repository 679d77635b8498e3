"""Jobs over HTTP: whose they are, how they are followed, what comes of them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from nvpstore.api.auth.keys import Scope
from nvpstore.api.jobs.job import Job, Lease
from nvpstore.api.jobs.queue import JobQueue
from nvpstore.api.service import events
from nvpstore.api.service.state import Service
from tests.api.service.served import again, service_behind, serving

Fresh = Callable[..., TestClient]
UNKNOWN = "01M7YGENEA4WME18CAPTYWDMBT"


@pytest.fixture(scope="module")
def service(empty: Service) -> Service:
    return empty


def queue_of(client: TestClient) -> JobQueue:
    return service_behind(client).queue


def submitted(queue: JobQueue, *, owner: str = "local", **request: Any) -> Job:
    return queue.submit("ingest", {"sha256": "a" * 64, **request}, owner=owner)[0]


def claimed(queue: JobQueue) -> Lease:
    lease = queue.claim("worker", ["ingest", "query"])
    assert lease is not None
    return lease


def with_key(client: TestClient, *scopes: Scope) -> tuple[str, dict[str, str]]:
    """A new key's id, and the header that shows it."""
    key, secret = service_behind(client).keys.add("test", scopes)
    return key.id, {"Authorization": f"Bearer {secret}"}


class TestLooking:
    def test_a_job_is_told_with_its_times_and_without_places(self, fresh: Fresh) -> None:
        client = fresh()
        job = submitted(queue_of(client), file="/srv/state/uploads/x/upload", name="gate")
        lease = claimed(queue_of(client))
        queue_of(client).report(lease, {"phase": "fit", "done": 1, "total": 4})
        found = client.get(f"/v1/jobs/{job.id}").json()
        assert (found["id"], found["state"], found["attempts"]) == (job.id, "running", 1)
        assert found["video_id"] == "a" * 32
        assert found["request"] == {"sha256": "a" * 64, "name": "gate"}
        assert found["progress"] == {"phase": "fit", "done": 1, "total": 4}
        assert found["created_at"].endswith("Z")
        assert (found["finished_at"], found["result"], found["error"]) == (None, None, None)

    def test_the_newest_come_first_and_pages_follow_each_other(self, fresh: Fresh) -> None:
        client = fresh()
        jobs = [submitted(queue_of(client), n=n).id for n in range(7)]
        found: list[str] = []
        cursor: str | None = None
        while cursor is not None or not found:
            page = client.get(
                "/v1/jobs", params={"limit": 3, **({"cursor": cursor} if cursor else {})}
            ).json()
            found += [job["id"] for job in page["jobs"]]
            cursor = page["next"]
        assert found == sorted(jobs, reverse=True)

    def test_state_and_kind_are_filters(self, fresh: Fresh) -> None:
        client = fresh()
        submitted(queue_of(client))
        claimed(queue_of(client))
        waiting = submitted(queue_of(client))
        (found,) = client.get("/v1/jobs", params={"state": "queued"}).json()["jobs"]
        assert found["id"] == waiting.id
        assert client.get("/v1/jobs", params={"kind": "train"}).json()["jobs"] == []

    @pytest.mark.parametrize("asked", [{"state": "lost"}, {"kind": "x"}, {"limit": 0}, {"cursor": "x"}])
    def test_other_questions_are_problems(self, fresh: Fresh, asked: dict[str, Any]) -> None:
        assert fresh().get("/v1/jobs", params=asked).status_code == 422

    @pytest.mark.parametrize("path", ["", "/events", "/result"])
    def test_an_unknown_job_is_not_found(self, fresh: Fresh, path: str) -> None:
        client = fresh()
        answer = client.get(f"/v1/jobs/{UNKNOWN}{path}")
        assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json")
        assert client.get(f"/v1/jobs/x{path}").status_code == 422


class TestOwners:
    @pytest.mark.parametrize("scope", ["read", "query", "ingest"])
    def test_one_s_own_jobs_are_seen_with_any_scope_and_those_of_others_are_not(
        self, fresh: Fresh, scope: Scope
    ) -> None:
        client = fresh()
        mine, header = with_key(client, scope)
        own = submitted(queue_of(client), owner=mine)
        other = submitted(queue_of(client), owner="somebody")
        assert [job["id"] for job in client.get("/v1/jobs", headers=header).json()["jobs"]] == [own.id]
        assert client.get(f"/v1/jobs/{own.id}", headers=header).status_code == 200
        for method, path in (("GET", ""), ("GET", "/events"), ("GET", "/result"), ("DELETE", "")):
            answer = client.request(method, f"/v1/jobs/{other.id}{path}", headers=header)
            assert answer.status_code == 404
        assert queue_of(client).get(other.id).state == "queued"

    def test_an_admin_sees_all(self, fresh: Fresh) -> None:
        client = fresh()
        _, header = with_key(client, "admin")
        other = submitted(queue_of(client), owner="somebody")
        (found,) = client.get("/v1/jobs", headers=header).json()["jobs"]
        assert (found["id"], found["owner"]) == (other.id, "somebody")

    def test_nobody_sees_any_without_a_key(self, fresh: Fresh) -> None:
        client = fresh()
        with_key(client, "read")
        assert client.get("/v1/jobs").status_code == 401


class TestCancelling:
    def test_one_that_waits_is_over_at_once_and_its_upload_gone(self, fresh: Fresh) -> None:
        client = fresh()
        job = client.post("/v1/videos", files={"file": b"bytes"}).json()
        spool = service_behind(client).settings.spool_dir
        assert len(list(spool.iterdir())) == 1
        assert client.delete(f"/v1/jobs/{job['id']}").json()["state"] == "cancelled"
        assert list(spool.iterdir()) == []

    def test_one_that_runs_is_asked_to_stop(self, fresh: Fresh) -> None:
        client = fresh()
        job = submitted(queue_of(client))
        lease = claimed(queue_of(client))
        answer = client.delete(f"/v1/jobs/{job.id}").json()
        assert (answer["state"], answer["cancelling"]) == ("running", True)
        assert queue_of(client).renew(lease) is False

    def test_one_that_is_over_stays_as_it_is(self, fresh: Fresh) -> None:
        client = fresh()
        job = submitted(queue_of(client))
        queue_of(client).finish(claimed(queue_of(client)), {"video_id": "a"})
        answer = client.delete(f"/v1/jobs/{job.id}")
        assert (answer.status_code, answer.json()["state"]) == (200, "done")


class TestResults:
    def test_what_came_of_it_is_there_once_it_is_done(self, fresh: Fresh) -> None:
        client = fresh()
        job = submitted(queue_of(client))
        early = client.get(f"/v1/jobs/{job.id}/result")
        assert (early.status_code, "Retry-After" in early.headers) == (409, True)
        queue_of(client).finish(claimed(queue_of(client)), {"video_id": "a", "frames": 3})
        assert client.get(f"/v1/jobs/{job.id}/result").json() == {"video_id": "a", "frames": 3}

    def test_of_one_that_failed_it_is_the_reason(self, fresh: Fresh) -> None:
        client = fresh()
        job = submitted(queue_of(client))
        error = {"title": "Unprocessable", "detail": "no video stream", "status": 422}
        queue_of(client).fail(claimed(queue_of(client)), error, retry=False)
        answer = client.get(f"/v1/jobs/{job.id}/result")
        assert (answer.status_code, "no video stream" in answer.json()["detail"]) == (422, True)
        assert client.get(f"/v1/jobs/{job.id}").json()["error"] == error

    def test_one_that_was_cancelled_has_none(self, fresh: Fresh) -> None:
        client = fresh()
        job = submitted(queue_of(client))
        client.delete(f"/v1/jobs/{job.id}")
        answer = client.get(f"/v1/jobs/{job.id}/result")
        assert (answer.status_code, "Retry-After" in answer.headers) == (409, False)


# ---------------------------------------------------------------- events, over real connections


@pytest.fixture
def followed(service: Service, tmp_path: Path) -> Iterator[tuple[JobQueue, str]]:
    own = again(service, tmp_path / "state")
    with serving(own) as url:
        yield own.queue, url


def parsed(text: str) -> list[tuple[int, str, dict[str, Any]]]:
    """(number, kind, data) of each event."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line and line[0] != ":")
        if "data" in fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


class TestEvents:
    def test_they_come_as_it_happens_and_end_with_the_final_state(
        self, followed: tuple[JobQueue, str]
    ) -> None:
        queue, url = followed
        job = submitted(queue)
        heard: list[str] = []

        def work() -> None:
            lease = claimed(queue)
            for done in range(3):
                queue.report(lease, {"phase": "fit", "done": done, "total": 3, "psnr": 20.0 + done})
                until = time.monotonic() + 20
                while f'"done": {done},' not in "".join(heard) and time.monotonic() < until:
                    time.sleep(0.01)
            queue.finish(lease, {"video_id": "a"})

        with httpx2.stream("GET", f"{url}/v1/jobs/{job.id}/events", timeout=30) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            assert answer.headers["Cache-Control"] == "no-store"
            worker = threading.Thread(target=work)
            worker.start()
            # Read to its end: the server ends it.
            for text in answer.iter_text():
                heard.append(text)
            worker.join()
        found = parsed("".join(heard))
        assert [kind for _, kind, _ in found] == [
            "state",
            "state",
            "progress",
            "progress",
            "progress",
            "state",
        ]
        assert [data["psnr"] for _, kind, data in found if kind == "progress"] == [20.0, 21.0, 22.0]
        assert found[-1][2]["state"] == "done"
        assert found[-1][2]["result"] == {"video_id": "a"}
        assert [number for number, _, _ in found] == [event.number for event in queue.events(job.id)]

    def test_who_comes_back_goes_on_where_it_was(self, followed: tuple[JobQueue, str]) -> None:
        queue, url = followed
        job = submitted(queue)
        lease = claimed(queue)
        queue.log(lease, "one")
        queue.log(lease, "two")
        queue.finish(lease, {})
        numbers = [event.number for event in queue.events(job.id)]
        path = f"{url}/v1/jobs/{job.id}/events"
        for place, number in enumerate(numbers[:-1]):
            answer = httpx2.get(path, headers={"Last-Event-ID": str(number)}, timeout=30)
            assert [event[0] for event in parsed(answer.text)] == numbers[place + 1 :]

    def test_who_has_heard_all_is_told_not_to_come_back(self, followed: tuple[JobQueue, str]) -> None:
        queue, url = followed
        job = submitted(queue)
        queue.finish(claimed(queue), {})
        last = queue.events(job.id)[-1].number
        answer = httpx2.get(f"{url}/v1/jobs/{job.id}/events", headers={"Last-Event-ID": str(last)})
        assert (answer.status_code, answer.content) == (204, b"")

    def test_silence_is_broken_by_comments(
        self, followed: tuple[JobQueue, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(events, "KEEP_ALIVE_SECONDS", 0.1)
        queue, url = followed
        job = submitted(queue)
        heard = ""
        with httpx2.stream("GET", f"{url}/v1/jobs/{job.id}/events", timeout=30) as answer:
            for text in answer.iter_text():
                heard += text
                if heard.count(": keep-alive") >= 2 and queue.get(job.id).state == "queued":
                    queue.cancel(job.id)
        assert parsed(heard)[-1][2] == {"at": parsed(heard)[-1][2]["at"], "state": "cancelled"}

    @pytest.mark.parametrize("number", ["x", "-1", "1" * 19])
    def test_what_is_no_number_of_an_event_is_refused(
        self, followed: tuple[JobQueue, str], number: str
    ) -> None:
        queue, url = followed
        job = submitted(queue)
        answer = httpx2.get(f"{url}/v1/jobs/{job.id}/events", headers={"Last-Event-ID": number})
        assert answer.status_code == 422

    @pytest.mark.slow
    def test_many_listeners_leave_the_server_free_for_others(self, followed: tuple[JobQueue, str]) -> None:
        queue, url = followed
        job = submitted(queue)
        listeners = 60
        opened = threading.Semaphore(0)
        ends: list[str] = []

        def listen() -> None:
            with client.stream("GET", f"{url}/v1/jobs/{job.id}/events") as answer:
                opened.release()
                ends.append("".join(answer.iter_text()))

        with httpx2.Client(timeout=60, limits=httpx2.Limits(max_connections=None)) as client:
            threads = [threading.Thread(target=listen) for _ in range(listeners)]
            for thread in threads:
                thread.start()
            for _ in range(listeners):
                assert opened.acquire(timeout=60)
            # Each of these needs a thread of the server's pool, which has fewer than there are listeners.
            for _ in range(20):
                assert client.get(f"{url}/v1/jobs/{job.id}").status_code == 200
            queue.cancel(job.id)
            for thread in threads:
                thread.join(60)
        assert len(ends) == listeners
        assert all(parsed(text)[-1][2]["state"] == "cancelled" for text in ends)
