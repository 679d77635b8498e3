"""Queries on threads of their own: whose turn it is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator

from nvpstore.api.service.answers import Head
from nvpstore.api.service.formats import Notes
from nvpstore.api.service.metrics import Metrics
from nvpstore.api.service.running import Desk, Make, Piece, Run


def test_callers_take_turns_however_many_queries_one_has() -> None:
    order: list[str] = []
    begun, free = threading.Event(), threading.Event()

    def query(name: str) -> Make:
        def make(_: threading.Event) -> Generator[Piece, None, None]:
            begun.set()
            assert free.wait(30)
            order.append(name)
            yield Head(notes=Notes())

        return make

    async def ask() -> None:
        desk = Desk(each=8, metrics=Metrics(), at_once=1)
        runs = [desk.start("greedy", query("greedy"))]
        assert begun.wait(30)
        asked = ["greedy", "greedy", "greedy", "modest", "other", "modest"]
        runs += [desk.start(caller, query(caller)) for caller in asked]
        free.set()
        for run in runs:
            await _whole(run)

    asyncio.run(ask())
    # The first ran before anybody else came.
    assert order == ["greedy", "greedy", "modest", "other", "greedy", "modest", "greedy"]


async def _whole(run: Run) -> None:
    while await run.next() is not None:
        pass
