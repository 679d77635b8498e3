"""The whole log, read from the store alone, with everything that is wrong with it instead of the first."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from nvpstore.catalog.fold import HeldObject, OwnerState, fold, owner_of
from nvpstore.errors import ArchiveError, IntegrityError, ObjectMissing, StoreError, UsageError
from nvpstore.storage.documents import canonical_digest
from nvpstore.storage.entries import LogEntry, decode_entry
from nvpstore.storage.keys import LOG_PREFIX, log_key, parse_key
from nvpstore.storage.objects import ObjectStore
from nvpstore.upkeep.report import Damage

READERS = 16  # entries are small: what counts is the store's latency
_AHEAD = 256


@dataclass(slots=True)
class WholeLog:
    """What all readable entries fold to. `number` is the newest one, `entries` how many were read."""

    number: int = -1
    entries: int = 0
    owners: dict[str, OwnerState] = field(default_factory=lambda: defaultdict(OwnerState))
    damages: list[Damage] = field(default_factory=list)

    def held(self, owner: str) -> dict[str, HeldObject]:
        """What entries name of a video (or, for "", of none), in force or not, by key."""
        return self.owners[owner].objects if owner in self.owners else {}

    def __contains__(self, key: str) -> bool:
        """Whether an entry names `key`, and none removed it again."""
        try:
            return key in self.held(owner_of(key))
        except ArchiveError:  # no key of ours
            return False


def read_whole_log(store: ObjectStore) -> WholeLog:
    """Every entry that is listed, each checked alone and against the one before it.

    Raises ArchiveError for an entry of a newer format, StoreError where the log cannot be listed.
    """
    log = WholeLog()
    last = max(_listed(store), default=-1)
    previous: LogEntry | None = None
    for number, entry in _entries(store, last, log.damages):
        _apply(log, number, entry, previous)
        previous = entry
    log.number = last
    return log


def catch_up(log: WholeLog, store: ObjectStore) -> None:
    """Fold the entries since into `log`; those that are damaged are left to the next verification."""
    with suppress(IntegrityError, ObjectMissing):
        while True:
            entry = _read(store, log.number + 1)
            fold(log.owners, entry)
            log.number += 1


def _listed(store: ObjectStore) -> Iterator[int]:
    for key in store.list(LOG_PREFIX):
        with suppress(UsageError):
            parsed = parse_key(key)
            if parsed.kind == "log":
                yield parsed.number


def _entries(store: ObjectStore, last: int, damages: list[Damage]) -> Iterator[tuple[int, LogEntry | None]]:
    def read(number: int) -> LogEntry | Damage:
        try:
            return _read(store, number)
        except ObjectMissing:
            return Damage(object=log_key(number), found=f"it is missing, though {log_key(last)} exists")
        except StoreError as error:
            return Damage(object=log_key(number), found=str(error).removeprefix(f"{log_key(number)} "))

    with ThreadPoolExecutor(READERS) as readers:
        for first in range(0, last + 1, _AHEAD):
            numbers = range(first, min(first + _AHEAD, last + 1))
            for number, found in zip(numbers, readers.map(read, numbers), strict=True):
                if isinstance(found, Damage):
                    damages.append(found)
                yield number, None if isinstance(found, Damage) else found


def _read(store: ObjectStore, number: int) -> LogEntry:
    data = store.get(log_key(number))
    try:
        return decode_entry(data, number)
    except ArchiveError as error:
        # Only an entry that is whole can be of a newer release; damage can look like one.
        if _is_whole(data):
            raise
        raise IntegrityError(f"{log_key(number)} differs from its checksum") from error


def _is_whole(data: bytes) -> bool:
    document = json.loads(data)
    checksum = document.pop("checksum", None)
    with suppress(ValueError):  # no canonical JSON
        return bool(canonical_digest(document) == checksum)
    return False


def _apply(log: WholeLog, number: int, entry: LogEntry | None, previous: LogEntry | None) -> None:
    if entry is None:
        return
    log.entries += 1
    # After an entry that cannot be read nothing is known of the link to it.
    linked = number == 0 or previous is not None
    if linked and entry.previous_digest != (previous.checksum if previous else ""):
        found = f"it does not follow {log_key(number - 1)}: one of them was exchanged"
        log.damages.append(Damage(object=log_key(number), found=found))
    try:
        fold(log.owners, entry)
    except IntegrityError as error:
        log.damages.append(Damage(object=log_key(number), found=str(error)))
