"""What every object store offers: immutable objects under keys, put only where nothing is."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod

from nvpstore.errors import IntegrityError
from nvpstore.types import StoredObject

# Files that a writer has not linked into place yet start with this; they are no objects.
TEMPORARY_PREFIX = ".tmp-"


class ObjectStore(ABC):
    """Objects of one archive. Keys are relative to `root`, with `/` between parts.

    All methods raise StoreError, in one line without credentials, where the storage refuses or fails.
    A store can be shared by threads.
    """

    @property
    @abstractmethod
    def root(self) -> str:
        """The root as it may be shown to anyone: without credentials."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> StoredObject:
        """Write a new object, durably. Raises ObjectExists if `key` is taken, then nothing changes."""

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
    def exists(self, key: str) -> bool: ...

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """All keys that start with `prefix`, sorted; asked of the storage each time."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; no error if it is gone already."""

    def local_path(self, key: str) -> str | None:
        """The object's path where it is a plain local file, else None."""
        return None

    def get_verified(self, obj: StoredObject) -> bytes:
        """The whole object, equal to what was committed. Raises ObjectMissing, IntegrityError."""
        data = self.get(obj.key)
        if len(data) != obj.size_bytes:
            raise IntegrityError(
                f"{obj.key} in {self.root} has {len(data)} bytes; {obj.size_bytes} were committed"
            )
        digest = hashlib.sha256(data).hexdigest()
        if digest != obj.sha256:
            raise IntegrityError(
                f"{obj.key} in {self.root} has SHA-256 {digest[:12]}…; {obj.sha256[:12]}… was committed"
            )
        return data


def describe(key: str, data: bytes) -> StoredObject:
    """The object that `data` becomes under `key`, for a log entry to name."""
    return StoredObject(key=key, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def check_length(data: bytes, *, key: str, root: str, offset: int, size_bytes: int) -> bytes:
    """Return `data` unchanged if a ranged read gave all that was asked for. Raises IntegrityError."""
    if len(data) != size_bytes:
        raise IntegrityError(
            f"{key} in {root} ends early: {size_bytes} bytes asked for at offset {offset}, {len(data)} found"
        )
    return data
