"""What past steps left in memory, under a budget of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Shelf(IntEnum):
    """Where a value is kept; the lower ones are emptied first."""

    FEATURES = 0
    WEIGHTS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    value: Any
    size_bytes: int
    dropped: Callable[[], None]


class Shelves:
    """Values by key, at most `limit_bytes` of them: features go before weights, the longest unused first.

    Not for several threads at once: its owner holds a lock.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._shelves: dict[Shelf, OrderedDict[Hashable, _Kept]] = {shelf: OrderedDict() for shelf in Shelf}
        self.size_bytes = 0

    def get(self, key: Hashable) -> Any | None:
        """The value, used just now; None where it is not here."""
        for shelf in self._shelves.values():
            if key in shelf:
                shelf.move_to_end(key)
                return shelf[key].value
        return None

    def put(
        self, key: Hashable, value: Any, *, shelf: Shelf, size_bytes: int, dropped: Callable[[], None]
    ) -> None:
        """Keeps `value` for as long as there is room. `dropped` is called once it is not here any more."""
        self._shelves[shelf][key] = _Kept(value=value, size_bytes=size_bytes, dropped=dropped)
        self.size_bytes += size_bytes
        self._make_room()

    def limit(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._make_room()

    def clear(self, *shelves: Shelf) -> None:
        for shelf in shelves:
            while self._shelves[shelf]:
                self._drop_oldest(shelf)

    def _make_room(self) -> None:
        for shelf in Shelf:
            while self.size_bytes > self._limit_bytes and self._shelves[shelf]:
                self._drop_oldest(shelf)

    def _drop_oldest(self, shelf: Shelf) -> None:
        _, kept = self._shelves[shelf].popitem(last=False)
        self.size_bytes -= kept.size_bytes
        kept.dropped()
