"""Workers on this machine: this process alone, or others that it starts."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from nvpstore.engine.contract import MOST_TRIES
from nvpstore.errors import UsageError, WorkerLost

Item = TypeVar("Item")
Done = TypeVar("Done")


class HereEngine:
    """One item after another in this process."""

    def run(
        self,
        work: Callable[[Item], Done],
        items: Sequence[Item],
        *,
        lost: Callable[[Item], Done] | None = None,
    ) -> Iterator[Done]:
        """As `Engine.run`."""
        return map(work, items)


class ProcessEngine:
    """`workers` ≥ 1 processes of their own, at `nice` above this one's level; one that dies is replaced.

    `gpus`, as CUDA_VISIBLE_DEVICES names them, are dealt out in turn: each process sees one.
    """

    def __init__(self, workers: int, *, gpus: Sequence[str] = (), nice: int = 0) -> None:
        if workers < 1:
            raise UsageError(f"{workers} workers: at least 1 is needed")
        self.workers, self.gpus, self.nice = workers, tuple(gpus), nice

    def run(
        self,
        work: Callable[[Item], Done],
        items: Sequence[Item],
        *,
        lost: Callable[[Item], Done] | None = None,
    ) -> Iterator[Done]:
        """As `Engine.run`."""
        tries, left = Counter[int](), deque(range(len(items)))
        own = [self._own(number) for number in range(min(self.workers, len(items)))]
        free, busy = list(own), dict[Future[Done], tuple[int, _Own]]()
        try:
            while left or busy:
                while left and free:
                    number, process = left.popleft(), free.pop()
                    busy[process.begin(work, items[number])] = (number, process)
                for future in wait(busy, return_when=FIRST_COMPLETED).done:
                    number, process = busy.pop(future)
                    free.append(process)
                    try:
                        done = future.result()
                    except BrokenProcessPool as cause:
                        tries[number] += 1
                        if tries[number] < MOST_TRIES:
                            left.appendleft(number)
                            continue
                        if lost is None:
                            raise WorkerLost(
                                f"workers ended {MOST_TRIES} times on the same part of the work"
                            ) from cause
                        done = lost(items[number])
                    yield done
        finally:
            for process in own:
                process.end()

    def _own(self, number: int) -> _Own:
        return _Own(self.gpus[number % len(self.gpus)] if self.gpus else None, self.nice)


class _Own:
    """One process, which has one item at a time: if it dies, everybody knows on which."""

    def __init__(self, gpu: str | None, nice: int) -> None:
        self._begun_with = (gpu, nice)
        self._pool = self._new()

    def begin(self, work: Callable[[Item], Done], item: Item) -> Future[Done]:
        try:
            return self._pool.submit(work, item)
        except BrokenProcessPool:
            self.end()
            self._pool = self._new()
            return self._pool.submit(work, item)

    def end(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _new(self) -> ProcessPoolExecutor:
        # Fresh interpreters: a fork would take the parent's threads' locks along.
        context: Any = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(
            max_workers=1, mp_context=context, initializer=_begin, initargs=self._begun_with
        )


def _begin(gpu: str | None, nice: int) -> None:
    if gpu is not None:
        # Before anything asks CUDA what there is.
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.nice(nice)
