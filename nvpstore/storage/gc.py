"""Garbage: objects that no log entry names, and those that a newer entry has superseded.

The order makes it safe beside any number of writers, however slow or stopped:
1. Superseded objects and orphans are found in the state of one log number.
2. A gc entry is committed on exactly that number. It names the superseded objects that will go, and a fence:
   attempts that sort below it can never be committed after it (storage.entries.conflict).
3. Only then objects are deleted: the superseded ones, and orphans whose attempt is below the fence.
Killed after 2, what was to be deleted are orphans for the next run. No key is used twice, so that a deletion
that comes late hits nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from nvpstore.errors import CommitDropped, UsageError
from nvpstore.storage import keys
from nvpstore.storage.log import Log, LogDraft
from nvpstore.types import StoredObject

# Where attempts live. Tasks and shared decoders are named by their content and stay.
_PREFIXES = ("videos/", "sources/", "adapters/", "results/", "views/", keys.STABILIZERS_PREFIX)
_TRIES = 50  # commits by others while one gc looks around


class Superseded(Protocol):
    @property
    def stored(self) -> StoredObject: ...


class Held(Protocol):
    """The state of an archive at a log number, as far as gc asks for it."""

    @property
    def number(self) -> int: ...

    @property
    def latest_attempt(self) -> str:
        """No attempt that was committed up to here sorts above it."""

    def held(self, keys: Iterable[str]) -> set[str]:
        """Those of `keys` that the state names, superseded or not."""

    def superseded(self, *, before: datetime) -> Sequence[Superseded]:
        """Objects that an entry of before that time has superseded, and that no gc entry removed yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """What a run deletes: keys of superseded objects and of orphans; and keys that are nobody's."""

    superseded: tuple[StoredObject, ...]
    orphans: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        return [*(obj.key for obj in self.superseded), *self.orphans]


def collect(
    log: Log,
    held: Callable[[], Held],
    *,
    grace: timedelta | None = None,
    dry_run: bool = False,
    now: datetime | None = None,
) -> Garbage:
    """Delete garbage older than `grace` (default: the archive's; more is allowed, less is not).

    `held` gives the newest state each time it is called. With `dry_run` nothing is changed. Raises UsageError
    for a shorter grace, CommitDropped where others commit faster than this can look around.
    """
    least = timedelta(seconds=log.grace_seconds)
    if grace is not None and grace < least:
        raise UsageError(f"a grace of {grace}: this archive's writers rely on at least {least}")
    before = (now or datetime.now(UTC)) - (grace or least)
    for _ in range(_TRIES):
        state = held()
        found = find(log, state, before=before)
        if dry_run:
            return found
        try:
            if found.keys:
                _announce(log, state, found, before)
        except CommitDropped:
            continue  # somebody committed: what was garbage may be named now
        log.store.delete_all(found.keys)
        for prefix in (*_PREFIXES, keys.TASKS_PREFIX, keys.LOG_PREFIX):
            log.store.sweep_unfinished(prefix, before=before)
        return found
    raise CommitDropped(f"gc of {log.store.root}: others committed {_TRIES} times meanwhile; try again later")


def find(log: Log, state: Held, *, before: datetime) -> Garbage:
    """What is garbage in `state` and older than `before`."""
    fence = keys.first_attempt_at(before)
    old, unknown = [], []
    for prefix in _PREFIXES:
        for key in log.store.list(prefix):
            try:
                attempt = keys.parse_key(key).attempt
            except UsageError:  # not ours: never touched
                unknown.append(key)
                continue
            if attempt < fence:
                old.append(key)
    named = state.held(old)
    return Garbage(
        superseded=tuple(found.stored for found in state.superseded(before=before)),
        orphans=tuple(key for key in old if key not in named),
        unknown=tuple(unknown),
    )


def _announce(log: Log, state: Held, found: Garbage, before: datetime) -> None:
    log.append(
        LogDraft(
            kind="gc",
            attempt=keys.new_attempt(later_than=state.latest_attempt),
            subject=log.archive_id,
            removed=tuple(obj.key for obj in found.superseded),
            fence=keys.first_attempt_at(before),
        ),
        after=state.number,
    )
