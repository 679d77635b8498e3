"""The audit log: who did what to which video, task or key. One JSON object a line."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from nvpstore.errors import StoreError

FILE_BYTES = 32 << 20
KEPT_FILES = 9  # besides the one that is written


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """One thing that somebody did, or tried to.

    `key` is the key's id (None: nobody was let in), `action` a method and route such as
    `DELETE /v1/videos/{video_id}`, `target` what the route's fields named, `status` the answer's.
    """

    action: str
    target: dict[str, str]
    status: int
    key: str | None
    name: str | None
    address: str | None
    request: str | None


class AuditLog:
    """Appends to `path`; files that are full become `path.1` (the newest) to `path.9`.

    Any number of processes may write. A line that `write` returned from is on the disk.
    """

    def __init__(
        self,
        path: Path,
        *,
        file_bytes: int = FILE_BYTES,
        kept_files: int = KEPT_FILES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path, self._clock = path, clock
        self._file_bytes, self._kept_files = file_bytes, kept_files
        self._lock = FileLock(path.with_name(path.name + ".lock"))

    def write(self, deed: Deed) -> None:
        """Raises StoreError where it cannot be written."""
        at = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"at": at, **asdict(deed)}, ensure_ascii=True) + "\n"
        try:
            with self._lock:
                self._rotate(len(line))
                self._append(line.encode("ascii"))
        except OSError as cause:
            raise StoreError(f"cannot write to the audit log {self.path}: {cause.strerror}") from cause

    def _append(self, line: bytes) -> None:
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            # A line that a crash left unfinished must not swallow this one.
            whole = line if self._ends_a_line() else b"\n" + line
            if os.write(file, whole) != len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file)
        finally:
            os.close(file)

    def _ends_a_line(self) -> bool:
        with self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return True
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def _rotate(self, more: int) -> None:
        if not self.path.exists() or self.path.stat().st_size + more <= self._file_bytes:
            return
        for number in range(self._kept_files, 0, -1):
            older = self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path
