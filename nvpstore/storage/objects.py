"""Opening an object store by its root: a path, `file://`, or any URI that fsspec knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from nvpstore.errors import UsageError
from nvpstore.storage.contract import ObjectStore
from nvpstore.storage.local import LocalStore
from nvpstore.storage.remote import FsspecStore
from nvpstore.storage.retries import DEADLINE_SECONDS

__all__ = ["ObjectStore", "open_store"]

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def open_store(
    root: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> ObjectStore:
    """The store under `root`. Nothing is created or asked for yet.

    `storage_options` go to the fsspec file system (credentials, an endpoint); local roots need none, and S3
    takes what they leave out from the environment and from AWS's configuration files. A request to a remote
    store is repeated for up to `deadline_seconds` while it fails by what passes.
    Raises UsageError for an empty root and StoreError where no file system knows the scheme.
    """
    if not root.strip():
        raise UsageError("the archive's root is empty: give a path or a URI such as s3://bucket/prefix")
    match = _SCHEME.match(root)
    if not match:
        return LocalStore(Path(root).expanduser())
    if match[1].lower() in ("file", "local"):
        return LocalStore(_path_of(root[match.end() :], root))
    if match[1].lower() in ("s3", "s3a"):
        # A quarter of a second of imports, for those who use S3.
        from nvpstore.storage.s3 import S3Store

        return S3Store(root, storage_options, deadline_seconds=deadline_seconds)
    return FsspecStore(root, storage_options, deadline_seconds=deadline_seconds)


def _path_of(rest: str, root: str) -> Path:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise UsageError(f"{root}: a file URI needs an absolute path, as in file:///folder")
    return Path("/" + unquote(path))
