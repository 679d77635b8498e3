"""The commit log: the only thing that makes objects count. State is the fold of its entries.

A writer prepares objects, then takes the next number by put-if-absent. Readers find new entries by asking
for the next number until it is missing: one request when there is nothing new, however long the log is,
whereas listing reads all names each time. Each entry carries its predecessor's checksum, so that an
exchanged, removed or rewritten entry is noticed at the one after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from nvpstore.errors import (
    ArchiveError,
    AttemptTooOld,
    CommitDropped,
    IntegrityError,
    ObjectExists,
    ObjectMissing,
    StoreError,
    UsageError,
)
from nvpstore.storage.entries import (
    Conflict,
    LogDraft,
    LogEntry,
    conflict,
    decode_entry,
    encode_entry,
    new_entry,
)
from nvpstore.storage.keys import LOG_PREFIX, attempt_time, check_attempt, log_key, new_attempt, parse_key
from nvpstore.storage.objects import ObjectStore

__all__ = ["GRACE_SECONDS", "Log", "LogDraft", "LogEntry", "create_archive", "not_an_archive", "open_log"]

GRACE_SECONDS = 24 * 3600


class Log:
    """The log of one archive. Can be shared by threads: all they share is where a look begins."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._grace_seconds: int | None = None
        self._newest: LogEntry | None = None  # the newest entry seen, where the next look begins

    @property
    def store(self) -> ObjectStore:
        return self._store

    @property
    def grace_seconds(self) -> int:
        """How long garbage is kept, and twice what an attempt may take; set when the archive is made."""
        if self._grace_seconds is None:
            self._grace_seconds = self._first().grace_seconds
        return self._grace_seconds

    @property
    def archive_id(self) -> str:
        """The archive's id. Raises ArchiveError if there is no archive."""
        return check_attempt(self._first().subject)

    def read(self, number: int) -> LogEntry:
        """Entry `number`. Raises ObjectMissing, IntegrityError, or ArchiveError for a newer format."""
        entry = decode_entry(self._store.get(log_key(number)), number)
        if self._newest is None or entry.number > self._newest.number:
            self._newest = entry
        return entry

    def entries(self, after: int = -1) -> Iterator[LogEntry]:
        """All entries with numbers above `after`, in order, each verified against the one before it.

        Raises IntegrityError naming the entry that differs, ArchiveError for a newer format.
        """
        previous = self._at(after) if after >= 0 else None
        number = after + 1
        while True:
            try:
                entry = self.read(number)
            except ObjectMissing:
                return
            expected = previous.checksum if previous else ""
            if entry.previous_digest != expected:
                raise IntegrityError(
                    f"{log_key(number)} in {self._store.root} follows an entry with checksum "
                    f"{entry.previous_digest[:12] or 'none'}; the one before it has {expected[:12] or 'none'}"
                )
            yield entry
            previous, number = entry, number + 1

    def head(self) -> int:
        """The newest entry's number, -1 for an empty log. Takes about 2·log2(new entries) requests."""
        low = self._newest.number if self._newest else -1
        step = 1
        while self._store.exists(log_key(low + step)):
            low, step = low + step, step * 2
        high = low + step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._store.exists(log_key(middle)) else (low, middle)
        return low

    def append(self, draft: LogDraft, *, after: int | None = None) -> LogEntry:
        """Commit `draft` under the next free number.

        `after` is the number that the draft was prepared on (default: the head now). Raises CommitDropped,
        with nothing committed, if entries that others committed since then make it pointless, or if it was
        begun longer ago than half of the archive's grace. Raises StoreError if an object is missing or has
        another size.
        """
        self._check_age(draft)
        self._check_objects(draft, after)
        previous = self._at(self.head() if after is None else after)
        while True:
            entry = new_entry(draft, number=previous.number + 1, previous_digest=previous.checksum)
            try:
                self._store.put(log_key(entry.number), encode_entry(entry))
            except ObjectExists:
                newer = list(self.entries(after=previous.number))
                if not newer:
                    raise
                if found := conflict(draft, newer):
                    raise self._dropped(draft, found) from None
                previous = newer[-1]
            else:
                self._newest = entry
                return entry

    def _check_age(self, draft: LogDraft) -> None:
        age = (datetime.now(UTC) - attempt_time(draft.attempt)).total_seconds()
        if age > self.grace_seconds / 2:
            raise self._too_old(
                draft,
                f"it was begun {age:.0f} s ago; at most half of the archive's grace of "
                f"{self.grace_seconds} s is allowed: run it again",
            )

    def _dropped(self, draft: LogDraft, found: Conflict) -> CommitDropped:
        if found.collected:
            return self._too_old(draft, found.reason)
        return CommitDropped(self._said(draft, found.reason))

    def _too_old(self, draft: LogDraft, reason: str) -> AttemptTooOld:
        return AttemptTooOld(self._said(draft, reason))

    def _said(self, draft: LogDraft, reason: str) -> str:
        return f"{draft.kind} of {draft.subject} in {self._store.root}: nothing was committed: {reason}"

    def check_complete(self) -> None:
        """Raises IntegrityError if an entry is missing below another, which readers would stop at."""
        keys = [parse_key(key) for key in self._store.list(LOG_PREFIX)]
        numbers = sorted(key.number for key in keys if key.kind == "log")
        missing = sorted(set(range(len(numbers))) - set(numbers))
        if missing:
            raise IntegrityError(
                f"{log_key(missing[0])} is missing in {self._store.root}, "
                f"though {log_key(numbers[-1])} exists"
            )

    def _first(self) -> LogEntry:
        try:
            return self.read(0)
        except ObjectMissing:
            raise not_an_archive(self._store) from None

    def _at(self, number: int) -> LogEntry:
        if self._newest is not None and self._newest.number == number:
            return self._newest
        if number < 0:
            raise not_an_archive(self._store)
        return self.read(number)

    def _check_objects(self, draft: LogDraft, after: int | None) -> None:
        try:
            for obj in draft.objects:
                found = self._store.size(obj.key)
                if found != obj.size_bytes:
                    raise StoreError(
                        f"{obj.key} in {self._store.root} has {found} bytes, "
                        f"not the {obj.size_bytes} to be committed"
                    )
        except ObjectMissing:
            # An erasure or gc takes them first; then that is the reason, not what is missing.
            newer = [] if after is None else self.entries(after=after)
            if conflicting := conflict(draft, newer):
                raise self._dropped(draft, conflicting) from None
            raise


