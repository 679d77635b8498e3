"""The state of an archive as a plain fold of its log: what docs/format.md says, in as few lines as possible.

An oracle for the catalog, and what the simulation's actors see.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from nvpstore.storage import keys
from nvpstore.storage.entries import LogEntry
from nvpstore.types import StoredObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    stored: StoredObject


@dataclass(slots=True)
class Folded:
    """`in_force` and `replaced` map keys to objects; `replaced_at` says since when."""

    number: int = -1
    latest_attempt: str = ""
    in_force: dict[str, StoredObject] = field(default_factory=dict)
    replaced: dict[str, StoredObject] = field(default_factory=dict)
    replaced_at: dict[str, datetime] = field(default_factory=dict)

    def held(self, keys: Iterable[str]) -> set[str]:
        return {key for key in keys if key in self.in_force or key in self.replaced}

    def superseded(self, *, before: datetime) -> list[Replaced]:
        found = (obj for key, obj in self.replaced.items() if self.replaced_at[key] < before)
        return [Replaced(stored=obj) for obj in found]

    def has_video(self, video_id: str) -> bool:
        return any(_of(key, video_id).kind == "manifest" for key in self.in_force if video_id in key)

    def apply(self, entry: LogEntry) -> None:
        self.number = entry.number
        self.latest_attempt = max(self.latest_attempt, entry.attempt)
        for held in (self.in_force, self.replaced):
            for key in [key for key in held if _vanishes(key, entry)]:
                del held[key]
        named = {obj.key for obj in entry.objects}
        for key in [key for key in self.in_force if key not in named and _is_replaced(key, entry)]:
            self.replaced[key] = self.in_force.pop(key)
            self.replaced_at[key] = entry.committed_at
        self.in_force |= {obj.key: obj for obj in entry.objects}


def fold(entries: Iterable[LogEntry]) -> Folded:
    state = Folded()
    for entry in entries:
        state.apply(entry)
    return state


def _vanishes(key: str, entry: LogEntry) -> bool:
    if entry.kind == "erase":
        return keys.parse_key(key).video_id == entry.subject
    return entry.kind == "gc" and key in entry.removed


def _is_replaced(key: str, entry: LogEntry) -> bool:
    """Whether `entry` puts something in the place of the object in force under `key`."""
    old = keys.parse_key(key)
    if old.kind == "view":
        return entry.kind == "view" and entry.subject == old.name
    if old.kind == "stabilizer":
        versions = {keys.parse_key(obj.key).version for obj in entry.objects}
        same = entry.kind == "stabilizer" and entry.subject == old.name
        return same and (not versions or old.version in versions)
    if old.video_id != entry.subject:
        return False
    news = [keys.parse_key(obj.key) for obj in entry.objects]
    if old.kind == "meta":
        return any(new.kind == "meta" for new in news)
    routed = {new.version for new in news if new.kind == "routes"}
    if old.kind in ("routes", "result") and old.version in routed:
        return True
    if entry.kind == "results":
        return key in entry.removed
    return entry.kind == "video"


def _of(key: str, video_id: str) -> keys.ParsedKey:
    parsed = keys.parse_key(key)
    return parsed if parsed.video_id == video_id else keys.ParsedKey(kind="log")
