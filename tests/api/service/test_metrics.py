"""Figures: what is counted, once each, under labels that stay few."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from nvpstore.api.jobs.job import JobKind
from nvpstore.api.jobs.queue import JobQueue
from nvpstore.api.service.metrics import Metrics
from tests.api.service.small import bearer, service_behind, small_client
from tests.conftest import open_micro

GOLDEN = Path(__file__).parents[2] / "golden" / "format-1" / "archive"


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue(tmp_path / "jobs.sqlite")


def figures(metrics: Metrics) -> dict[str, float]:
    """All samples by name and labels."""
    found = re.findall(r"^(nvp_\S+?(?:\{.*?\})?) (\S+)$", metrics.text().decode(), re.MULTILINE)
    return {name: float(value) for name, value in found}


def finish(queue: JobQueue, kind: JobKind, result: dict[str, Any]) -> None:
    queue.submit(kind, {}, owner="a")
    lease = queue.claim("w", [kind])
    assert lease is not None
    queue.finish(lease, result)


def test_requests_queries_and_uploads_are_counted(queue: JobQueue) -> None:
    metrics = Metrics(queue)
    metrics.request("GET", "/v1/videos", 200, seconds=0.02, sent_bytes=10)
    metrics.request("BREW", "/v1/videos", 405, seconds=0.01, sent_bytes=5)
    metrics.query(0.2, "done")
    metrics.uploaded(1_000)
    found = figures(metrics)
    assert found['nvp_request_seconds_count{method="GET",route="/v1/videos",status="200"}'] == 1
    assert found['nvp_request_seconds_bucket{le="0.025",method="GET",route="/v1/videos",status="200"}'] == 1
    assert found['nvp_request_seconds_count{method="other",route="/v1/videos",status="405"}'] == 1
    assert found['nvp_query_seconds_sum{outcome="done"}'] == pytest.approx(0.2)
    assert (found["nvp_answer_bytes_total"], found["nvp_upload_bytes_total"]) == (15, 1_000)


def test_jobs_are_those_of_the_queue(queue: JobQueue) -> None:
    metrics = Metrics(queue)
    queue.submit("ingest", {}, owner="a")
    queue.submit("ingest", {}, owner="a")
    finish(queue, "add", {})
    found = figures(metrics)
    assert found['nvp_jobs{kind="ingest",state="queued"}'] == 2
    assert found['nvp_jobs{kind="add",state="done"}'] == 1
    assert found['nvp_jobs{kind="query",state="failed"}'] == 0


def test_each_fit_is_counted_once(queue: JobQueue) -> None:
    finish(queue, "ingest", {"fit_seconds": 5.0, "psnr": 20.5})  # before this server began
    metrics = Metrics(queue)
    finish(queue, "ingest", {"fit_seconds": 50.0, "psnr": 31.0})
    finish(queue, "fit", {"fit_seconds": 70.0, "psnr": 35.0})
    finish(queue, "ingest", {"fit_seconds": 40.0, "psnr": 30.0, "already_stored": True})
    finish(queue, "add", {"fit_seconds": None, "psnr": None})
    for _ in range(3):
        found = figures(metrics)
        assert (found["nvp_fit_seconds_count"], found["nvp_fit_seconds_sum"]) == (2, 120)
        assert (found["nvp_fit_psnr_db_count"], found["nvp_fit_psnr_db_sum"]) == (2, 66)
    finish(queue, "fit", {"fit_seconds": 10.0, "psnr": 33.0})
    assert figures(metrics)["nvp_fit_seconds_sum"] == 130


def test_workers_are_asked_whenever_figures_are_read() -> None:
    alive = [2]
    metrics = Metrics()
    metrics.watch_workers(lambda: alive[0])
    assert figures(metrics)["nvp_workers_alive"] == 2
    alive[0] = 1
    assert figures(metrics)["nvp_workers_alive"] == 1


def test_a_queue_that_cannot_be_read_spoils_no_other_figure(queue: JobQueue) -> None:
    metrics = Metrics(queue)
    metrics.query(0.1, "done")
    queue.path.write_bytes(b"not a database" * 1_000)
    for suffix in ("-wal", "-shm"):
        queue.path.with_name(queue.path.name + suffix).unlink(missing_ok=True)
    found = figures(metrics)
    assert found['nvp_query_seconds_count{outcome="done"}'] == 1
    assert not [name for name in found if name.startswith("nvp_jobs")]


def test_what_queries_take_is_counted(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "archive")
    archive = open_micro(tmp_path / "archive", tmp_path / "cache")
    before = figures(Metrics())
    result = archive.sql("SELECT label, score FROM labels WHERE rank = 1 AND frame < 4")
    took, after = result.measured, figures(Metrics())
    assert took is not None
    assert took.frames == 4
    grown = {name: after[name] - value for name, value in before.items()}
    assert grown["nvp_decoded_frames_total"] == 4
    assert grown["nvp_store_requests_total"] == took.traffic.requests > 0
    assert grown["nvp_store_read_bytes_total"] == took.traffic.store_bytes > 0
    assert grown["nvp_cache_read_bytes_total"] == took.traffic.cache_bytes
    assert grown["nvp_shared_frames_total"] == took.shared_decodes


def test_reading_them_needs_a_key_off_loopback(tmp_path: Path) -> None:
    client = small_client(tmp_path, loopback=False)
    service = service_behind(client)
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers=bearer(service, "ingest")).status_code == 403
    for scope in ("read", "admin"):
        answer = client.get("/metrics", headers=bearer(service, scope))
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        assert "# TYPE nvp_request_seconds histogram" in answer.text


def test_on_loopback_none_is_needed_even_where_keys_are(tmp_path: Path) -> None:
    client = small_client(tmp_path)
    bearer(service_behind(client), "read")
    assert client.get("/metrics").status_code == 200
