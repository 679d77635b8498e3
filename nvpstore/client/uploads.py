"""A local file on its way to a server."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from nvpstore.client.jobs import RemoteJob, job_of
from nvpstore.client.transport import Transport
from nvpstore.client.values import Progress
from nvpstore.errors import SourceError

_PIECE_BYTES = 1 << 20


class CountedFile:
    """A file that says how much of it was read. Read in larger pieces than the HTTP library asks for."""

    def __init__(self, file: BinaryIO, on_read: Callable[[int], None]) -> None:
        self._file, self._on_read = file, on_read

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(max(size, _PIECE_BYTES) if size >= 0 else size)
        self._on_read(self._file.tell())
        return piece

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()


def upload(
    transport: Transport,
    path: Path,
    fields: Mapping[str, Any],
    on_progress: Callable[[Progress], None] | None,
) -> RemoteJob:
    """Send a file, and what is to be done with it; returns the server's job.

    A broken connection is tried again, under a key that makes it one job. Raises SourceError where the file
    cannot be read.
    """
    try:
        file = path.open("rb")
    except OSError as cause:
        raise SourceError(f"{path}: {cause.strerror}") from cause
    with file:
        total = os.fstat(file.fileno()).st_size

        def read(done: int) -> None:
            if on_progress is not None:
                on_progress(Progress(phase="upload", done=done, total=total))

        answer = transport.json(
            "POST",
            "videos",
            fields=form_fields(fields),
            files={"file": (path.name, CountedFile(file, read))},
            headers={"Idempotency-Key": uuid.uuid4().hex},
            retry=True,
        )
    return job_of(answer)


def form_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as a form has them: objects as JSON, lists as repeated fields."""
    return {
        name: json.dumps(value) if isinstance(value, Mapping) else _plain(value)
        for name, value in fields.items()
        if value is not None
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
