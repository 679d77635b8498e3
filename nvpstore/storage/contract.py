"""What every object store offers: immutable objects under keys, put only where nothing is."""

from __future__ import annotations

import contextlib
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from nvpstore.errors import IntegrityError, ObjectExists, ObjectMissing, StoreError
from nvpstore.storage.keys import new_attempt
from nvpstore.types import StoredObject

# Files that a writer has not linked into place yet start with this; they are no objects.
TEMPORARY_PREFIX = ".tmp-"

# Files pass through memory in pieces of this size.
PIECE_BYTES = 8 * 2**20


class ObjectStore(ABC):
    """Objects of one archive. Keys are relative to `root`, with `/` between parts.

    All methods raise StoreError, in one line without credentials, where the storage refuses or fails.
    Failures that pass (broken connections, throttling, cut answers) are tried again, up to a deadline of the
    store's. A store can be shared by threads.
    """

    @property
    @abstractmethod
    def root(self) -> str:
        """The root as it may be shown to anyone: without credentials."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> StoredObject:
        """Write a new object, durably, all or nothing.

        Where `key` holds equal bytes already, that is success: a put whose answer was lost is repeated and
        meets itself. Where it holds others, ObjectExists is raised and nothing changes.
        """

    def put_file(self, key: str, path: Path) -> StoredObject:
        """`put` of a file's bytes; returns the digest of what was written. Large ones never fill the memory.

        Raises StoreError too if the file cannot be read.
        """
        with opened_source(path) as file:
            return self.put(key, file.read())

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The whole object. Raises ObjectMissing."""

    @abstractmethod
    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        """Exactly `size_bytes` from `offset`. Raises ObjectMissing, or IntegrityError if there are fewer."""

    @abstractmethod
    def size(self, key: str) -> int:
        """The object's size in bytes. Raises ObjectMissing."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """All keys that start with `prefix`, sorted; asked of the storage each time, which filters."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; no error if it is gone already."""

    def delete_all(self, keys: Iterable[str]) -> None:
        """Remove many objects, in as few requests as the storage allows; missing ones are no error."""
        for key in keys:
            self.delete(key)

    def sweep_unfinished(self, prefix: str = "", *, before: datetime) -> int:
        """Remove what writers under `prefix` began before `before` and never finished; returns how many.

        `before` has a time zone. No object is touched, and a put that is still under way beyond `before`
        fails or begins again, but never leaves half an object.
        """
        return 0

    def local_path(self, key: str) -> str | None:
        """The object's path where it is a plain local file, else None."""
        return None

    def exists(self, key: str) -> bool:
        """Whether there is such an object now."""
        try:
            self.size(key)
        except ObjectMissing:
            return False
        return True

    def get_verified(self, obj: StoredObject) -> bytes:
        """The whole object, equal to what was committed. Raises ObjectMissing, IntegrityError."""
        data = self.get(obj.key)
        _check_committed(obj, len(data), hashlib.sha256(data).hexdigest(), root=self.root)
        return data

    def get_file(self, obj: StoredObject, path: Path) -> None:
        """Write the object to `path`, replacing what is there, once its digest is found to be right.

        It passes through a temporary file beside `path`, in pieces. Raises ObjectMissing, IntegrityError, or
        StoreError if the file cannot be written; then nothing changes.
        """
        temporary = path.with_name(TEMPORARY_PREFIX + new_attempt())
        try:
            with temporary.open("xb") as file:
                found = hashlib.sha256()
                for offset in range(0, obj.size_bytes, PIECE_BYTES):
                    size_bytes = min(PIECE_BYTES, obj.size_bytes - offset)
                    piece = self.get_range(obj.key, offset, size_bytes)
                    found.update(piece)
                    file.write(piece)
                _check_committed(obj, obj.size_bytes or self.size(obj.key), found.hexdigest(), root=self.root)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror or type(error).__name__}") from error
        finally:
            temporary.unlink(missing_ok=True)


def describe(key: str, data: bytes) -> StoredObject:
    """The object that `data` becomes under `key`, for a log entry to name."""
    return StoredObject(key=key, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def taken(key: str, *, root: str) -> ObjectExists:
    """The error of a put that found other bytes under its key."""
    return ObjectExists(f"{key} exists in {root}; objects are never overwritten")


def check_key(key: str) -> str:
    """Return `key` unchanged if it stays below the root. Raises StoreError."""
    if not key or any(part in ("", ".", "..") for part in key.split("/")):
        raise StoreError(f"{key!r} is no key: parts must be non-empty and neither '.' nor '..'")
    return key


def check_length(data: bytes, *, key: str, root: str, offset: int, size_bytes: int) -> bytes:
    """Return `data` unchanged if a ranged read gave all that was asked for. Raises IntegrityError."""
    if len(data) != size_bytes:
        raise IntegrityError(
            f"{key} in {root} ends early: {size_bytes} bytes asked for at offset {offset}, {len(data)} found"
        )
    return data


@contextlib.contextmanager
def opened_source(path: Path) -> Iterator[BinaryIO]:
    """The file that is to become an object. Raises StoreError if it cannot be opened."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or type(error).__name__}") from error
    with file:
        yield file


def pieces(file: BinaryIO, size_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
    """All of the file from its beginning, `size_bytes` at a time; the last piece may be shorter."""
    file.seek(0)
    while piece := file.read(size_bytes):
        yield piece


def _check_committed(obj: StoredObject, size_bytes: int, sha256: str, *, root: str) -> None:
    if size_bytes != obj.size_bytes:
        raise IntegrityError(f"{obj.key} in {root} has {size_bytes} bytes; {obj.size_bytes} were committed")
    if sha256 != obj.sha256:
        raise IntegrityError(
            f"{obj.key} in {root} has SHA-256 {sha256[:12]}…; {obj.sha256[:12]}… was committed"
        )
