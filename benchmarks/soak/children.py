"""Processes forked from one that has everything imported and the backbone built: they start at once.

The process that forks has started no threads: torch is bound to one, and only children open archives.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

# Imported here for the children: an import takes longer than what they do.
import nvpstore.ingest.pipeline
import nvpstore.query.operators
import nvpstore.storage.s3  # noqa: F401
from nvpstore.routing.select import worthwhile_cuts
from nvpstore.tasks.registry import builtin_spec, load

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class ChildFailed(Exception):
    """A child raised; the message is its traceback."""


class Child(Generic[T]):
    """A forked process that runs one action. To be created from the only thread."""

    def __init__(self, action: Callable[[], T]) -> None:
        reader, writer = os.pipe()
        self._reader = os.fdopen(reader, "rb")
        self._answer = b""
        self._status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _run(action, writer)
        os.close(writer)

    def result(self) -> T:
        """What the action returned. Raises ChildFailed if it raised, or was killed."""
        if self.was_killed() or not self._answer:
            raise ChildFailed(f"process {self.pid} ended with status {self.wait()}")
        succeeded, value = pickle.loads(self._answer)  # by this program itself, through a pipe
        if not succeeded:
            raise ChildFailed(value)
        return value  # type: ignore[no-any-return]

    def was_killed(self) -> bool:
        """Waits for its end; True if SIGKILL ended it, False if the action came first."""
        if not self._reader.closed:
            with self._reader:
                self._answer = self._reader.read()
        return self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        """Its exit status, negative for a signal."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def is_running(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status is None


class Flag:
    """Set by one process, seen by all that were forked after it was made."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 1)

    def set(self) -> None:
        self._shared[0] = 1

    def is_set(self) -> bool:
        return bool(self._shared[0])


def ready() -> None:
    """Everything that children need, built before the first fork."""
    torch.set_num_threads(1)
    # Counts the cuts' costs too, for which torch imports half of its compiler.
    worthwhile_cuts(load(builtin_spec("labels")).backbone)


def _run(action: Callable[[], object], writer: int) -> None:
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            answer = pickle.dumps((True, action()))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        with os.fdopen(writer, "wb") as file:
            file.write(answer)
    finally:
        # No handlers, buffers or threads of the process that forked.
        os._exit(0)
