"""What happens to jobs, told to all who listen: one reader of the queue for any number of listeners."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from anyio import CapacityLimiter, to_thread

from nvpstore.api.jobs.job import FINAL, Event
from nvpstore.api.jobs.queue import JobQueue
from nvpstore.errors import StoreError

POLL_SECONDS = 0.25
KEEP_ALIVE_SECONDS = 15.0
READ_AT_ONCE = 1_000  # events
MOST_WAITING = 1_000  # events for a listener that reads slowly; then it reads them from the queue
_THREADS = 2
_log = logging.getLogger("nvpstore.service")


@dataclass(slots=True, eq=False)
class _Inbox:
    """What one listener has not taken yet. `missed`: more came than it can hold."""

    events: deque[Event] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    missed: bool = True  # what happened before it began to listen

    def put(self, event: Event) -> None:
        if len(self.events) >= MOST_WAITING:
            self.events.clear()
            self.missed = True
        if not self.missed:
            self.events.append(event)
        self.news.set()


class EventFeed:
    """For the event loop's thread. The queue is read only while somebody listens, then 4 times a second."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._inboxes: dict[str, set[_Inbox]] = defaultdict(set)
        self._threads = CapacityLimiter(_THREADS)
        self._reading: asyncio.Task[None] | None = None

    async def follow(self, job_id: str, *, after: int) -> AsyncIterator[Event | None]:
        """What happens to a job behind event `after`, up to its final state; None when nothing happened in
        KEEP_ALIVE_SECONDS."""
        with self._listening(job_id) as inbox:
            while True:
                for event in await self._taken(inbox, job_id, after):
                    if event.number > after:
                        after = event.number
                        yield event
                        if _is_last(event):
                            return
                if not inbox.missed and not inbox.events and not await _news(inbox):
                    yield None

    async def _taken(self, inbox: _Inbox, job_id: str, after: int) -> list[Event]:
        """The next events; those that it missed from the queue."""
        inbox.news.clear()
        if not inbox.missed:
            events = list(inbox.events)
            inbox.events.clear()
            return events
        # Before the queue is read: what comes meanwhile is put in, and what is in both is told once.
        inbox.missed = False
        try:
            events = await self._read(job_id, after)
        except StoreError as cause:  # it may be another moment's; who listens waits
            _log.warning("cannot read what happened to job %s: %s", job_id, cause)
            await asyncio.sleep(POLL_SECONDS)
            inbox.missed = True
            return []
        inbox.missed = inbox.missed or len(events) == READ_AT_ONCE
        return events

    @contextmanager
    def _listening(self, job_id: str) -> Iterator[_Inbox]:
        inbox = _Inbox()
        self._inboxes[job_id].add(inbox)
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._tell_all())
        try:
            yield inbox
        finally:
            self._inboxes[job_id].discard(inbox)
            if not self._inboxes[job_id]:
                del self._inboxes[job_id]

    async def _tell_all(self) -> None:
        newest: int | None = None
        while self._inboxes:
            try:
                if newest is None:
                    newest = await to_thread.run_sync(self._queue.newest_event, limiter=self._threads)
                    self._all_missed()
                events = await self._read(None, newest)
            except StoreError as cause:
                _log.warning("cannot read what happened to jobs: %s", cause)
                events = []
            for event in events:
                newest = event.number
                for inbox in self._inboxes.get(event.job, ()):
                    inbox.put(event)
            if len(events) < READ_AT_ONCE:
                await asyncio.sleep(POLL_SECONDS)

    def _all_missed(self) -> None:
        """What happened before the first reading, and after somebody began to listen."""
        for inboxes in self._inboxes.values():
            for inbox in inboxes:
                inbox.missed = True
                inbox.news.set()

    async def _read(self, job_id: str | None, after: int) -> list[Event]:
        read = partial(self._queue.events, job_id, after=after, limit=READ_AT_ONCE)
        return await to_thread.run_sync(read, limiter=self._threads)


def told(data: Mapping[str, Any]) -> dict[str, Any]:
    """What callers hear of it: where an answer lies on the server is nobody's business."""
    result = data.get("result")
    if not isinstance(result, Mapping):
        return dict(data)
    return {**data, "result": {name: value for name, value in result.items() if name != "file"}}


def as_sse(event: Event) -> bytes:
    """One server-sent event."""
    data = json.dumps({"at": event.at, **told(event.data)}, allow_nan=False)
    return f"id: {event.number}\nevent: {event.kind}\ndata: {data}\n\n".encode()


def _is_last(event: Event) -> bool:
    return event.kind == "state" and event.data.get("state") in FINAL


async def _news(inbox: _Inbox) -> bool:
    """Whether there are news within KEEP_ALIVE_SECONDS."""
    try:
        async with asyncio.timeout(KEEP_ALIVE_SECONDS):
            await inbox.news.wait()
    except TimeoutError:
        return False
    return True
