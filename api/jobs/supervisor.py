"""Keeps as many workers as an operator wants: starts them, starts them again, and stops them."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nvpstore.api.jobs import spool
from nvpstore.api.jobs.attempt import GRACE_SECONDS
from nvpstore.api.jobs.orders import AFRESH, Orders
from nvpstore.api.jobs.queue import LEASE_SECONDS, JobQueue
from nvpstore.api.service.settings import ServiceSettings
from nvpstore.errors import NvpError
from nvpstore.storage.keys import new_attempt

KEPT_SECONDS = 30 * 24 * 3600.0  # jobs that ended are remembered for so long
_POLL_SECONDS = 0.2
_TIDY_SECONDS = 600.0
_YOUNG_SECONDS = 60.0  # a worker that dies younger is not started again at once
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0
_DEVICE = re.compile(r"nvidia\d+")

_log = logging.getLogger("nvpstore.supervisor")


@dataclass(slots=True, kw_only=True)
class _Place:
    """One of the workers, or where it will be: not before `not_before`, after dying young `deaths` times."""

    number: int
    name: str = ""
    process: subprocess.Popen[str] | None = None
    started_at: float = 0.0
    not_before: float = 0.0
    deaths: int = 0

    def ended(self, status: int, now: float) -> None:
        self.process = None
        young = status not in (0, AFRESH) and now - self.started_at < _YOUNG_SECONDS
        self.deaths = self.deaths + 1 if young else 0
        pause = _FIRST_PAUSE_SECONDS * 2 ** (self.deaths - 1) if self.deaths else 0.0
        self.not_before = now + min(pause, _LONGEST_PAUSE_SECONDS)


class Supervisor:
    """`settings.workers` processes that do the jobs of the queue at `queue_path` on an archive.

    They end with it, however it ends. Where there are GPUs, each worker sees one of them.
    """

    def __init__(
        self,
        archive_uri: str,
        queue_path: Path,
        settings: ServiceSettings,
        device: str = "auto",
        *,
        lease_seconds: float = LEASE_SECONDS,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._archive_uri, self._queue_path, self._settings = archive_uri, queue_path, settings
        self._device, self._lease_seconds, self._grace_seconds = device, lease_seconds, grace_seconds
        self._queue = JobQueue(queue_path, lease_seconds=lease_seconds)
        self._places = [_Place(number=number) for number in range(settings.workers)]
        self._gpus = [] if device == "cpu" else visible_gpus(os.environ)
        self._stopping = threading.Event()
        self._tidied_at = float("-inf")
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def start(self) -> None:
        self._watcher.start()

    def stop(self, grace_seconds: float = 30.0) -> None:
        """Workers give their jobs back and end; who has not done so after the grace is killed."""
        self._stopping.set()
        if self._watcher.ident is not None:
            self._watcher.join()
        running = [place for place in self._places if place.process is not None]
        for place in running:
            _signal(place.process, signal.SIGTERM)
        until = time.monotonic() + grace_seconds
        for place in running:
            self._await(place, until)

    def alive(self) -> int:
        """How many workers there are at the moment."""
        return sum(
            process is not None and process.poll() is None
            for process in [place.process for place in self._places]
        )

    # ------------------------------------------------------------ parts

    def _watch(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look()
            except Exception:
                # Whatever it is: without this thread, no worker would ever be started again.
                _log.exception("looking after the workers failed")
            self._stopping.wait(_POLL_SECONDS)

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._tidied_at > _TIDY_SECONDS:
            self._tidied_at = now
            self._tidy()
        for place in self._places:
            if place.process is None and now >= place.not_before:
                self._start(place, now)
            elif place.process is not None and (status := place.process.poll()) is not None:
                self._lost(place, status)
                place.ended(status, now)

    def _tidy(self) -> None:
        """Uploads that nobody needs, and jobs that nobody asks about any more."""
        try:
            for folder in spool.sweep(self._settings.spool_dir, self._queue):
                _log.info("upload %s is removed: no job needs it", folder.name)
            self._queue.forget(older_than_seconds=KEPT_SECONDS)
        except (NvpError, OSError) as error:
            _log.warning("could not tidy up: %s", error)

    def _start(self, place: _Place, now: float) -> None:
        place.name, place.started_at = f"worker-{place.number}-{new_attempt()}", now
        try:
            place.process = subprocess.Popen(
                [sys.executable, "-m", "nvpstore.api.jobs.worker", place.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **self._variables(place)},
                # Ctrl-C is for us: workers are told to stop, once.
                start_new_session=True,
                text=True,
            )
        except OSError as error:
            _log.error("worker %s cannot be started: %s", place.name, error)
            place.ended(1, now)
            return
        assert place.process.stdin is not None, "a pipe was asked for"
        # It stays open: its end is how a worker knows that we are gone.
        with suppress(BrokenPipeError):
            place.process.stdin.write(self._orders(place).to_line() + "\n")
            place.process.stdin.flush()

    def _orders(self, place: _Place) -> Orders:
        return Orders(
            archive=self._archive_uri,
            queue=self._queue_path,
            worker=place.name,
            settings=self._settings,
            device=self._device,
            lease_seconds=self._lease_seconds,
            grace_seconds=self._grace_seconds,
        )

    def _variables(self, place: _Place) -> Mapping[str, str]:
        """The worker's own device, and its share of the cores where it is one of several."""
        own = {}
        if self._gpus:
            own["CUDA_VISIBLE_DEVICES"] = self._gpus[place.number % len(self._gpus)]
        if len(self._places) > 1:
            share = str(max(1, len(os.sched_getaffinity(0)) // len(self._places)))
            own |= {name: share for name in ("NVP_THREADS", "OMP_NUM_THREADS") if name not in os.environ}
        return own

    def _await(self, place: _Place, until: float) -> None:
        assert place.process is not None, "only those that run are waited for"
        try:
            status = place.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            _log.warning("worker %s did not stop and is killed", place.name)
            _signal(place.process, signal.SIGKILL)
            status = place.process.wait()
        self._lost(place, status)
        place.process = None

    def _lost(self, place: _Place, status: int) -> None:
        """A worker has ended: what it has not given back is for others."""
        assert place.process is not None, "it has run"
        if place.process.stdin is not None:
            with suppress(OSError):
                place.process.stdin.close()
        why = _death(status)
        if status not in (0, AFRESH):
            _log.warning("worker %s %s", place.name, why)
        try:
            self._queue.lost(place.name, why)
        except NvpError as error:
            _log.warning("what worker %s had waits for its lease to run out: %s", place.name, error)


def visible_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> Sequence[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; found without asking CUDA."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() and name.strip() != "-1"]
    # Numbered as CUDA numbers those that it sees, whatever the system calls them.
    with suppress(OSError):
        found = [path for path in devices.iterdir() if _DEVICE.fullmatch(path.name)]
        return [str(number) for number in range(len(found))]
    return []


def _death(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    with suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"


def _signal(process: subprocess.Popen[str] | None, number: signal.Signals) -> None:
    if process is not None:
        with suppress(ProcessLookupError):
            process.send_signal(number)
