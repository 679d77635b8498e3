"""The process that children are forked from: it has imported all that they need, and runs nothing itself.

`python -m nvpstore.query.forking FD`, where FD is one end of a socket of sequenced packets (`children` has
the other). Packets are `fork N`, with the child's end of its pipe beside it; `end N`; and `status N`, which
is answered with the child's exit code once it has ended, or `unknown`. It ends with that socket, and
everything of its ends with it: whatever happens to the server, no query goes on.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import OrderedDict
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

import pyarrow.dataset  # noqa: F401  here once, and not in every child

from nvpstore.query.serving import serve

PACKET_BYTES = 64
_PAUSE_SECONDS = 0.002
_MOST_CODES = 1024
_GRACE_SECONDS = 2.0  # for a child whose pipe has ended to end as well
_PR_SET_PDEATHSIG = 1


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    gc.freeze()  # so that collections in children do not copy what they share
    with tempfile.TemporaryDirectory(prefix="nvp-query-") as folder:
        family = _Family(control, Path(folder))
        try:
            family.serve()
        finally:
            family.end_all()
    os._exit(0)  # what is frozen cannot be torn down in order


class _Family:
    """All children, by the numbers that the server gave them."""

    def __init__(self, control: socket.socket, folder: Path) -> None:
        self._control, self._folder = control, folder
        self._pids: dict[int, int] = {}
        self._codes: OrderedDict[int, int] = OrderedDict()  # of those that ended last
        self._ends, self._end = os.pipe()  # a byte where a child ended
        for descriptor in (self._ends, self._end):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._end, warn_on_full_buffer=False)

    def serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._control.fileno(), self._ends], [], [])
            self._reap()
            if self._ends in ready:
                os.read(self._ends, PACKET_BYTES)
            if self._control.fileno() in ready and not self._obey():
                return

    def _obey(self) -> bool:
        """Do what the next packet says; False where there are no more."""
        packet, descriptors, _, _ = socket.recv_fds(self._control, PACKET_BYTES, 1)
        if not packet:
            return False
        word, number = packet.decode().split()
        if word == "fork":
            self._fork(int(number), descriptors[0])
        elif word == "end":
            self._kill(int(number))
        else:
            self._control.send(self._status(int(number)).encode())
        return True

    def end_all(self) -> None:
        for number in list(self._pids):
            self._kill(number)
        while self._pids:
            self._reap()
            time.sleep(_PAUSE_SECONDS)

    def _fork(self, number: int, descriptor: int) -> None:
        with suppress(OSError):  # no process to be had: the server sees that its pipe ends
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for inherited in (self._control.fileno(), self._ends, self._end):
                    os.close(inherited)
                _be_child(descriptor, self._folder / str(number))
            self._pids[number] = pid
        os.close(descriptor)

    def _kill(self, number: int) -> None:
        if number in self._pids:
            os.kill(self._pids[number], signal.SIGKILL)

    def _status(self, number: int) -> str:
        """The exit code of a child whose pipe has ended."""
        until = time.monotonic() + _GRACE_SECONDS
        while number in self._pids:
            if time.monotonic() > until:
                self._kill(number)
            time.sleep(_PAUSE_SECONDS)
            self._reap()
        return str(self._codes.get(number, "unknown"))

    def _reap(self) -> None:
        for number, child in list(self._pids.items()):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid == 0:
                continue
            del self._pids[number]
            shutil.rmtree(self._folder / str(number), ignore_errors=True)
            self._codes[number] = os.waitstatus_to_exitcode(status)
            if len(self._codes) > _MOST_CODES:
                self._codes.popitem(last=False)


def _be_child(descriptor: int, folder: Path) -> NoReturn:
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # Where memory runs out on the machine, a query goes before anything else.
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
        serve(Connection(descriptor), folder)
        code = 0
    finally:
        os._exit(code)  # nothing of the parent's is to be cleaned up here


if __name__ == "__main__":
    main()
