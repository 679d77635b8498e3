"""Log entries: what one commit says, its bytes, and which newer entries make a prepared commit pointless."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from nvpstore.errors import ArchiveError, IntegrityError
from nvpstore.storage.documents import (
    FORMAT_VERSION,
    canonical_digest,
    canonical_json,
    check_format,
    parse_document,
)
from nvpstore.storage.keys import RESULTS_PREFIX, log_key, meta_prefix
from nvpstore.types import StoredObject

EntryKind = Literal[
    "init", "video", "routes", "task", "stabilizer", "view", "meta", "results", "erase", "gc"
]  # fmt: skip

_COLLECTED = "it was begun so long ago that its objects were collected as garbage"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogDraft:
    """What a writer wants committed: objects that are already put, under its attempt.

    `subject` is a video id, a task's, stabilizer's or view's name or (for "init" and "gc") the archive's id.
    Nothing that people write about a video stands here: entries outlive an erased video. A "view" without
    objects drops it, a "stabilizer" all versions of it. `replaces`: a "video" that takes the place of one
    that is fitted, whichever that is by now; without it nobody else may have stored it since.
    `removed` are the keys that a "gc" is about to delete, and attempts that sort below its `fence` are dead;
    of a "results" they are answers about its video that are replaced. `grace_seconds` belongs to "init".
    """

    kind: EntryKind
    attempt: str
    subject: str
    objects: tuple[StoredObject, ...] = ()
    replaces: bool = False
    removed: tuple[str, ...] = ()
    fence: str = ""
    grace_seconds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One commit. `time` is UTC in ISO 8601; `checksum` is the SHA-256 of all else in canonical JSON.

    `previous_digest` is the checksum of entry `number` - 1, empty for entry 0. The rest is the draft's.
    """

    number: int
    kind: EntryKind
    attempt: str
    time: str
    subject: str
    objects: tuple[StoredObject, ...]
    removed: tuple[str, ...]
    fence: str
    grace_seconds: int
    previous_digest: str
    checksum: str

    @property
    def committed_at(self) -> datetime:
        return datetime.fromisoformat(self.time)


def new_entry(draft: LogDraft, *, number: int, previous_digest: str) -> LogEntry:
    """The entry that `draft` becomes under `number`, as of now."""
    entry = LogEntry(
        number=number,
        kind=draft.kind,
        attempt=draft.attempt,
        time=datetime.now(UTC).isoformat(timespec="microseconds"),
        subject=draft.subject,
        objects=draft.objects,
        removed=draft.removed,
        fence=draft.fence,
        grace_seconds=draft.grace_seconds,
        previous_digest=previous_digest,
        checksum="",
    )
    fields = {name: getattr(entry, name) for name in LogEntry.__slots__}
    return LogEntry(**(fields | {"checksum": canonical_digest(_body(entry))}))


def encode_entry(entry: LogEntry) -> bytes:
    return canonical_json(_body(entry) | {"checksum": entry.checksum})


