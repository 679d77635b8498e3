"""The commit log: the only thing that makes objects count. State is the fold of its entries.

A writer prepares objects, then takes the next number by put-if-absent. Readers find new entries by asking
for the next number until it is missing: one request when there is nothing new, however long the log is,
whereas listing reads all names each time. Each entry carries its predecessor's checksum, so that an
exchanged, removed or rewritten entry is noticed at the one after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from nvpstore.errors import (
    ArchiveError,
    CommitDropped,
    IntegrityError,
    ObjectExists,
    ObjectMissing,
    StoreError,
)
from nvpstore.storage.documents import FORMAT_VERSION, canonical_digest, canonical_json, load_document
from nvpstore.storage.keys import LOG_PREFIX, log_key, new_attempt, parse_key
from nvpstore.storage.objects import ObjectStore
from nvpstore.types import StoredObject

EntryKind = Literal["init", "video", "routes", "task", "meta"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogDraft:
    """What a writer wants committed: objects that are already put, under its attempt.

    `subject` is a video id, a task's name or (for "init") the archive's id. Nothing that people write
    about a video stands here: entries outlive an erased video.
    """

    kind: EntryKind
    attempt: str
    subject: str
    objects: tuple[StoredObject, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One commit. `time` is UTC in ISO 8601; `checksum` is the SHA-256 of all else in canonical JSON.

    `previous_digest` is the checksum of entry `number` - 1, empty for entry 0.
    """

    number: int
    kind: EntryKind
    attempt: str
    time: str
    subject: str
    objects: tuple[StoredObject, ...]
    previous_digest: str
    checksum: str


StillValid = Callable[[Sequence[LogEntry]], bool]


class Log:
    """The log of one archive. Can be shared by threads: all they share is where a look begins."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._newest: LogEntry | None = None  # the newest entry seen, where the next look begins

    @property
    def store(self) -> ObjectStore:
        return self._store

    def read(self, number: int) -> LogEntry:
        """Entry `number`. Raises ObjectMissing, IntegrityError, or ArchiveError for a newer format."""
        entry = _decode(self._store.get(log_key(number)), number)
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

    def append(
        self, draft: LogDraft, *, after: int | None = None, still_valid: StillValid | None = None
    ) -> LogEntry:
        """Commit `draft` under the next free number.

        `after` is the number that the draft was prepared on (default: the head now). Entries that others
        committed since then are shown to `still_valid`; if it returns False, CommitDropped is raised and
        nothing is committed. Raises StoreError if an object is missing or has another size.
        """
        self._check_objects(draft)
        previous = self._at(self.head() if after is None else after)
        while True:
            entry = _entry(draft, number=previous.number + 1, previous_digest=previous.checksum)
            try:
                self._store.put(log_key(entry.number), _encode(entry))
            except ObjectExists:
                newer = list(self.entries(after=previous.number))
                # A put whose answer was lost is repeated by the client, and then meets itself.
                if newer and newer[0] == entry:
                    return entry
                if not newer:
                    raise
                if still_valid is not None and not still_valid(newer):
                    raise CommitDropped(
                        f"{draft.kind} of {draft.subject}: entries up to {newer[-1].number} of "
                        f"{self._store.root} made it pointless; nothing was committed"
                    ) from None
                previous = newer[-1]
            else:
                self._newest = entry
                return entry

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

    def _at(self, number: int) -> LogEntry:
        if self._newest is not None and self._newest.number == number:
            return self._newest
        if number < 0:
            raise not_an_archive(self._store)
        return self.read(number)

    def _check_objects(self, draft: LogDraft) -> None:
        for obj in draft.objects:
            found = self._store.size(obj.key)
            if found != obj.size_bytes:
                raise StoreError(
                    f"{obj.key} in {self._store.root} has {found} bytes, "
                    f"not the {obj.size_bytes} to be committed"
                )


def create_archive(store: ObjectStore) -> LogEntry:
    """Make an empty archive with a fresh id, the subject of its entry 0.

    Raises ArchiveError if there is one already, also one that another process makes at the same time.
    """
    attempt = new_attempt()
    draft = LogDraft(kind="init", attempt=attempt, subject=attempt)
    entry = _entry(draft, number=0, previous_digest="")
    try:
        store.put(log_key(0), _encode(entry))
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


def _entry(draft: LogDraft, *, number: int, previous_digest: str) -> LogEntry:
    entry = LogEntry(
        number=number,
        kind=draft.kind,
        attempt=draft.attempt,
        time=datetime.now(UTC).isoformat(timespec="microseconds"),
        subject=draft.subject,
        objects=draft.objects,
        previous_digest=previous_digest,
        checksum="",
    )
    return _with_checksum(entry)


def _with_checksum(entry: LogEntry) -> LogEntry:
    fields = {name: getattr(entry, name) for name in LogEntry.__slots__}
    return LogEntry(**(fields | {"checksum": canonical_digest(_body(entry))}))


def _body(entry: LogEntry) -> dict[str, Any]:
    body = {"format": FORMAT_VERSION, **asdict(entry)}
    del body["checksum"]
    return body


def _encode(entry: LogEntry) -> bytes:
    return canonical_json(_body(entry) | {"checksum": entry.checksum})


def _decode(data: bytes, number: int) -> LogEntry:
    what = log_key(number)
    document = load_document(data, what=what)
    version = document.pop("format")
    checksum = document.pop("checksum", None)
    if not _matches({"format": version, **document}, checksum):
        raise IntegrityError(f"{what} differs from its checksum")
    if document["kind"] not in get_args(EntryKind):
        raise ArchiveError(
            f"{what} is of kind {document['kind']!r} (format version {version}); this release of nvpstore "
            f"reads {', '.join(get_args(EntryKind))}: a newer one is needed"
        )
    if document["number"] != number:
        raise IntegrityError(f"{what} holds entry {document['number']}")
    objects = tuple(StoredObject(**obj) for obj in document.pop("objects"))
    return LogEntry(**document, objects=objects, checksum=checksum)


def _matches(body: dict[str, Any], checksum: object) -> bool:
    try:
        return canonical_digest(body) == checksum
    except ValueError:  # what JSON readers accept but no writer of ours could have written, such as NaN
        return False
