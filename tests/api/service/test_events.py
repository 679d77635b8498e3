"""What happens to jobs, as those who listen hear it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nvpstore.api.jobs.job import Event, Lease
from nvpstore.api.jobs.queue import JobQueue
from nvpstore.api.service import events
from nvpstore.api.service.events import EventFeed, as_sse
from nvpstore.errors import StoreError

T = TypeVar("T")


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue(tmp_path / "jobs.sqlite")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "POLL_SECONDS", 0.02)


def run(work: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(30):
            return await work

    return asyncio.run(bounded())


def begun(queue: JobQueue) -> Lease:
    """A job that a worker has taken."""
    queue.submit("ingest", {"what": "a video"}, owner="key")
    lease = queue.claim("worker", ["ingest"])
    assert lease is not None
    return lease


async def heard(feed: EventFeed, job_id: str, *, after: int = 0) -> list[Event]:
    """All events up to the final state."""
    return [event async for event in feed.follow(job_id, after=after) if event is not None]


def kinds(found: list[Event]) -> list[str]:
    return [event.data["state"] if event.kind == "state" else event.kind for event in found]


def test_what_happened_before_and_what_happens_now_is_told_once_and_in_order(queue: JobQueue) -> None:
    lease = begun(queue)
    queue.log(lease, "reading")

    async def scene() -> list[Event]:
        listening = asyncio.create_task(heard(EventFeed(queue), lease.job.id))
        for done in range(20):
            await asyncio.sleep(0.01)
            queue.report(lease, {"phase": "fit", "done": done, "total": 20})
        queue.finish(lease, {"video_id": "a"})
        return await listening

    found = run(scene())
    assert found == queue.events(lease.job.id)
    assert kinds(found) == ["queued", "running", "log", *["progress"] * 20, "done"]


def test_who_comes_back_hears_what_it_missed(queue: JobQueue) -> None:
    lease = begun(queue)
    for done in range(5):
        queue.report(lease, {"done": done})
    queue.finish(lease, {})
    everything = queue.events(lease.job.id)
    for place, event in enumerate(everything[:-1]):
        assert run(heard(EventFeed(queue), lease.job.id, after=event.number)) == everything[place + 1 :]


def test_a_job_hears_nothing_of_others(queue: JobQueue) -> None:
    one, two = begun(queue), begun(queue)

    async def scene() -> list[list[Event]]:
        feed = EventFeed(queue)
        listening = [asyncio.create_task(heard(feed, lease.job.id)) for lease in (one, two)]
        await asyncio.sleep(0.1)
        for place, lease in enumerate((one, two, one)):
            queue.log(lease, str(place))
        for lease in (one, two):
            queue.finish(lease, {})
        return await asyncio.gather(*listening)

    for lease, found in zip((one, two), run(scene()), strict=True):
        assert found == queue.events(lease.job.id)


def test_many_listeners_cost_no_more_reading_than_one(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, listeners, live = begun(queue), 200, 0
    read = JobQueue.events

    def counted(self: JobQueue, job_id: str | None, **options: Any) -> list[Event]:
        nonlocal live
        live += job_id is not None
        return read(self, job_id, **options)

    monkeypatch.setattr(JobQueue, "events", counted)

    async def scene() -> list[list[Event]]:
        nonlocal live
        feed = EventFeed(queue)
        listening = [asyncio.create_task(heard(feed, lease.job.id)) for _ in range(listeners)]
        before = -1
        while live < listeners or live != before:  # until all know the past
            before = live
            await asyncio.sleep(0.3)
        live = 0
        for done in range(50):
            queue.report(lease, {"done": done})
            await asyncio.sleep(0.005)
        queue.finish(lease, {})
        return await asyncio.gather(*listening)

    found = run(scene())
    assert all(events == found[0] for events in found)
    assert kinds(found[0])[-1] == "done"
    assert live == 0  # each read the past once; the present was read by one for all


def test_nobody_listens_and_nothing_is_read(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = begun(queue)
    queue.finish(lease, {})
    reads = 0
    read = JobQueue.events

    def counted(self: JobQueue, job_id: str | None, **options: Any) -> list[Event]:
        nonlocal reads
        reads += 1
        return read(self, job_id, **options)

    monkeypatch.setattr(JobQueue, "events", counted)

    async def scene() -> int:
        feed = EventFeed(queue)
        await heard(feed, lease.job.id)
        await asyncio.sleep(0.1)
        before = reads
        await asyncio.sleep(0.2)
        return reads - before

    assert run(scene()) == 0


def test_silence_is_broken_by_a_sign_of_life(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_SECONDS", 0.1)
    lease = begun(queue)

    async def scene() -> list[Event | None]:
        found: list[Event | None] = []
        async for event in EventFeed(queue).follow(lease.job.id, after=0):
            found.append(event)
            if event is None and found.count(None) == 2:
                queue.finish(lease, {})
        return found

    found = run(scene())
    assert found.count(None) >= 2
    last = found[-1]
    assert last is not None
    assert last.data["state"] == "done"


def test_a_listener_that_reads_slowly_misses_nothing(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOST_WAITING", 5)
    monkeypatch.setattr(events, "READ_AT_ONCE", 7)
    lease = begun(queue)

    async def scene() -> list[Event]:
        found = []
        async for event in EventFeed(queue).follow(lease.job.id, after=0):
            assert event is not None
            found.append(event)
            if len(found) == 2:
                for number in range(60):
                    queue.log(lease, str(number))
                queue.finish(lease, {})
                await asyncio.sleep(0.3)
        return found

    assert run(scene()) == queue.events(lease.job.id)


def test_a_queue_that_cannot_be_read_for_a_moment_is_read_again(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, failures = begun(queue), 6
    read = JobQueue.events

    def failing(self: JobQueue, job_id: str | None, **options: Any) -> list[Event]:
        nonlocal failures
        if failures:
            failures -= 1
            raise StoreError("the queue cannot be used") from sqlite3.OperationalError("locked")
        return read(self, job_id, **options)

    monkeypatch.setattr(JobQueue, "events", failing)

    async def scene() -> list[Event]:
        listening = asyncio.create_task(heard(EventFeed(queue), lease.job.id))
        await asyncio.sleep(0.1)
        queue.finish(lease, {})
        return await listening

    assert kinds(run(scene())) == ["queued", "running", "done"]


def test_an_event_on_the_wire_has_its_number_and_no_places(queue: JobQueue) -> None:
    lease = begun(queue)
    queue.log(lease, "two\nlines")
    queue.finish(lease, {"file": "/srv/state/answers/a.parquet", "rows": 3})
    told = [as_sse(event).decode() for event in queue.events(lease.job.id)]
    for text, event in zip(told, queue.events(lease.job.id), strict=True):
        number, kind, data, *end = text.split("\n")
        assert (number, kind, end) == (f"id: {event.number}", f"event: {event.kind}", ["", ""])
        assert data.startswith("data: {")
    assert "/srv/state" not in "".join(told)
    assert '"rows": 3' in told[-1]
