"""The originals of stored videos: referenced where they were ingested from, or copied into the archive."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from nvpstore.errors import SourceError
from nvpstore.storage.contract import ObjectStore


def source_path(store: ObjectStore, source_uri: str | None) -> Path | None:
    """Where the original can be read as a file: what was referenced, or the archive's own local copy."""
    if source_uri is None:
        return None
    if source_uri.startswith("file://"):
        return Path(unquote(urlsplit(source_uri).path))
    local = store.local_path(source_uri)
    return None if local is None else Path(local)


def local_original(store: ObjectStore, source_uri: str | None) -> Path | None:
    """The same, where the file is still there."""
    path = source_path(store, source_uri)
    return path if path is not None and path.is_file() else None


def read_original(store: ObjectStore, source_uri: str) -> bytes:
    """The original's bytes, unchecked. Raises SourceError where a referenced file is gone."""
    path = local_original(store, source_uri)
    if path is not None:
        return path.read_bytes()
    if source_uri.startswith("file://"):
        raise SourceError(f"the original is no longer at {source_uri}")
    return store.get(source_uri)
