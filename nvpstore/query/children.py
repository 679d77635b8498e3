"""Processes for queries of strangers: some wait ahead, and each serves one query at a time.

One whose query ended well, within its limits and with nothing left behind, serves again; all others end.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from nvpstore.errors import StoreError
from nvpstore.query.allotment import FLOOR_BYTES
from nvpstore.query.asking import Connect
from nvpstore.query.child import Child
from nvpstore.query.forking import PACKET_BYTES
from nvpstore.query.serving import ChildLimits, opening

WARM = 2
KEPT = 8  # of those that have served and wait
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")


@dataclass(slots=True, kw_only=True)
class _Spare:
    """A child that waits, and what it was told to open ahead."""

    pipe: Connection
    number: int
    forker: _Forker
    opened: bytes = b""

    def prepare(self, what: bytes) -> None:
        self.opened = what
        with contextlib.suppress(OSError):  # it ended; whoever takes it finds out
            self.pipe.send(("prepare", what))

    def end(self) -> None:
        self.pipe.close()
        self.forker.tell("end", self.number)


class _Forker:
    """The process that children are forked from, as this process sees it."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        environment |= {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "ARROW_DEFAULT_MEMORY_POOL": "system",
            "OPENBLAS_NUM_THREADS": "1",  # a process of many threads cannot be forked safely
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "nvpstore.query.forking", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=environment,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C is for the server: it lets queries finish
            )
        self._talking = threading.Lock()
        self._numbers = itertools.count(1)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def fork(self) -> _Spare:
        """Raises OSError where the process is gone."""
        mine, theirs = socket.socketpair()
        with theirs, self._talking:
            number = next(self._numbers)
            try:
                socket.send_fds(self._control, [f"fork {number}".encode()], [theirs.fileno()])
            except OSError:
                mine.close()
                raise
        return _Spare(pipe=Connection(mine.detach()), number=number, forker=self)

    def tell(self, word: str, number: int) -> None:
        with self._talking, contextlib.suppress(OSError):  # all of its children ended with it
            self._control.send(f"{word} {number}".encode())

    def exit_code(self, number: int) -> str:
        with self._talking:
            try:
                self._control.send(f"status {number}".encode())
                return self._control.recv(PACKET_BYTES).decode() or "unknown"
            except OSError:
                return "unknown"

    def close(self) -> None:
        """All children end."""
        self._control.close()
        self._process.wait()


class Children:
    """Lends processes, one a query. Can be shared by threads; `warm` of them are started ahead."""

    def __init__(self, *, warm: int = WARM) -> None:
        self._warm = warm
        self._lock = threading.Lock()
        self._forker: _Forker | None = None
        self._spares: list[_Spare] = []
        self._granted_bytes = 0

    def start(self) -> None:
        """Have some ready before the first query asks."""
        with self._lock:
            self._fill(b"")

    def close(self) -> None:
        """End all of them, also those that are lent. The next one that is asked for starts anew."""
        with self._lock:
            forker, self._forker, self._spares = self._forker, None, []
        if forker is not None:
            forker.close()

    @contextmanager
    def lend(self, connect: Connect, *, limits: ChildLimits, stop: threading.Event) -> Iterator[Child]:
        """A child on the index that `connect` opens, for as long as the block runs.

        `limits.memory_bytes` is what all that are lent may have together: this one gets half of what is free.
        Raises StoreError where no process can be started, or the index is gone.
        """
        what = opening(connect, threads=limits.threads)
        with self._grant(limits) as mine:
            spare, child = self._begun(what, mine, stop)
            try:
                yield child
            except BaseException:
                spare.end()
                raise
            if child.rest():
                spare.opened = what
                self._keep(spare)
            else:
                spare.end()

    def _begun(self, what: bytes, limits: ChildLimits, stop: threading.Event) -> tuple[_Spare, Child]:
        # Those that waited may have ended: after an idle minute, or with the process that they come from.
        for _ in range(max(self._warm, KEPT) + 2):
            spare = self._take(what)
            child = _child(spare, limits, stop)
            try:
                if child.begin(what):
                    return spare, child
            except BaseException:
                spare.end()
                raise
            spare.end()
        raise StoreError("no process for a query can be started: those that were ended at once")

    def _take(self, what: bytes) -> _Spare:
        with self._lock:
            self._fill(what)
            # One that has this index open; else one that has none; else the one that waited longest.
            best = min(self._spares, key=lambda spare: (spare.opened != what, spare.opened != b""))
            self._spares.remove(best)
            self._fill(what)
            return best

    def _keep(self, spare: _Spare) -> None:
        with self._lock:
            if spare.forker is self._forker and len(self._spares) < max(self._warm, KEPT):
                self._spares.append(spare)
                return
        spare.end()

    def _fill(self, what: bytes) -> None:
        try:
            if self._forker is not None and not self._forker.alive:
                self._forker.close()
                self._forker, self._spares = None, []
            if self._forker is None:
                self._forker = _Forker()
            while len(self._spares) < max(1, self._warm):
                self._spares.append(self._forker.fork())
        except OSError as cause:
            raise StoreError(f"no process for a query can be started: {cause}") from cause
        for spare in self._spares:
            if not spare.opened and what:
                spare.prepare(what)

    @contextmanager
    def _grant(self, limits: ChildLimits) -> Iterator[ChildLimits]:
        with self._lock:
            free = limits.memory_bytes - self._granted_bytes
            mine = max(FLOOR_BYTES, free // 2)
            self._granted_bytes += mine
        try:
            yield replace(limits, memory_bytes=mine)
        finally:
            with self._lock:
                self._granted_bytes -= mine


def _child(spare: _Spare, limits: ChildLimits, stop: threading.Event) -> Child:
    return Child(spare.pipe, limits=limits, stop=stop, exit_code=lambda: spare.forker.exit_code(spare.number))


CHILDREN = Children()
