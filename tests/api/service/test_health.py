"""Liveness and readiness: open to all, cheap for the store, and clear about what is wrong."""

from __future__ import annotations

import asyncio
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

from nvpstore.api.service import health
from nvpstore.api.service.health import Readiness
from nvpstore.api.service.state import Service
from tests.api.service.small import small_app, small_client, small_service

PARTS = {"archive", "queue", "keys", "workers", "disk"}


def ready(service: Service) -> tuple[int, dict[str, str]]:
    answer = TestClient(small_app(service)).get("/readyz")
    assert answer.json()["ready"] is (answer.status_code == 200)
    return answer.status_code, answer.json()["parts"]


def test_no_key_is_needed(tmp_path: Path) -> None:
    client = small_client(tmp_path, loopback=False)
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"ready": True, "parts": dict.fromkeys(PARTS, "ok")}


def test_an_archive_that_cannot_be_read_is_named_without_its_place(tmp_path: Path) -> None:
    service = small_service(tmp_path)
    shutil.rmtree(tmp_path / "archive" / "log")
    status, parts = ready(service)
    assert (status, parts["archive"]) == (503, "failed: ObjectMissing")
    assert {name for name, said in parts.items() if said == "ok"} == PARTS - {"archive"}


def test_a_queue_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    service = small_service(tmp_path)
    for path in service.queue.path.parent.glob("jobs.sqlite*"):
        path.unlink()
    service.queue.path.mkdir()
    status, parts = ready(service)
    assert (status, parts["queue"]) == (503, "failed: StoreError")


def test_looking_changes_no_job(tmp_path: Path) -> None:
    service = small_service(tmp_path)
    service.queue.submit("add", {}, owner="a")
    lease = service.queue.claim("w", ["add"])
    assert lease is not None
    service.queue.finish(lease, {})
    assert ready(service)[0] == 200
    assert len(service.queue.jobs()) == 1


@pytest.mark.parametrize(("alive", "said"), [(0, "none of 2 lives"), (1, "ok"), (2, "ok")])
def test_workers_are_missed_once_none_lives(tmp_path: Path, alive: int, said: str) -> None:
    service = small_service(tmp_path)
    service = replace(service, settings=replace(service.settings, workers=2), alive=lambda: alive)
    assert ready(service)[1]["workers"] == said


def test_a_server_without_workers_misses_none(tmp_path: Path) -> None:
    service = replace(small_service(tmp_path), alive=lambda: 0)
    assert ready(service)[1]["workers"] == "ok"


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = small_service(tmp_path)
    monkeypatch.setattr(health.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
    assert ready(service)[1]["disk"] == "5 MiB free, 256 MiB are needed"


def test_the_store_is_not_asked_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service, reads = small_service(tmp_path), []
    read = service.archive.log.read
    monkeypatch.setattr(service.archive.log, "read", lambda number: (reads.append(number), read(number))[1])
    client = TestClient(small_app(service))
    assert [client.get("/readyz").status_code for _ in range(10)] == [200] * 10
    assert reads == [0]


def test_a_store_that_hangs_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service, hanging, begun = small_service(tmp_path), threading.Event(), []

    def read(number: int) -> None:
        begun.append(number)
        hanging.wait(30)

    monkeypatch.setattr(service.archive.log, "read", read)
    monkeypatch.setattr(health, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(health, "KEPT_SECONDS", 0.0)

    async def look_often() -> list[dict[str, str]]:
        readiness = Readiness(service)
        found = [await readiness.parts() for _ in range(5)]
        hanging.set()
        await asyncio.sleep(0.2)
        return [*found, await readiness.parts()]

    *while_it_hung, afterwards = asyncio.run(look_often())
    assert {parts["archive"] for parts in while_it_hung} == {"no answer in 0.1 s"}
    assert {parts["queue"] for parts in while_it_hung} == {"ok"}
    assert afterwards["archive"] == "ok"
    assert len(begun) == 1