def create_archive(store: ObjectStore, *, grace_seconds: int = GRACE_SECONDS) -> LogEntry:
    """Make an empty archive with a fresh id, the subject of its entry 0.

    `grace_seconds` (≥ 1): how long `gc` leaves alone what nobody names any more. Raises ArchiveError if there
    is one already, also one that another process makes at the same time.
    """
    attempt = new_attempt()
    if grace_seconds < 1:
        raise UsageError(f"a grace of {grace_seconds} s: at least 1 is needed")
    draft = LogDraft(kind="init", attempt=attempt, subject=attempt, grace_seconds=grace_seconds)
    entry = new_entry(draft, number=0, previous_digest="")
    try:
        store.put(log_key(0), encode_entry(entry))
    except ObjectExists:
        raise ArchiveError(f"{store.root} exists: it is an archive already") from None
    return entry


def open_log(store: ObjectStore) -> Log:
    """The log of an existing archive. Raises ArchiveError if there is none, or of a newer format."""
    log = Log(store)
    try:
        first = log.read(0)
    except ObjectMissing:
        raise not_an_archive(store) from None
    if first.kind != "init":
        raise IntegrityError(f"{log_key(0)} in {store.root} is of kind {first.kind!r}, expected 'init'")
    return log


def not_an_archive(store: ObjectStore) -> ArchiveError:
    return ArchiveError(f"{store.root} is not an archive: run `nvp init`")
