"""Workers of a Ray cluster, or of a Ray that is started here (extra `ray`)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from nvpstore.engine.contract import MOST_TRIES
from nvpstore.errors import UsageError, WorkerLost

Item = TypeVar("Item")
Done = TypeVar("Done")


class RayEngine:
    """`workers` actors, on the cluster that this process is connected to or that RAY_ADDRESS names; where
    there is none, on this machine. An actor takes one GPU where the cluster has as many, else a share of one.
    """

    def __init__(self, workers: int) -> None:
        """Raises UsageError where Ray is not installed."""
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError as cause:
            raise UsageError("engine 'ray' needs ray: pip install 'nvpstore[ray]'") from cause
        self.workers = workers

    def run(self, work: Callable[[Item], Done], items: Sequence[Item]) -> Iterator[Done]:
        """As `Engine.run`."""
        ray = self._ray
        started = not ray.is_initialized()
        if started:
            ray.init(include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
        try:
            yield from self._run(work, items)
        finally:
            if started:
                ray.shutdown()

    def _run(self, work: Callable[[Item], Done], items: Sequence[Item]) -> Iterator[Done]:
        ray = self._ray
        count = min(self.workers, len(items))
        actor = ray.remote(num_cpus=1, num_gpus=self._gpus(count), max_restarts=MOST_TRIES)(_Worker)
        free = [actor.remote(work) for _ in range(count)]
        waiting: dict[Any, Any] = {}
        left = list(items)
        try:
            while left or waiting:
                while left and free:
                    worker = free.pop()
                    # A task that was lost with its actor is tried again on the restarted one.
                    call = worker.answer.options(max_task_retries=MOST_TRIES - 1)
                    waiting[call.remote(left.pop(0))] = worker
                (done,), _ = ray.wait(list(waiting), num_returns=1)
                worker = waiting.pop(done)
                try:
                    answer: Done = ray.get(done)
                except ray.exceptions.RayActorError as cause:
                    raise WorkerLost(
                        f"workers ended {MOST_TRIES} times on the same part of the work"
                    ) from cause
                except ray.exceptions.RayTaskError as cause:
                    raise cause.as_instanceof_cause() from cause
                free.append(worker)
                yield answer
        finally:
            for worker in (*free, *waiting.values()):
                ray.kill(worker)

    def _gpus(self, workers: int) -> float:
        found = float(self._ray.cluster_resources().get("GPU", 0))
        return min(1.0, found / workers) if workers else 0.0


class _Worker:
    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.work = work

    def answer(self, item: Any) -> Any:
        return self.work(item)
