"""A store that seems to be far away and notes every ranged read."""

from __future__ import annotations

import threading
from collections.abc import Callable

from nvpstore.errors import StoreError
from nvpstore.storage.objects import ObjectStore
from nvpstore.types import StoredObject


class CountingStore(ObjectStore):
    """Reads of `inner`, without its local paths. `gate` holds every ranged read back until it is set."""

    def __init__(self, inner: ObjectStore, *, local: bool = False) -> None:
        self.inner = inner
        self.local = local
        self.ranges: list[tuple[str, int, int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.damage: Callable[[bytes], bytes] = bytes
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    @property
    def root(self) -> str:
        return self.inner.root

    @property
    def total_bytes(self) -> int:
        return sum(size for _, _, size in self.ranges)

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        with self._lock:
            self.ranges.append((key, offset, size_bytes))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            assert self.gate.wait(10)
            return self.damage(self.inner.get_range(key, offset, size_bytes))
        finally:
            with self._lock:
                self.at_once -= 1

    def put(self, key: str, data: bytes) -> StoredObject:
        raise StoreError(f"a reader wrote {key}")

    def get(self, key: str) -> bytes:
        raise StoreError(f"a ranged reader read the whole of {key}")

    def size(self, key: str) -> int:
        return self.inner.size(key)

    def list(self, prefix: str = "") -> list[str]:
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        raise StoreError(f"a reader deleted {key}")

    def local_path(self, key: str) -> str | None:
        return self.inner.local_path(key) if self.local else None
