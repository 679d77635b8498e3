"""The originals of stored videos: referenced where they were ingested from, or copied into the archive."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from nvpstore.errors import IntegrityError, ObjectMissing, SourceError, StoreError
from nvpstore.storage.contract import ObjectStore, opened_source, pieces
from nvpstore.storage.keys import new_attempt
from nvpstore.storage.objects import open_store
from nvpstore.storage.range_cache import RangeCache
from nvpstore.types import StoredObject


class OriginalOf(Protocol):
    """A stored video, as the catalog describes it."""

    @property
    def video_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def source_bytes(self) -> int: ...
    @property
    def source_uri(self) -> str | None: ...


def source_path(store: ObjectStore, source_uri: str | None) -> Path | None:
    """Where the original can be read as a file: what was referenced, or the archive's own local copy."""
    if source_uri is None:
        return None
    if source_uri.startswith("file://"):
        return Path(unquote(urlsplit(source_uri).path))
    if "://" in source_uri:
        return None
    local = store.local_path(source_uri)
    return None if local is None else Path(local)


def local_original(store: ObjectStore, video: OriginalOf) -> Path | None:
    """The same, where the file is still there and of the size that was ingested."""
    path = source_path(store, video.source_uri)
    if path is None or not path.is_file() or path.stat().st_size != video.source_bytes:
        return None
    return path


def original_file(store: ObjectStore, video: OriginalOf, *, cache: RangeCache | None, as_of: int) -> Path:
    """The original as a local file; one that is far away is streamed once into `cache`, and verified.

    `as_of` is the log number that the caller reads at. Raises SourceError where the original is gone or
    another file, StoreError where it cannot be fetched or written.
    """
    path = source_path(store, video.source_uri)
    if path is not None:
        return _checked(path, video)
    origin, key = _origin(store, video)
    if cache is None:
        raise SourceError(f"{_named(video)} is at {video.source_uri}: no cache folder to fetch it to")
    found = cache.find(video.video_id, video.sha256, size_bytes=video.source_bytes)
    if found is not None:
        return found
    temporary = cache.temporary(video.video_id)
    try:
        _fetch(origin, key, video, temporary)
        return cache.adopt(temporary, video.video_id, video.sha256, as_of=as_of)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def held_original(store: ObjectStore, video: OriginalOf, *, cache: RangeCache, as_of: int) -> Iterator[Path]:
    """As `original_file`, for as long as it takes: the file stays in `cache` until the end."""
    path = original_file(store, video, cache=cache, as_of=as_of)
    if not path.is_relative_to(cache.folder):
        yield path
        return
    with cache.in_use(path):
        yield path


def write_original(store: ObjectStore, video: OriginalOf, out: Path) -> None:
    """Write the original's own bytes to `out`, where nothing may be, once they are verified.

    Raises SourceError where the original is gone or another file, StoreError where `out` cannot be written.
    """
    temporary = out.with_name(f".{out.name}.{new_attempt()}")
    try:
        # Before much is fetched for nothing.
        if out.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if not out.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        path = source_path(store, video.source_uri)
        if path is None:
            _fetch(*_origin(store, video), video, temporary)
        else:
            _copy(_checked(path, video), video, temporary)
        out.open("xb").close()  # refused if somebody else has made it meanwhile
        temporary.replace(out)
    except OSError as cause:
        raise StoreError(f"cannot write {out}: {cause.strerror}") from cause
    finally:
        temporary.unlink(missing_ok=True)


def _origin(store: ObjectStore, video: OriginalOf) -> tuple[ObjectStore, str]:
    """The store and key of an original that is no local file."""
    if video.source_uri is None:
        raise SourceError(f"{_named(video)} is not at hand: it was not kept")
    if "://" not in video.source_uri:
        return store, video.source_uri
    folder, _, name = video.source_uri.rpartition("/")
    return open_store(folder), name


def _fetch(origin: ObjectStore, key: str, video: OriginalOf, path: Path) -> None:
    wanted = StoredObject(key=key, size_bytes=video.source_bytes, sha256=video.sha256)
    try:
        if (found := origin.size(key)) != video.source_bytes:
            raise _differs(str(video.source_uri), found, video)
        origin.get_file(wanted, path)
    except ObjectMissing as cause:
        raise SourceError(f"{_named(video)} is not at hand: looked at {video.source_uri}") from cause
    except IntegrityError as cause:
        raise SourceError(f"{video.source_uri} is not the file that was ingested: {cause}") from cause


def _copy(source: Path, video: OriginalOf, path: Path) -> None:
    found = hashlib.sha256()
    with opened_source(source) as file, path.open("xb") as target:
        for piece in pieces(file):
            found.update(piece)
            target.write(piece)
    if found.hexdigest() != video.sha256:
        raise SourceError(f"{source} is not the file that was ingested: its SHA-256 differs")


def _checked(path: Path, video: OriginalOf) -> Path:
    if not path.is_file():
        raise SourceError(f"{_named(video)} is not at hand: looked at {video.source_uri}")
    if (found := path.stat().st_size) != video.source_bytes:
        raise _differs(str(path), found, video)
    return path


def _differs(where: str, found: int, video: OriginalOf) -> SourceError:
    return SourceError(
        f"{where} is not the file that was ingested: {found} bytes, expected {video.source_bytes}"
    )


def _named(video: OriginalOf) -> str:
    return f"the original of {video.name} ({video.video_id})"
