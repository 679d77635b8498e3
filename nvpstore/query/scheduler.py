"""One scheduler a process: the device, and the queries that run at once.

The device (here: torch on all its threads) carries out one step at a time, whoever asked for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakSet

from nvpstore.errors import QueryError

if TYPE_CHECKING:
    from nvpstore.query.sharing import Sharing

POLL_SECONDS = 0.05  # how soon a waiting query notices that it was cancelled

Check = Callable[[], None]


class Cancelled(QueryError):
    """This query was stopped; the steps that it shares go on without it."""


class Scheduler:
    """The device, and the queries that run. One lock: whatever changes wakes all who wait."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.busy = False
        self._queries = 0
        self._sharings: WeakSet[Sharing] = WeakSet()

    @property
    def running(self) -> int:
        """How many queries run."""
        return self._queries

    @property
    def crowded(self) -> bool:
        """Whether a value that one query is done with may be another's next."""
        return self._queries > 1

    def add(self, sharing: Sharing) -> None:
        with self.changed:
            self._sharings.add(sharing)

    @contextmanager
    def query(self) -> Iterator[None]:
        """A query runs: until the last one ends, features that were read stay while there is room."""
        with self.changed:
            self._queries += 1
        try:
            yield
        finally:
            with self.changed:
                self._queries -= 1
                if not self._queries:
                    for sharing in self._sharings:
                        sharing.forget_features()

    @contextmanager
    def device(self, check: Check) -> Iterator[None]:
        """The device for the block alone. `check` is called while waiting for it."""
        with self.changed:
            while self.busy:
                check()
                self.changed.wait(POLL_SECONDS)
            self.busy = True
        try:
            yield
        finally:
            self.free_device()

    def free_device(self) -> None:
        with self.changed:
            self.busy = False
            self.changed.notify_all()


SCHEDULER = Scheduler()
