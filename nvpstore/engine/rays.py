"""Workers of a Ray cluster, or of a Ray that is started here (extra `ray`)."""

from __future__ import annotations

import importlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from nvpstore.engine.contract import MOST_TRIES
from nvpstore.errors import UsageError, WorkerLost

Item = TypeVar("Item")
Done = TypeVar("Done")


class RayEngine:
    """`workers` actors, on the cluster that this process is connected to or that RAY_ADDRESS names; where
    there is none, on this machine. An actor takes `gpus_a_worker` of a GPU; None: one where the cluster has
    as many, else an equal share of one. It runs at `nice` above its node's level.
    """

    def __init__(self, workers: int, *, gpus_a_worker: float | None = None, nice: int = 0) -> None:
        """Raises UsageError where Ray is not installed."""
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError as cause:
            raise UsageError("engine 'ray' needs ray: pip install 'nvpstore[ray]'") from cause
        self.workers, self.gpus_a_worker, self.nice = workers, gpus_a_worker, nice

    def run(
        self,
        work: Callable[[Item], Done],
        items: Sequence[Item],
        *,
        lost: Callable[[Item], Done] | None = None,
    ) -> Iterator[Done]:
        """As `Engine.run`."""
        ray = self._ray
        started = not ray.is_initialized()
        if started:
            ray.init(include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
        try:
            yield from self._run(work, items, lost)
        finally:
            if started:
                ray.shutdown()

    def _run(
        self, work: Callable[[Item], Done], items: Sequence[Item], lost: Callable[[Item], Done] | None
    ) -> Iterator[Done]:
        ray = self._ray
        count = min(self.workers, len(items))
        actor = ray.remote(num_cpus=1, num_gpus=self._gpus(count))(_Worker)
        free = [actor.remote(work, self.nice) for _ in range(count)]
        waiting: dict[Any, tuple[int, Any]] = {}
        tries, left = Counter[int](), deque(range(len(items)))
        try:
            while left or waiting:
                while left and free:
                    number, worker = left.popleft(), free.pop()
                    waiting[worker.answer.remote(items[number])] = (number, worker)
                (done,), _ = ray.wait(list(waiting), num_returns=1)
                number, worker = waiting.pop(done)
                try:
                    answer: Done = ray.get(done)
                except ray.exceptions.RayActorError as cause:
                    free.append(actor.remote(work, self.nice))
                    tries[number] += 1
                    if tries[number] < MOST_TRIES:
                        left.appendleft(number)
                        continue
                    if lost is None:
                        raise WorkerLost(
                            f"workers ended {MOST_TRIES} times on the same part of the work"
                        ) from cause
                    answer = lost(items[number])
                except ray.exceptions.RayTaskError as cause:
                    raise cause.as_instanceof_cause() from cause
                else:
                    free.append(worker)
                yield answer
        finally:
            for worker in (*free, *(worker for _, worker in waiting.values())):
                ray.kill(worker)

    def _gpus(self, workers: int) -> float:
        if self.gpus_a_worker is not None:
            return self.gpus_a_worker
        found = float(self._ray.cluster_resources().get("GPU", 0))
        return min(1.0, found / workers) if workers else 0.0


class _Worker:
    def __init__(self, work: Callable[[Any], Any], nice: int) -> None:
        os.nice(nice)
        self.work = work

    def answer(self, item: Any) -> Any:
        return self.work(item)
