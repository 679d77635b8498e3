"""From log entries to rows: read what is new, fold it, fetch what came into force, and change the tables.

All entries are folded before any object is fetched: what a later entry replaced or erased may be gone by now.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from nvpstore.catalog import rows
from nvpstore.catalog.fold import HeldObject, OwnerState, fold, owners_of
from nvpstore.catalog.workspace import Workspace
from nvpstore.errors import IntegrityError, ObjectMissing
from nvpstore.storage.documents import decode_meta, decode_task, decode_view
from nvpstore.storage.entries import LogEntry
from nvpstore.storage.keys import ParsedKey, log_key, parse_key
from nvpstore.storage.log import Log
from nvpstore.storage.objects import ObjectStore
from nvpstore.storage.parquet import footer_of
from nvpstore.storage.results import fetch_footer
from nvpstore.storage.tables import decode_manifest
from nvpstore.types import StoredObject

_READERS = 16  # small objects: what counts is the store's latency
_ENTRIES = 1024  # entries that are folded at once
_OBJECTS = 512  # objects whose rows are written at once
_AHEAD = 64  # objects that are fetched before they are needed


@dataclass(slots=True)
class Applied:
    """What `apply_log` has done. `last` is None where nothing was new; `grace_seconds` where entry 0 was not.

    `erased` are the videos that the new entries erased, `latest_attempt` the greatest attempt of an entry.
    """

    last: LogEntry | None = None
    erased: set[str] = field(default_factory=set)
    grace_seconds: int | None = None
    latest_attempt: str = ""


def apply_log(workspace: Workspace, log: Log, *, after: int, checksum: str) -> Applied:
    """Apply all entries above `after`, whose checksum is given (-1 and "" for all).

    Raises IntegrityError naming an entry or object that is not what was committed, ObjectMissing.
    """
    done = Applied()
    while True:
        entries = read_ahead(log, after=after, checksum=checksum)
        while batch := list(islice(entries, _ENTRIES)):
            _fold(workspace, batch)
            _note(done, batch)
        if done.last is not None:
            after, checksum = done.last.number, done.last.checksum
        try:
            _load(workspace, log.store)
        except ObjectMissing:
            # An erasure or a collection may have come between the entries and now: it has an entry, too.
            if not _goes_on(log, after):
                raise
        else:
            return done


def read_ahead(log: Log, *, after: int, checksum: str) -> Iterator[LogEntry]:
    """The entries above `after`, whose checksum is given (-1 and "" for all), in order, each verified
    against the one before it. Unlike `log.entries` it fetches them in parallel.

    Raises IntegrityError naming the entry that differs, ArchiveError for a newer format.
    """
    with ThreadPoolExecutor(_READERS) as readers:
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
                window = min(2 * window, 2 * _READERS)
        finally:
            for future in ahead:
                future.cancel()


def _check_link(log: Log, entry: LogEntry, previous: str) -> None:
    if entry.previous_digest != previous:
        raise IntegrityError(
            f"{log_key(entry.number)} in {log.store.root} follows an entry with checksum "
            f"{entry.previous_digest[:12] or 'none'}; the one before it has {previous[:12] or 'none'}"
        )


def _goes_on(log: Log, number: int) -> bool:
    try:
        log.read(number + 1)
    except ObjectMissing:
        return False
    return True


def _note(done: Applied, batch: list[LogEntry]) -> None:
    done.last = batch[-1]
    done.latest_attempt = max([done.latest_attempt, *(entry.attempt for entry in batch)])
    done.erased |= {entry.subject for entry in batch if entry.kind == "erase"}
    if batch[0].kind == "init":
        done.grace_seconds = batch[0].grace_seconds


def _fold(workspace: Workspace, batch: list[LogEntry]) -> None:
    before = workspace.states({owner for entry in batch for owner in owners_of(entry)})
    after = {owner: OwnerState(dict(state.objects), state.erased) for owner, state in before.items()}
    for entry in batch:
        fold(after, entry)
    changed = [owner for owner in after if after[owner] != before[owner]]
    known = [owner for owner in changed if before[owner] != OwnerState()]
    workspace.delete("objects", "owner", known)
    workspace.delete("erased", "video_id", known)
    held = ((owner, held) for owner in changed for held in after[owner].objects.values())
    workspace.insert("objects", (rows.object_row(owner, held) for owner, held in held))
    erased = ((owner, after[owner].erased) for owner in changed)
    workspace.insert("erased", ({"video_id": o, "log_number": n} for o, n in erased if n is not None))


def _load(workspace: Workspace, store: ObjectStore) -> None:
    """Make the rows those of the objects that are in force."""
    _drop(workspace, workspace.outdated())
    fetched = _fetched(store, workspace.missing())
    while batch := list(islice(fetched, _OBJECTS)):
        found: dict[str, list[rows.Row]] = {}
        for _, new in batch:
            for table, listed in new.items():
                found.setdefault(table, []).extend(listed)
        for table, listed in found.items():
            workspace.insert(table, listed)
        workspace.loaded([held for held, _ in batch])
        workspace.name_videos([parse_key(held.stored.key).video_id for held, _ in batch])


def _fetched(
    store: ObjectStore, wanted: Iterable[HeldObject]
) -> Iterator[tuple[HeldObject, dict[str, list[rows.Row]]]]:
    """The rows of each object, in order; the next ones are fetched and decoded meanwhile."""
    waiting: deque[tuple[HeldObject, Future[dict[str, list[rows.Row]]]]] = deque()

    def read(held: HeldObject) -> dict[str, list[rows.Row]]:
        if parse_key(held.stored.key).kind == "result":
            return _result_rows(store, held.stored)
        return _rows_of(held, store.get_verified(held.stored))

    def next_one() -> tuple[HeldObject, dict[str, list[rows.Row]]]:
        held, future = waiting.popleft()
        return held, future.result()

    with ThreadPoolExecutor(_READERS) as readers:
        try:
            for held in wanted:
                waiting.append((held, readers.submit(read, held)))
                if len(waiting) >= _AHEAD:
                    yield next_one()
            while waiting:
                yield next_one()
        finally:
            for _, future in waiting:
                future.cancel()


def _drop(workspace: Workspace, outdated: list[str]) -> None:
    dropped = [parse_key(key) for key in outdated]
    videos = [key.video_id for key in dropped if key.kind == "manifest"]
    for table in ("videos", "segments", "stages"):
        workspace.delete(table, "video_id", videos)
    workspace.delete("footers", "video_id || contains(key, '/routes/')", [f"{v}false" for v in videos])
    routes = [f"{key.video_id}/{key.version}" for key in dropped if key.kind == "routes"]
    workspace.delete("routes", "video_id || '/' || version", routes)
    workspace.delete("footers", "video_id || '/' || split_part(key, '/', 4)", routes)
    workspace.delete("meta", "video_id", [key.video_id for key in dropped if key.kind == "meta"])
    results = [key for key, parsed in zip(outdated, dropped, strict=True) if parsed.kind == "result"]
    workspace.delete("results", "key", results)
    workspace.delete("footers", "key", results)
    tasks = [f"{key.name}/{key.version}" for key in dropped if key.kind == "task"]
    workspace.delete("tasks", "name || '/' || version", tasks)
    workspace.delete("views", "name", [key.name for key in dropped if key.kind == "view"])


def _rows_of(held: HeldObject, content: bytes) -> dict[str, list[rows.Row]]:
    key = held.stored.key
    parsed = parse_key(key)
    if parsed.kind == "manifest":
        return _manifest_rows(key, parsed, content)
    if parsed.kind == "routes":
        return _route_rows(key, parsed, content)
    if parsed.kind == "meta":
        return {"meta": [rows.meta_row(decode_meta(content))]}
    if parsed.kind == "view":
        return _view_rows(key, parsed, content)
    return {"tasks": [rows.task_row(decode_task(content), held.log_number)]}


def _result_rows(store: ObjectStore, stored: StoredObject) -> dict[str, list[rows.Row]]:
    # Answers can be computed again: that some are lost or damaged must not keep anyone from the rest.
    with suppress(IntegrityError, ObjectMissing):
        footer = fetch_footer(store, stored)
        video_id = parse_key(stored.key).video_id
        return {
            "results": rows.result_rows(stored.key, footer),
            "footers": list(rows.footer_rows(video_id, {stored.key: footer})),
        }
    return {}


def _manifest_rows(key: str, parsed: ParsedKey, content: bytes) -> dict[str, list[rows.Row]]:
    video = decode_manifest(content)
    if video.video_id != parsed.video_id:
        raise IntegrityError(f"{key} is the manifest of video {video.video_id}")
    return {
        "videos": [rows.video_row(video)],
        "segments": list(rows.segment_rows(video)),
        "stages": list(rows.stage_rows(video)),
        "footers": list(rows.footer_rows(video.video_id, video.footers)),
    }


def _view_rows(key: str, parsed: ParsedKey, content: bytes) -> dict[str, list[rows.Row]]:
    view = decode_view(content)
    if view.name != parsed.name:
        raise IntegrityError(f"{key} holds the view {view.name}")
    return {"views": [rows.view_row(view)]}


def _route_rows(key: str, parsed: ParsedKey, content: bytes) -> dict[str, list[rows.Row]]:
    found = rows.route_rows(key, content)
    if any((row["video_id"], row["version"]) != (parsed.video_id, parsed.version) for row in found):
        raise IntegrityError(f"{key} holds routes of another video or task version")
    footers = rows.footer_rows(parsed.video_id, {key: footer_of(content)})
    return {"routes": found, "footers": list(footers)}
