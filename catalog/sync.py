"""From log entries to rows: read what is new, fold it, fetch what came into force, and change the tables."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from nvpstore.catalog import rows
from nvpstore.catalog.fold import OwnerState, fold, owners_of
from nvpstore.catalog.workspace import Workspace
from nvpstore.errors import IntegrityError, ObjectMissing
from nvpstore.storage.documents import decode_meta, decode_task
from nvpstore.storage.entries import LogEntry
from nvpstore.storage.keys import ParsedKey, log_key, parse_key
from nvpstore.storage.log import Log
from nvpstore.storage.objects import ObjectStore
from nvpstore.storage.parquet import footer_of
from nvpstore.storage.tables import decode_manifest
from nvpstore.types import StoredObject

READERS = 16  # small objects: what counts is the store's latency
_BATCH = 512  # entries whose objects are in memory at once
_CONTENT = ("manifest", "routes", "meta", "task")  # objects whose content is indexed


@dataclass(slots=True)
class Applied:
    """What `apply_entries` has done: the last entry, how many there were, and which videos they erased."""

    last: LogEntry | None = None
    entries: int = 0
    erased: set[str] = field(default_factory=set)
    grace_seconds: int | None = None


@dataclass(slots=True)
class _Changes:
    """Objects whose content comes into force, and goes out of it, by the net effect of a batch."""

    added: list[tuple[ParsedKey, StoredObject, int]] = field(default_factory=list)
    dropped: list[ParsedKey] = field(default_factory=list)


def read_ahead(log: Log, *, after: int, checksum: str) -> Iterator[LogEntry]:
    """The entries above `after`, whose checksum is given (-1 and "" for all), in order, each verified
    against the one before it. Unlike `log.entries` it fetches them in parallel.

    Raises IntegrityError naming the entry that differs, ArchiveError for a newer format.
    """
    with ThreadPoolExecutor(READERS) as readers:
        ahead: deque[Future[LogEntry]] = deque()
        number, window = after + 1, 1
        try:
            while True:
                while len(ahead) < window:
                    ahead.append(readers.submit(log.read, number + len(ahead)))
                try:
                    entry = ahead.popleft().result()
                except ObjectMissing:
                    return
                _check_link(log, entry, checksum)
                yield entry
                checksum, number = entry.checksum, number + 1
                # A log that goes on is likely to go on further; past its end nothing should be asked for.
                window = min(2 * window, 2 * READERS)
        finally:
            for future in ahead:
                future.cancel()


def apply_entries(workspace: Workspace, store: ObjectStore, entries: Iterable[LogEntry]) -> Applied:
    """Apply `entries` in order. Raises IntegrityError naming an object that is not what was committed."""
    done = Applied()
    iterator = iter(entries)
    with ThreadPoolExecutor(READERS) as readers:
        while batch := list(islice(iterator, _BATCH)):
            _apply(workspace, store, readers, batch)
            done.last = batch[-1]
            done.entries += len(batch)
            done.erased |= {entry.subject for entry in batch if entry.kind == "erase"}
            if batch[0].kind == "init":
                done.grace_seconds = batch[0].grace_seconds
    return done


def _check_link(log: Log, entry: LogEntry, previous: str) -> None:
    if entry.previous_digest != previous:
        raise IntegrityError(
            f"{log_key(entry.number)} in {log.store.root} follows an entry with checksum "
            f"{entry.previous_digest[:12] or 'none'}; the one before it has {previous[:12] or 'none'}"
        )


def _apply(
    workspace: Workspace, store: ObjectStore, readers: ThreadPoolExecutor, batch: list[LogEntry]
) -> None:
    before = workspace.states({owner for entry in batch for owner in owners_of(entry)})
    after = {owner: OwnerState(dict(state.objects), state.erased) for owner, state in before.items()}
    for entry in batch:
        fold(after, entry)
    _save_states(workspace, before, after)
    changes = _changes(before, after)
    _drop(workspace, changes.dropped)
    contents = list(readers.map(store.get_verified, (obj for _, obj, _ in changes.added)))
    _add(workspace, changes.added, contents)


def _save_states(workspace: Workspace, before: dict[str, OwnerState], after: dict[str, OwnerState]) -> None:
    changed = [owner for owner in after if after[owner] != before[owner]]
    known = [owner for owner in changed if before[owner] != OwnerState()]
    workspace.delete("objects", "owner", known)
    workspace.delete("erased", "video_id", known)
    held = ((owner, held) for owner in changed for held in after[owner].objects.values())
    workspace.insert("objects", (rows.object_row(owner, held) for owner, held in held))
    erased = ((owner, after[owner].erased) for owner in changed)
    workspace.insert("erased", ({"video_id": o, "log_number": n} for o, n in erased if n is not None))


def _changes(before: dict[str, OwnerState], after: dict[str, OwnerState]) -> _Changes:
    changes = _Changes()
    for owner, state in after.items():
        old, new = _content(before[owner]), _content(state)
        changes.dropped += [parse_key(key) for key, number in old.items() if new.get(key) != number]
        changes.added += [
            (parse_key(key), state.objects[key].stored, number)
            for key, number in new.items()
            if old.get(key) != number
        ]
    return changes


def _content(state: OwnerState) -> dict[str, int]:
    """Indexed objects in force, with the number of the entry that named them last."""
    in_force = state.in_force().items()
    return {key: held.log_number for key, held in in_force if parse_key(key).kind in _CONTENT}


def _drop(workspace: Workspace, dropped: list[ParsedKey]) -> None:
    videos = [key.video_id for key in dropped if key.kind == "manifest"]
    for table in ("videos", "segments", "stages"):
        workspace.delete(table, "video_id", videos)
    workspace.delete("footers", "video_id || contains(key, '/routes/')", [f"{v}false" for v in videos])
    routes = [f"{key.video_id}/{key.version}" for key in dropped if key.kind == "routes"]
    workspace.delete("routes", "video_id || '/' || version", routes)
    workspace.delete("footers", "video_id || '/' || split_part(key, '/', 4)", routes)
    workspace.delete("meta", "video_id", [key.video_id for key in dropped if key.kind == "meta"])
    tasks = [f"{key.name}/{key.version}" for key in dropped if key.kind == "task"]
    workspace.delete("tasks", "name || '/' || version", tasks)


def _add(
    workspace: Workspace, added: list[tuple[ParsedKey, StoredObject, int]], contents: list[bytes]
) -> None:
    found: dict[str, list[rows.Row]] = {}
    for (key, obj, number), content in zip(added, contents, strict=True):
        for table, new in _rows_of(key, obj, number, content).items():
            found.setdefault(table, []).extend(new)
    for table, new in found.items():
        workspace.insert(table, new)
    workspace.name_videos([key.video_id for key, _, _ in added if key.kind in ("manifest", "meta")])


def _rows_of(key: ParsedKey, obj: StoredObject, number: int, content: bytes) -> dict[str, list[rows.Row]]:
    if key.kind == "manifest":
        return _manifest_rows(key, obj, content)
    if key.kind == "routes":
        return _route_rows(key, obj, content)
    if key.kind == "meta":
        return {"meta": [rows.meta_row(decode_meta(content))]}
    return {"tasks": [rows.task_row(decode_task(content), number)]}


def _manifest_rows(key: ParsedKey, obj: StoredObject, content: bytes) -> dict[str, list[rows.Row]]:
    video = decode_manifest(content)
    if video.video_id != key.video_id:
        raise IntegrityError(f"{obj.key} is the manifest of video {video.video_id}")
    return {
        "videos": [rows.video_row(video)],
        "segments": list(rows.segment_rows(video)),
        "stages": list(rows.stage_rows(video)),
        "footers": list(rows.footer_rows(video.video_id, video.footers)),
    }


def _route_rows(key: ParsedKey, obj: StoredObject, content: bytes) -> dict[str, list[rows.Row]]:
    found = rows.route_rows(obj.key, content)
    if any((row["video_id"], row["version"]) != (key.video_id, key.version) for row in found):
        raise IntegrityError(f"{obj.key} holds routes of another video or task version")
    footers = rows.footer_rows(key.video_id, {obj.key: footer_of(content)})
    return {"routes": found, "footers": list(footers)}
