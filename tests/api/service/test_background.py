"""Query jobs: asked with `Prefer: respond-async`, run by the server, kept for a while."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nvpstore.api.jobs import spool
from nvpstore.api.jobs.requests import QueryJob
from nvpstore.api.service import background
from nvpstore.api.service.answers import answers_folder, open_answer
from nvpstore.api.service.background import KEPT_SECONDS, QueryRunner
from nvpstore.api.service.formats import FORMATS
from nvpstore.api.service.problems import Refused
from nvpstore.api.service.state import Service
from nvpstore.errors import NotFound, StoreError
from tests.api.service.served import again, serving

LABELS = "SELECT frame, label, score FROM labels WHERE rank = 1 ORDER BY video_id, frame"
ENDLESS = "SELECT count(*) FROM range(100000000) a, range(100000000) b"


@pytest.fixture
def own(service: Service, tmp_path: Path) -> Service:
    return again(service, tmp_path / "state")


@pytest.fixture
def running(own: Service) -> Iterator[Service]:
    runner = QueryRunner(own)
    runner.start()
    yield own
    runner.stop()


@pytest.fixture
def url(running: Service) -> Iterator[str]:
    with serving(running) as address:
        yield address


def submit(service: Service, sql: str, **options: Any) -> str:
    job, _ = service.queue.submit("query", QueryJob(sql=sql, **options).to_json(), owner="local")
    return job.id


def ended(service: Service, job_id: str) -> Any:
    _wait_until(lambda: service.queue.get(job_id).final)
    return service.queue.get(job_id)


class TestOverHttp:
    def test_the_answer_is_a_job_whose_rows_come_in_any_form(self, url: str, running: Service) -> None:
        expected = running.archive.sql(LABELS).arrow().to_pylist()
        headers = {"Prefer": "respond-async, wait=5", "Idempotency-Key": "monday"}
        asked = [httpx2.post(f"{url}/v1/query", json={"sql": LABELS}, headers=headers) for _ in range(2)]
        assert [answer.status_code for answer in asked] == [202, 202]
        assert asked[0].json()["id"] == asked[1].json()["id"]
        assert asked[0].headers["preference-applied"] == "respond-async"
        job = ended(running, asked[0].json()["id"])
        assert asked[0].headers["location"] == f"/v1/jobs/{job.id}"
        assert (job.state, job.result["rows"]) == ("done", len(expected))
        at = f"{url}/v1/jobs/{job.id}/result"
        assert httpx2.get(at).json()["rows"] == expected
        parquet = httpx2.get(at, headers={"Accept": FORMATS["parquet"].media_type}).content
        assert pq.read_table(io.BytesIO(parquet)).to_pylist() == expected
        lines = httpx2.get(at, headers={"Accept": "application/x-ndjson"}).text.splitlines()
        assert len(lines) == len(expected)

    def test_its_form_is_the_one_that_was_asked_for_first(self, url: str, running: Service) -> None:
        headers = {"Prefer": "respond-async", "Accept": "text/csv"}
        job_id = httpx2.post(f"{url}/v1/query", json={"sql": "SELECT 1 AS a"}, headers=headers).json()["id"]
        ended(running, job_id)
        assert httpx2.get(f"{url}/v1/jobs/{job_id}/result").text == "a\n1\n"

    def test_progress_is_told_in_frames(self, url: str, running: Service) -> None:
        headers = {"Prefer": "respond-async"}
        job_id = httpx2.post(f"{url}/v1/query", json={"sql": LABELS}, headers=headers).json()["id"]
        job = ended(running, job_id)
        told = [event.data for event in running.queue.events(job_id) if event.kind == "progress"]
        assert told
        assert told[0]["phase"] == "query"
        assert 0 < told[0]["done"] <= told[0]["total"]
        assert job.progress["total"] == 52  # of both videos


class TestEnds:
    def test_a_wrong_query_fails_with_the_reason(self, running: Service) -> None:
        job = ended(running, submit(running, "SELECT labl FROM labels"))
        assert job.state == "failed"
        assert job.error["status"] == 422
        assert "labl" in job.error["detail"]
        assert job.attempts == 1

    def test_an_answer_stops_before_the_disk_is_full(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(spool.shutil, "disk_usage", lambda _: usage._replace(free=spool.SPARE_BYTES - 1))
        rows: Any = iter([pa.record_batch({"frame": [1]}), pa.record_batch({"frame": [2]})])
        with pytest.raises(StoreError, match="the disk is full"):
            background._write(rows, tmp_path / "answer.part")

    def test_a_job_that_is_cancelled_ends(self, running: Service) -> None:
        job_id = submit(running, ENDLESS)
        _wait_until(lambda: running.queue.get(job_id).state == "running")
        running.queue.cancel(job_id)
        assert ended(running, job_id).state == "cancelled"
        assert list(answers_folder(running.settings).glob("*")) == []

    def test_a_server_that_stops_gives_its_jobs_back(self, own: Service) -> None:
        runner = QueryRunner(own)
        runner.start()
        job_id = submit(own, ENDLESS)
        _wait_until(lambda: own.queue.get(job_id).state == "running")
        runner.stop()
        assert own.queue.get(job_id).state == "queued"
        assert list(answers_folder(own.settings).glob("*")) == []

    def test_what_is_left_out_is_told_with_the_answer(self, running: Service, added: str) -> None:
        sql = "SELECT label FROM labels(on_error := 'skip', route := 'adapter') WHERE rank = 1"
        job = ended(running, submit(running, sql))
        response = open_answer(running, job, None)
        assert response.headers["x-nvp-skipped"] == "1"


class TestKept:
    def test_for_a_day_or_as_long_as_the_job(self, own: Service) -> None:
        now = [time.time()]
        runner = QueryRunner(own, clock=lambda: now[0])
        runner.start()
        first, second = submit(own, "SELECT 1 AS a"), submit(own, "SELECT 2 AS a")
        for job_id in (first, second):
            ended(own, job_id)
        runner.stop()
        assert runner.sweep() == []
        own.queue.forget(older_than_seconds=-1)
        assert {path.stem for path in runner.sweep()} == {first, second}

        runner = QueryRunner(own, clock=lambda: now[0])
        runner.start()
        third = ended(own, submit(own, "SELECT 3 AS a"))
        runner.stop()
        assert open_answer(own, third, "text/csv").status_code == 200
        now[0] += KEPT_SECONDS + 60
        assert [path.stem for path in runner.sweep()] == [third.id]
        with pytest.raises(Refused, match="not kept any more") as error:
            open_answer(own, third, "text/csv")
        assert error.value.status == 410

    def test_other_jobs_have_no_answer(self, own: Service) -> None:
        job, _ = own.queue.submit("fit", {"video": "x"}, owner="local")
        with pytest.raises(NotFound, match="of kind fit"):
            open_answer(own, job, None)

    def test_before_it_is_done_there_is_none(self, own: Service) -> None:
        job = own.queue.get(submit(own, "SELECT 1"))
        with pytest.raises(Refused, match="is queued") as error:
            open_answer(own, job, None)
        assert error.value.status == 409


def _wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until, "it does not come true"
        time.sleep(0.02)