def decode_entry(data: bytes, number: int) -> LogEntry:
    """Raises IntegrityError for bytes that differ from their checksum or belong to another number,
    ArchiveError for a format or kind of a newer release."""
    what = log_key(number)
    document = parse_document(data, what=what)
    checksum = document.pop("checksum", None)
    # Before the version, which may be what is damaged: entries of all versions have their checksum so.
    if not _matches(document, checksum):
        raise IntegrityError(f"{what} differs from its checksum")
    version = document.pop("format", None)
    check_format(version, what=what)
    if document["kind"] not in get_args(EntryKind):
        raise ArchiveError(
            f"{what} is of kind {document['kind']!r} (format version {version}); this release of nvpstore "
            f"reads {', '.join(get_args(EntryKind))}: a newer one is needed"
        )
    if document["number"] != number:
        raise IntegrityError(f"{what} holds entry {document['number']}")
    # Fields that a later release of this version adds are covered by the checksum and ignored here.
    try:
        known = {name: document[name] for name in LogEntry.__slots__ if name != "checksum"}
        objects = tuple(StoredObject(**obj) for obj in known.pop("objects"))
        removed = tuple(known.pop("removed"))
    except (KeyError, TypeError) as error:
        raise IntegrityError(f"{what} is malformed: {error!r}") from None
    return LogEntry(**known, objects=objects, removed=removed, checksum=checksum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Why a draft must not be committed. `collected`: its objects are gone, as it was begun too long ago."""

    reason: str
    collected: bool


def conflict(draft: LogDraft, newer: Iterable[LogEntry]) -> Conflict | None:
    """Why `newer` entries, committed since the draft was prepared, forbid it; None if they do not."""
    for entry in newer:
        reason = _conflict(draft, entry)
        if reason:
            return Conflict(reason=f"{reason} (log entry {entry.number})", collected=reason is _COLLECTED)
    return None


def _conflict(draft: LogDraft, entry: LogEntry) -> str | None:
    if draft.kind == "gc":
        return "something was committed meanwhile"  # it may hold what was about to be deleted
    if entry.kind == "gc" and draft.attempt < entry.fence:
        return _COLLECTED
    if entry.kind == "gc" and {obj.key for obj in draft.objects} & set(entry.removed):
        return "gc is deleting an object that it names"
    if draft.kind == "view":
        # It was checked against the names and views of before.
        return "views or tasks were changed meanwhile" if entry.kind in ("view", "task") else None
    if draft.kind not in ("video", "routes", "meta", "results", "erase") or entry.subject != draft.subject:
        return None
    if draft.kind == "erase":
        # Its attempt must sort above all that it is to delete, and by its hold it may be forbidden.
        return None if entry.kind == "erase" else "the video was changed meanwhile"
    if entry.kind == "erase":
        return "the video was erased meanwhile"
    if entry.kind == "video" and draft.kind == "video" and not draft.replaces:
        return "another writer stored the video first"
    if entry.kind == "video" and draft.kind in ("routes", "results"):
        return "the video was fitted anew meanwhile"
    if draft.kind == "routes" and _routed(draft) & _routed(entry):
        return "others stored routes of the task meanwhile"
    if draft.kind == "results":
        return _results_conflict(draft, entry)
    if draft.kind == "meta" and _names_meta(entry):
        return "the video's name, tags or hold were changed meanwhile"
    return None


def _results_conflict(draft: LogDraft, entry: LogEntry) -> str | None:
    if _answered(draft) & _answered(entry):
        return "others stored or dropped such answers meanwhile"  # coverages must stay disjoint
    versions = {folder.split("/")[2] for folder in _answered(draft)}
    return "the task has other routes now" if versions & _routed(entry) else None


def _routed(entry: LogDraft | LogEntry) -> set[str]:
    """The task versions whose routes a "routes" entry stores."""
    return {obj.key.split("/")[3] for obj in entry.objects} if entry.kind == "routes" else set()


def _answered(entry: LogDraft | LogEntry) -> set[str]:
    """The folders of the answers that an entry stores or replaces."""
    keys = (*(obj.key for obj in entry.objects), *entry.removed)
    return {key.rpartition("/")[0] for key in keys if key.startswith(RESULTS_PREFIX)}


def _names_meta(entry: LogEntry) -> bool:
    return any(obj.key.startswith(meta_prefix(entry.subject)) for obj in entry.objects)


def _body(entry: LogEntry) -> dict[str, Any]:
    fields = {name: getattr(entry, name) for name in LogEntry.__slots__ if name != "checksum"}
    objects = [{"key": o.key, "size_bytes": o.size_bytes, "sha256": o.sha256} for o in entry.objects]
    return {"format": FORMAT_VERSION, **fields, "objects": objects}


def _matches(body: dict[str, Any], checksum: object) -> bool:
    try:
        return canonical_digest(body) == checksum
    except ValueError:  # what JSON readers accept but no writer of ours could have written, such as NaN
        return False
