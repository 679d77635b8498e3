"""`nvp serve` in a process of its own, as operators run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import TextIO

STOP_SECONDS = 30.0


class Serving:
    """A served archive: a context manager. Its state folder is `state`, its log lines are kept in `log`."""

    def __init__(
        self, root: Path, folder: Path, *, workers: int = 0, port: int = 0, **variables: str
    ) -> None:
        self._arguments = ("serve", "--port", str(port), "--workers", str(workers))
        self.state = folder / "state"
        self._environment = {
            **os.environ,
            "NVP_ARCHIVE": str(root),
            "NVP_CACHE": str(folder / "cache"),
            "NVP_STATE": str(self.state),
            "NVP_ANSWERS": "off",
            **variables,
        }
        self.url = ""
        self.log: list[str] = []
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Serving:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nvpstore.api.cli", *self._arguments],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        threading.Thread(target=self._read_log, args=(self._process.stderr,), daemon=True).start()
        found = re.search(r"http://\S+", self._process.stdout.readline())
        if found is None:
            self._process.kill()
            raise AssertionError(f"the server did not start: {''.join(self.log)}")
        self.url = found[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"the server did not stop: {''.join(self.log[-20:])}") from None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def nvp(self, *arguments: str) -> str:
        """What a command prints that is run beside the server, on its archive and state."""
        done = subprocess.run(
            [sys.executable, "-m", "nvpstore.api.cli", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _read_log(self, stream: TextIO) -> None:
        for line in stream:
            self.log.append(line)  # as they come
