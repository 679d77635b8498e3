"""Workers on this machine: this process alone, or others that it starts."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from nvpstore.engine.contract import MOST_TRIES
from nvpstore.errors import UsageError, WorkerLost

Item = TypeVar("Item")
Done = TypeVar("Done")


class HereEngine:
    """One item after another in this process."""

    def run(self, work: Callable[[Item], Done], items: Sequence[Item]) -> Iterator[Done]:
        """As `Engine.run`."""
        return map(work, items)


class ProcessEngine:
    """`workers` ≥ 1 processes of their own; a process that dies is replaced."""

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise UsageError(f"{workers} workers: at least 1 is needed")
        self.workers = workers

    def run(self, work: Callable[[Item], Done], items: Sequence[Item]) -> Iterator[Done]:
        """As `Engine.run`."""
        tries = [0] * len(items)
        left = list(range(len(items)))
        while left:
            lost: list[int] = []
            for number, done in self._round(work, items, left):
                if done is None:
                    lost.append(number)
                    continue
                yield done[0]
            for number in lost:
                tries[number] += 1
                if tries[number] >= MOST_TRIES:
                    raise WorkerLost(f"workers ended {MOST_TRIES} times on the same part of the work")
            left = lost

    def _round(
        self, work: Callable[[Item], Done], items: Sequence[Item], numbers: Sequence[int]
    ) -> Iterator[tuple[int, tuple[Done] | None]]:
        """Each item once, until a process is lost: then what was not finished is None."""
        # Fresh interpreters: a fork would take the parent's threads' locks along.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(max_workers=min(self.workers, len(numbers)), mp_context=context)
        try:
            futures: dict[Future[Done], int] = {pool.submit(work, items[n]): n for n in numbers}
            waiting = set(futures)
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    try:
                        yield futures[future], (future.result(),)
                    except BrokenProcessPool:
                        yield futures[future], None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
