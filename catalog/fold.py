"""The fold of the log: which objects are stored on purpose, and which of them are in force.

- A video's newer entry replaces everything of that video but what people said about it; what it names itself
  is in force, also if it was there before.
- A routes object replaces the one of the same video and task version, and the answers that followed from it;
  a meta object replaces the video's older one. A results entry says itself which answers it replaces.
- A view entry replaces the view that it is about; without an object the view is dropped. A stabilizer entry
  replaces the one of the same name and version; without an object all of that name are dropped.
- Erasing a video leaves of it nothing but its id. Collecting garbage removes what was replaced.
- A replaced object stays listed, with the time of the entry that replaced it, until one of these.

Nothing here depends on how entries are batched, so that an index grown over months equals a rebuilt one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

from nvpstore.errors import ArchiveError, IntegrityError, UsageError
from nvpstore.storage.entries import LogEntry
from nvpstore.storage.keys import ParsedKey, log_key, parse_key
from nvpstore.types import StoredObject

ARCHIVE = ""  # the owner of what belongs to no video


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldObject:
    """An object that the log names. `log_number` is the newest entry that does so.

    `replaced_at` (UTC) is when another object took its place, None while it is in force.
    """

    stored: StoredObject
    log_number: int
    replaced_at: datetime | None = None


@dataclass(slots=True)
class OwnerState:
    """All that the log says of one owner. `erased` is the newest entry that erased it, None without one."""

    objects: dict[str, HeldObject] = field(default_factory=dict)
    erased: int | None = None

    def in_force(self) -> dict[str, HeldObject]:
        return {key: held for key, held in self.objects.items() if held.replaced_at is None}


def owner_of(key: str) -> str:
    return _parsed(key).video_id or ARCHIVE


def owners_of(entry: LogEntry) -> set[str]:
    """Whose state `entry` may change."""
    owners = {owner_of(obj.key) for obj in entry.objects} | {owner_of(key) for key in entry.removed}
    owners |= {entry.subject} if entry.kind in ("video", "erase") else set()
    return owners | ({ARCHIVE} if entry.kind in ("view", "stabilizer") else set())


def fold(owners: Mapping[str, OwnerState], entry: LogEntry) -> None:
    """Change `owners`, which holds all `owners_of(entry)`, as `entry` says. Raises IntegrityError."""
    if entry.kind == "erase":
        owners[entry.subject].objects.clear()
        owners[entry.subject].erased = entry.number
    if entry.kind == "results":
        _check_results(entry)
        removed = frozenset(entry.removed)
        _replace(owners[entry.subject], entry, lambda key, _: key in removed)
    for key in entry.removed if entry.kind == "gc" else ():
        owners[owner_of(key)].objects.pop(key, None)
    if entry.kind == "video":
        _check_manifest(entry)
        _replace(owners[entry.subject], entry, lambda _, older: older.kind != "meta")
    if entry.kind == "view":
        _check_view(entry)
        place = ("view", entry.subject)
        _replace(owners[ARCHIVE], entry, lambda _, older: (older.kind, older.name) == place)
    if entry.kind == "stabilizer":
        _check_stabilizer(entry)
        versions = {_parsed(obj.key).version for obj in entry.objects}
        _replace(
            owners[ARCHIVE],
            entry,
            lambda _, older: (
                (older.kind, older.name) == ("stabilizer", entry.subject)
                and (older.version in versions or not versions)
            ),
        )
    for obj in entry.objects:
        new = _parsed(obj.key)
        owner = owners[new.video_id or ARCHIVE]
        if new.kind in ("routes", "meta"):
            _replace(owner, entry, partial(_same_place, new))
        owner.objects[obj.key] = HeldObject(stored=obj, log_number=entry.number)


def _same_place(new: ParsedKey, _: str, older: ParsedKey) -> bool:
    kinds = ("routes", "result") if new.kind == "routes" else (new.kind,)
    return older.kind in kinds and older.version == new.version


def _replace(owner: OwnerState, entry: LogEntry, replaced: Callable[[str, ParsedKey], bool]) -> None:
    for key, held in owner.in_force().items():
        if replaced(key, _parsed(key)):
            owner.objects[key] = replace(held, replaced_at=entry.committed_at)


def _check_results(entry: LogEntry) -> None:
    for key in (*(obj.key for obj in entry.objects), *entry.removed):
        parsed = _parsed(key)
        if (parsed.kind, parsed.video_id) != ("result", entry.subject):
            raise IntegrityError(f"{log_key(entry.number)} is about answers on {entry.subject}, not {key}")


def _check_view(entry: LogEntry) -> None:
    views = [_parsed(obj.key) for obj in entry.objects]
    if len(views) > 1 or any((key.kind, key.name) != ("view", entry.subject) for key in views):
        raise IntegrityError(f"{log_key(entry.number)} saves the view {entry.subject} as {entry.objects}")


def _check_stabilizer(entry: LogEntry) -> None:
    named = [_parsed(obj.key) for obj in entry.objects]
    if len(named) > 1 or any((key.kind, key.name) != ("stabilizer", entry.subject) for key in named):
        raise IntegrityError(
            f"{log_key(entry.number)} stores the stabilizer {entry.subject} as {entry.objects}"
        )


def _check_manifest(entry: LogEntry) -> None:
    manifests = [key for key in (_parsed(obj.key) for obj in entry.objects) if key.kind == "manifest"]
    if [key.video_id for key in manifests] != [entry.subject]:
        raise IntegrityError(f"{log_key(entry.number)} commits a video without its manifest")


def _parsed(key: str) -> ParsedKey:
    try:
        return parse_key(key)
    except UsageError as error:
        raise ArchiveError(f"the log names {error}: a newer release of nvpstore is needed") from None
