"""A process that does jobs: `python -m nvpstore.api.jobs.worker`, started by the supervisor.

It ends when it is told to (SIGTERM), when its parent has ended, and after an error that nobody expected: a
fresh process is in order for certain.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import resource
import select
import signal
import threading
from collections.abc import Sequence

import nvpstore
from nvpstore.api.jobs import web
from nvpstore.api.jobs.attempt import GRACE_SECONDS, Attempt
from nvpstore.api.jobs.failures import described
from nvpstore.api.jobs.job import JobKind, Lease
from nvpstore.api.jobs.orders import AFRESH, Orders
from nvpstore.api.jobs.probing import ProbeLimits
from nvpstore.api.jobs.queue import JobQueue
from nvpstore.api.jobs.run import Stopped, run_job
from nvpstore.api.service.logs import log_as_json
from nvpstore.api.service.settings import ServiceSettings
from nvpstore.archive import Archive
from nvpstore.errors import NvpError, StoreError

KINDS: Sequence[JobKind] = ("ingest", "add", "fit", "train", "stabilize")
_POLL_SECONDS = 0.5
_NICENESS = 5  # those who ask come before those who wait
_HUNG_LEASES = 4  # after so many without a sign of life the process is beyond hope

_log = logging.getLogger("nvpstore.worker")


class Worker:
    """Does the jobs of `queue` on `archive`, one after the other, until `stopping` is set.

    A process that does nothing at all for `hung_seconds` during a job, not even keep its lease, is ended.
    """

    def __init__(
        self,
        archive: Archive,
        queue: JobQueue,
        settings: ServiceSettings,
        *,
        name: str,
        device: str = "auto",
        stopping: threading.Event | None = None,
        grace_seconds: float = GRACE_SECONDS,
        hung_seconds: float | None = None,
        probe_limits: ProbeLimits | None = None,
        resolve: web.Resolve = web.addresses_of,
    ) -> None:
        self._archive, self._queue, self._settings = archive, queue, settings
        self._name, self._device = name, device
        self._stopping = stopping or threading.Event()
        self._grace_seconds, self._hung_seconds = grace_seconds, hung_seconds
        self._probe_limits, self._resolve = probe_limits, resolve

    def run(self) -> bool:
        """Returns True when it was told to stop, False where the process is not to go on."""
        while not self._stopping.is_set():
            lease = self._claim()
            if lease is None:
                # Not all at the same moment.
                self._stopping.wait(_POLL_SECONDS * random.uniform(0.5, 1.5))
            elif not self.work(lease):
                return False
        return True

    def work(self, lease: Lease) -> bool:
        """One attempt, however it ends; returns whether the process may go on."""
        attempt = Attempt(
            self._queue,
            lease,
            spool_dir=self._settings.spool_dir,
            stopping=self._stopping,
            grace_seconds=self._grace_seconds,
            alive=self._live_on,
        )
        try:
            with attempt:
                return self._do(lease, attempt)
        finally:
            if self._hung_seconds is not None:
                faulthandler.cancel_dump_traceback_later()

    def _live_on(self) -> None:
        # Its thread needs no interpreter: it also ends a process that some library has locked up.
        if self._hung_seconds is not None:
            faulthandler.dump_traceback_later(self._hung_seconds, exit=True)

    def _claim(self) -> Lease | None:
        try:
            return self._queue.claim(self._name, KINDS)
        except StoreError as error:
            _log.error("no job can be claimed: %s", error)
            return None

    def _do(self, lease: Lease, attempt: Attempt) -> bool:
        job = lease.job
        _log.info("job %s (%s): attempt %d", job.id, job.kind, lease.attempt)
        try:
            result = run_job(
                self._archive,
                job,
                report=attempt.progress,
                should_stop=attempt.should_stop,
                limits=self._settings,
                say=attempt.say,
                device=self._device,
                probe_limits=self._probe_limits,
                resolve=self._resolve,
            )
        except Stopped:
            _log.info("job %s: stopped (%s)", job.id, attempt.reason)
            attempt.stop()
        except Exception as error:
            return self._failed(error, lease, attempt)
        else:
            attempt.finish(result)
        return True

    def _failed(self, error: Exception, lease: Lease, attempt: Attempt) -> bool:
        failure = described(error)
        if failure.expected:
            _log.warning("job %s: %s", lease.job.id, error)
        else:
            _log.error("job %s", lease.job.id, exc_info=error)
        attempt.fail(failure)
        return failure.expected


def main() -> int:
    orders = Orders.from_line(_first_line())
    log_as_json()
    stopping = _told_to_stop()
    os.nice(_NICENESS)
    _limit_memory(orders.settings.worker_bytes)
    try:
        worker = Worker(
            nvpstore.open(orders.archive),
            JobQueue(orders.queue, lease_seconds=orders.lease_seconds),
            orders.settings,
            name=orders.worker,
            device=orders.device,
            stopping=stopping,
            grace_seconds=orders.grace_seconds,
            hung_seconds=_HUNG_LEASES * orders.lease_seconds,
        )
        return 0 if worker.run() else AFRESH
    except NvpError as error:
        _log.error("worker %s cannot start: %s", orders.worker, error)
        return 1


def _first_line() -> bytes:
    """Without a buffer: what reads on from there later must not find it locked."""
    line = b""
    while not line.endswith(b"\n"):
        if not (byte := os.read(0, 1)):
            break
        line += byte
    return line


def _told_to_stop() -> threading.Event:
    """Set by SIGTERM or SIGINT, and when whoever holds the other end of standard input has ended."""
    stopping = threading.Event()
    heard, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    # A byte for each signal at once, whatever the main thread is deep in.
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
        signal.siginterrupt(number, False)

    def listen() -> None:
        select.select([0, heard], [], [])
        stopping.set()

    threading.Thread(target=listen, name="stop", daemon=True).start()
    return stopping


def _limit_memory(most_bytes: int | None) -> None:
    # Data, not addresses: devices reserve many times as many of these as there is memory.
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    os._exit(status)  # past whatever threads libraries have left
