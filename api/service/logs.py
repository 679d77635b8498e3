"""Logs as JSON, one object a line, without secrets."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import TextIO

REQUESTS = logging.getLogger("nvpstore.service.requests")

# The id says whose key it is; the secret after it must not reach a disk.
_SECRET = re.compile(r"(nvp_[0-9a-fA-F]{8}_)[0-9a-zA-Z]+")


class JsonLines(logging.Formatter):
    """`at`, `level`, `logger`, `message`, what a record's `fields` hold, and `error` with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            said["error"] = self.formatException(record.exc_info)
        return _SECRET.sub(r"\1…", json.dumps(said, default=str, ensure_ascii=False))


def log_as_json(stream: TextIO | None = None, *, level: int = logging.INFO) -> None:
    """Sends everything that this process logs to `stream` (default: stderr)."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # Others' lines at info are about every request of the object store.
    for name in ("botocore", "aiobotocore", "s3fs", "fsspec", "urllib3", "httpx2", "httpcore2", "asyncio"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
