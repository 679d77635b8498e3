"""Folding log entries into the index: what each kind of object adds, and what it replaces.

The rules do not depend on how entries are batched, so that an index grown over months equals a rebuilt one:
- A video's newer manifest replaces its segments and routes. What people said about the video stays.
- A newer routes object replaces that of the same video and task version.
- A newer meta object replaces the older; it may come before or after the manifest.
- Objects stay listed when they are replaced: their bytes are stored until they are collected.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import duckdb
import pyarrow as pa

from nvpstore.catalog import rows
from nvpstore.errors import IntegrityError
from nvpstore.storage.documents import decode_meta, decode_task
from nvpstore.storage.keys import ParsedKey, log_key, parse_key
from nvpstore.storage.log import LogEntry
from nvpstore.storage.objects import ObjectStore
from nvpstore.storage.tables import decode_manifest
from nvpstore.types import StoredObject

_BATCH = 256  # entries whose objects are in memory at once
_READERS = 8  # small objects: what counts is the store's latency

_REPLACED_BY_MANIFEST = ("videos", "segments", "stages", "routes")


@dataclass(slots=True)
class _Changes:
    """What a batch of entries leaves in force. Objects that it also replaces are not even read."""

    objects: dict[str, tuple[StoredObject, int]] = field(default_factory=dict)
    manifests: dict[str, StoredObject] = field(default_factory=dict)
    routes: dict[tuple[str, str], StoredObject] = field(default_factory=dict)
    meta: dict[str, StoredObject] = field(default_factory=dict)
    tasks: dict[tuple[str, str], tuple[StoredObject, int]] = field(default_factory=dict)


def apply_entries(
    connection: duckdb.DuckDBPyConnection, store: ObjectStore, entries: Iterable[LogEntry]
) -> LogEntry | None:
    """Apply `entries` in order, in one transaction a batch. Returns the last one, None without any.

    Raises IntegrityError naming the object that differs from what was committed.
    """
    last = None
    for batch in _batched(entries):
        changes = _gather(batch)
        connection.begin()
        _apply(connection, store, changes)
        connection.commit()
        last = batch[-1]
    return last


def _batched(entries: Iterable[LogEntry]) -> Iterator[list[LogEntry]]:
    iterator = iter(entries)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


def _gather(batch: list[LogEntry]) -> _Changes:
    changes = _Changes()
    for entry in batch:
        parsed = [(parse_key(obj.key), obj) for obj in entry.objects]
        # A video's first commit may bring routes along; they belong to the manifest beside them.
        parsed.sort(key=lambda pair: pair[0].kind != "manifest")
        if entry.kind == "video" and (not parsed or parsed[0][0].kind != "manifest"):
            raise IntegrityError(f"{log_key(entry.number)} commits a video without its manifest")
        for key, obj in parsed:
            changes.objects[obj.key] = (obj, entry.number)
            _note(changes, key, obj, entry.number)
    return changes


def _note(changes: _Changes, key: ParsedKey, obj: StoredObject, number: int) -> None:
    if key.kind == "manifest":
        changes.manifests[key.video_id] = obj
        for pair in [pair for pair in changes.routes if pair[0] == key.video_id]:
            del changes.routes[pair]
    elif key.kind == "routes":
        changes.routes[key.video_id, key.version] = obj
    elif key.kind == "meta":
        changes.meta[key.video_id] = obj
    elif key.kind == "task":
        changes.tasks[key.name, key.version] = (obj, number)


def _apply(connection: duckdb.DuckDBPyConnection, store: ObjectStore, changes: _Changes) -> None:
    with ThreadPoolExecutor(_READERS) as readers:

        def read(objects: Iterable[StoredObject]) -> list[bytes]:
            return list(readers.map(store.get_verified, objects))

        _delete(connection, "objects", "key", list(changes.objects))
        named = changes.objects.values()
        _insert(connection, "objects", (rows.object_row(obj, number) for obj, number in named))
        _apply_manifests(connection, changes.manifests, read(changes.manifests.values()))
        _apply_routes(connection, changes.routes, read(changes.routes.values()))
        _apply_meta(connection, changes, read(changes.meta.values()))
        _apply_tasks(connection, changes, read(obj for obj, _ in changes.tasks.values()))


def _apply_manifests(
    connection: duckdb.DuckDBPyConnection, manifests: dict[str, StoredObject], contents: list[bytes]
) -> None:
    for table in _REPLACED_BY_MANIFEST:
        _delete(connection, table, "video_id", list(manifests))
    _delete(connection, "footers", "split_part(key, '/', 2)", list(manifests))
    videos = [decode_manifest(content) for content in contents]
    for (video_id, obj), video in zip(manifests.items(), videos, strict=True):
        if video.video_id != video_id:
            raise IntegrityError(f"{obj.key} is the manifest of video {video.video_id}")
    _insert(connection, "videos", (rows.video_row(video) for video in videos))
    _insert(connection, "segments", (row for video in videos for row in rows.segment_rows(video)))
    _insert(connection, "stages", (row for video in videos for row in rows.stage_rows(video)))
    _insert(connection, "footers", (row for video in videos for row in rows.footer_rows(video.footers)))


def _apply_routes(
    connection: duckdb.DuckDBPyConnection,
    routes: dict[tuple[str, str], StoredObject],
    contents: list[bytes],
) -> None:
    for video_id, version in routes:
        old = "DELETE FROM store.footers WHERE starts_with(key, ?)"
        connection.execute(old, [f"videos/{video_id}/routes/{version}/"])
        connection.execute("DELETE FROM store.routes WHERE video_id = ? AND version = ?", [video_id, version])
    found: list[rows.Row] = []
    footers: dict[str, bytes] = {}
    for ((video_id, version), obj), content in zip(routes.items(), contents, strict=True):
        new_rows, footer = rows.route_rows(obj.key, content)
        if any((row["video_id"], row["version"]) != (video_id, version) for row in new_rows):
            raise IntegrityError(f"{obj.key} holds routes of another video or task version")
        found += new_rows
        footers[obj.key] = footer
    _insert(connection, "routes", found)
    _insert(connection, "footers", rows.footer_rows(footers))


def _apply_meta(connection: duckdb.DuckDBPyConnection, changes: _Changes, contents: list[bytes]) -> None:
    _delete(connection, "meta", "video_id", list(changes.meta))
    metas = [decode_meta(content) for content in contents]
    _insert(connection, "meta", (rows.meta_row(meta) for meta in metas))
    connection.execute(
        "UPDATE store.videos v SET name = m.name, tags = m.tags, recorded_at = m.recorded_at, hold = m.hold "
        "FROM store.meta m WHERE m.video_id = v.video_id AND v.video_id IN (SELECT unnest(?::VARCHAR[]))",
        [[*changes.meta, *changes.manifests]],
    )


def _apply_tasks(connection: duckdb.DuckDBPyConnection, changes: _Changes, contents: list[bytes]) -> None:
    for name, version in changes.tasks:
        connection.execute("DELETE FROM store.tasks WHERE name = ? AND version = ?", [name, version])
    numbers = (number for _, number in changes.tasks.values())
    tasks = zip(contents, numbers, strict=True)
    _insert(connection, "tasks", (rows.task_row(decode_task(content), number) for content, number in tasks))


def _delete(connection: duckdb.DuckDBPyConnection, table: str, column: str, values: list[str]) -> None:
    if values:
        given = "SELECT unnest(?::VARCHAR[])"
        connection.execute(f"DELETE FROM store.{table} WHERE {column} IN ({given})", [values])


def _insert(connection: duckdb.DuckDBPyConnection, table: str, new: Iterable[rows.Row]) -> None:
    """Insert rows through Arrow: one statement, however many rows."""
    listed = list(new)
    if not listed:
        return
    schema = connection.sql(f"FROM store.{table} LIMIT 0").to_arrow_table().schema
    connection.register("new_rows", pa.Table.from_pylist(listed, schema=schema))
    try:
        connection.execute(f"INSERT INTO store.{table} BY NAME FROM new_rows")
    finally:
        connection.unregister("new_rows")
