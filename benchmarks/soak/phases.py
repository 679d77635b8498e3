"""What a process is doing, seen from outside, and a kill -9 at a chosen moment of it."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from nvpstore.catalog import Catalog
from nvpstore.codec.fit import SegmentFit
from nvpstore.errors import UsageError
from nvpstore.ingest import segment
from nvpstore.ingest.pipeline import Ingest
from nvpstore.storage import keys
from nvpstore.storage.local import LocalStore
from nvpstore.storage.s3 import S3Store

ANYWHERE = "anywhere"  # from the operation's first moment to its last
_NAME_BYTES = 64

_FUNCTIONS: tuple[tuple[object, str, str], ...] = (
    (Ingest, "_scan", "scan"),
    (SegmentFit, "run", "fit"),
    (segment, "_gather", "references"),
    (segment, "_measure", "measure"),
    (segment, "_routes", "train routes"),
    (Catalog, "snapshot", "index"),
    (Catalog, "checkpoint", "checkpoint"),
    (Catalog, "forget", "forget"),
)
_PUTS = ("put", "put_file")
_DELETES = ("delete", "delete_all", "sweep_unfinished")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """SIGKILL `after_seconds` after the `occurrence`-th beginning (from 0) of `phase`."""

    phase: str
    occurrence: int
    after_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One time in a phase."""

    phase: str
    seconds: float


class Watch:
    """Names the phase a child is in, also after its death. Made before the child is forked."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, _NAME_BYTES)

    @property
    def phase(self) -> str:
        return self._shared[:].rstrip(b"\0").decode() or "between"

    def enter(self, phase: str) -> None:
        self._shared[:] = phase.encode()[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")


@contextmanager
def traced(watch: Watch, kill: Kill | None = None) -> Iterator[list[Span]]:
    """Notes all phases that begin inside, in a list as they end, and kills this process where asked to."""
    tracer = _Tracer(watch, kill)
    points = [(owner, name, _always(phase)) for owner, name, phase in _FUNCTIONS]
    for store in (LocalStore, S3Store):
        points += [(store, name, _put_of) for name in _PUTS]
        points += [(store, name, _always("delete")) for name in _DELETES]
    with ExitStack() as patches:
        for owner, name, phase_of in points:
            patches.enter_context(patch.object(owner, name, tracer.wrapped(getattr(owner, name), phase_of)))
        with tracer.inside(ANYWHERE):
            yield tracer.spans


class _Tracer:
    def __init__(self, watch: Watch, kill: Kill | None) -> None:
        self.watch, self.kill = watch, kill
        self.spans: list[Span] = []
        self._open: list[str] = []
        self._begun = 0

    def wrapped(self, function: Callable[..., Any], phase_of: Callable[..., str]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.inside(phase_of(*args)):
                return function(*args, **kwargs)

        return run

    @contextmanager
    def inside(self, phase: str) -> Iterator[None]:
        self._open.append(phase)
        self._show()
        if self.kill is not None and phase == self.kill.phase:
            if self._begun == self.kill.occurrence:
                die_in(self.kill.after_seconds)
            self._begun += 1
        started = time.monotonic()
        try:
            yield
        finally:
            self.spans.append(Span(phase=phase, seconds=time.monotonic() - started))
            self._open.pop()
            self._show()

    def _show(self) -> None:
        inner = self._open[-1] if self._open else ""
        self.watch.enter("" if inner == ANYWHERE else inner)


def _always(phase: str) -> Callable[..., str]:
    return lambda *_: phase


def _put_of(_: object, key: str, *rest: object) -> str:
    try:
        return f"put {keys.parse_key(key).kind}"
    except UsageError:
        return "put"


# ---------------------------------------------------------------- the kernel's timer


class _Event(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("padding", ctypes.c_int * 12),
    )


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Timer(ctypes.Structure):
    _fields_ = (("interval", _Time), ("first", _Time))


_SIGEV_SIGNAL = 0
_libc = ctypes.CDLL(None, use_errno=True)


def die_in(seconds: float) -> None:
    """The kernel sends this process SIGKILL then: nobody has to wake up to do it, so the moment is exact."""
    event = _Event(signal=signal.SIGKILL, notify=_SIGEV_SIGNAL)
    timer = ctypes.c_void_p()
    whole, part = divmod(max(1, int(seconds * 1e9)), 10**9)
    times = _Timer(first=_Time(seconds=whole, nanoseconds=part))
    if _libc.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)) or (
        _libc.timer_settime(timer, 0, ctypes.byref(times), None)
    ):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
