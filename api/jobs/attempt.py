"""One attempt at a job: its lease is kept, its progress told, and it ends once, whoever ends it.

The work runs on one thread and may say nothing for minutes; another one keeps the lease meanwhile, looks
whether the job is still wanted, and ends the whole process where the work does not stop when it is to: what
is killed anywhere goes on from its checkpoints.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from nvpstore.api.jobs import spool
from nvpstore.api.jobs.failures import Failure
from nvpstore.api.jobs.job import Lease
from nvpstore.api.jobs.queue import JobQueue, LeaseLost
from nvpstore.api.jobs.run import progress_json
from nvpstore.api.progress import ProgressLike
from nvpstore.errors import StoreError

Reason = Literal["cancelled", "lost", "stopping"]

GRACE_SECONDS = 10.0
STALL_SECONDS = 2 * 3600.0  # no step of any work takes this long without a word
_LOOK_SECONDS = 1.0
_REPORT_SECONDS = 1.0
_PAUSES_SECONDS = (0.0, 0.5, 1.0, 2.0, 4.0)  # before each try to say how it ended

_log = logging.getLogger("nvpstore.worker")


class Attempt:
    """What `lease` gives the right to. As a context, it keeps the lease until it is left.

    `stopping` is set where the worker is to end. `leave` ends the process with a status. `alive` is called as
    long as this process gets to do anything at all.
    """

    def __init__(
        self,
        queue: JobQueue,
        lease: Lease,
        *,
        spool_dir: Path,
        stopping: threading.Event,
        grace_seconds: float = GRACE_SECONDS,
        stall_seconds: float = STALL_SECONDS,
        leave: Callable[[int], object] = os._exit,
        alive: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue, self._lease, self._spool_dir = queue, lease, spool_dir
        self._stopping, self._grace_seconds, self._stall_seconds = stopping, grace_seconds, stall_seconds
        self._leave, self._alive, self._clock = leave, alive, clock
        self._found: Reason | None = None
        self._to_stop_since: float | None = None
        self._renewed_at = self._moved_at = clock()
        self._told: tuple[str, float] = ("", float("-inf"))  # the last phase, and when it was reported
        self._ending, self._ended = threading.Lock(), False
        self._left = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Attempt:
        self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._keeper.join()

    # ------------------------------------------------------------ what the work says and asks

    @property
    def reason(self) -> Reason | None:
        """Why the work is to stop; None while it is to go on."""
        if self._found is not None:
            return self._found
        return "stopping" if self._stopping.is_set() else None

    def should_stop(self) -> bool:
        return self.reason is not None

    def progress(self, progress: ProgressLike) -> None:
        """Tell how far it is, at most once a second and in each phase at least once."""
        now = self._moved_at = self._clock()
        phase, at = self._told
        if progress.phase != phase or now - at >= _REPORT_SECONDS:
            self._told = (progress.phase, now)
            self._try(lambda: self._queue.report(self._lease, progress_json(progress)))

    def say(self, text: str) -> None:
        """A line for the job's own log."""
        self._moved_at = self._clock()
        self._try(lambda: self._queue.log(self._lease, text))

    # ------------------------------------------------------------ how it ends

    def finish(self, result: Mapping[str, Any]) -> None:
        self._end(lambda: self._queue.finish(self._lease, result))

    def fail(self, failure: Failure) -> None:
        self._end(lambda: self._queue.fail(self._lease, failure.to_json(), retry=failure.retry))

    def stop(self) -> None:
        """The work stopped because it was to: cancelled, or given back for another worker to go on with."""
        self._end(self._stopped)

    def _stopped(self) -> None:
        if self.reason == "cancelled":
            self._queue.cancelled(self._lease)
        else:
            self._queue.release(self._lease)

    def _end(self, say: Callable[[], object], *, leave: int | None = None) -> None:
        # Held until the process has ended, where it is to: nothing else is begun meanwhile.
        with self._ending:
            if not self._ended:
                self._ended = True
                self._persistently(say)
                if leave is not None:
                    self._leave(leave)

    def _persistently(self, say: Callable[[], object]) -> None:
        """Where the queue cannot be written to, the lease runs out, and another attempt finds it done."""
        for pause in _PAUSES_SECONDS:
            time.sleep(pause)
            try:
                say()
                job = self._queue.get(self._lease.job.id)
            except LeaseLost as lost:
                _log.warning("%s", lost)
                return
            except StoreError as error:
                _log.error("job %s: its end cannot be recorded: %s", self._lease.job.id, error)
            else:
                if job.final:
                    spool.drop(self._spool_dir, job)
                return

    # ------------------------------------------------------------ the lease

    def _keep(self) -> None:
        look_seconds = min(_LOOK_SECONDS, self._queue.lease_seconds / 4)
        while not self._left.wait(look_seconds):
            self._alive()
            self._try(self._look)
            self._insist()

    def _look(self) -> None:
        now = self._clock()
        if now - self._renewed_at >= self._queue.lease_seconds / 3:
            goes_on = self._queue.renew(self._lease)
            self._renewed_at = now
        else:
            goes_on = self._queue.goes_on(self._lease)
        if not goes_on:
            self._found = self._found or "cancelled"

    def _insist(self) -> None:
        """End the process where the work does not see that it is to stop, or is stuck."""
        now = self._clock()
        if now - self._moved_at > self._stall_seconds:
            self._end(self._stalled, leave=1)
        if self.reason is None:
            return
        self._to_stop_since = now if self._to_stop_since is None else self._to_stop_since
        if now - self._to_stop_since > self._grace_seconds:
            self._end(self._stopped, leave=0)

    def _stalled(self) -> object:
        failure = Failure(
            title="Internal Server Error",
            detail=f"no progress was made for {self._stall_seconds:g} s",
            status=500,
            error=None,
            retry=False,
            expected=False,
        )
        return self._queue.fail(self._lease, failure.to_json(), retry=False)

    def _try(self, tell: Callable[[], None]) -> None:
        """What does not get through now does so later; a lease that is lost ends the work."""
        try:
            tell()
        except LeaseLost as lost:
            if not self._ended:
                _log.warning("%s", lost)
                self._found = "lost"
        except StoreError as error:
            _log.warning("job %s: %s", self._lease.job.id, error)
