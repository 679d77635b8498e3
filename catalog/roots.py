"""Which archive was at a root when it was last opened here: saves a request, and is checked before use."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from nvpstore.errors import UsageError
from nvpstore.storage.keys import check_attempt, new_attempt


def remembered(cache: Path, root: str) -> str | None:
    """The archive's id as of the last time; None if unknown. The root may hold another archive by now."""
    try:
        return check_attempt(json.loads(_path(cache, root).read_bytes())["archive_id"])
    except (OSError, ValueError, KeyError, TypeError, UsageError):
        return None


def remember(cache: Path, root: str, archive_id: str) -> None:
    """Best effort: without it, opening takes a request more."""
    path = _path(cache, root)
    temporary = path.with_name(f"{path.name}.{new_attempt()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"root": root, "archive_id": archive_id}))
        os.replace(temporary, path)


def _path(cache: Path, root: str) -> Path:
    return cache / "roots" / f"{hashlib.sha256(root.encode()).hexdigest()}.json"
