"""One archive at one log number, read from an index file that no one changes."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb

from nvpstore.catalog.rows import Row, byte_range, segment_record
from nvpstore.errors import StoreError, TaskError, UsageError
from nvpstore.types import (
    ByteRange,
    RouteRecord,
    SegmentRecord,
    StoredObject,
    TaskRecord,
    VideoMeta,
    VideoState,
)

VIEWS = ("videos", "segments", "tasks", "routes")
_LISTED = 8  # how many names an error message lists


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedVideo:
    """A video without its segments. `pts_origin` is its first pts, None while nothing is fitted."""

    video_id: str
    attempt: str
    sha256: str
    name: str
    state: VideoState
    source_uri: str | None
    source_bytes: int
    container: str
    source_codec: str
    width: int
    height: int
    rotation_degrees: int
    time_base: Fraction
    average_fps: Fraction
    frames: int
    duration_seconds: float | None
    pts_origin: int | None
    preset: str
    psnr: float | None
    psnr_p5: float | None
    resize_bound_psnr: float | None
    fit_seconds: float | None
    audio: StoredObject | None
    tags: dict[str, str]
    recorded_at: datetime | None
    hold: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedRoute:
    """A route without its adapter's tensors; `row_group` says where they are, None if it has none."""

    route: RouteRecord
    row_group: ByteRange | None


class Snapshot:
    """Made by `Catalog`. Can be shared by threads; keeps its file from being removed until it is closed."""

    def __init__(self, path: Path, *, in_use: int) -> None:
        """`in_use` is a file descriptor that holds a shared lock on `path`; it is closed with the snapshot.

        Raises duckdb.Error if `path` is no index; then `in_use` stays open.
        """
        self.path = path
        self._connection = _attached(path)
        (row,) = self._rows("FROM idx.store.snapshot")
        self._close = weakref.finalize(self, _release, self._connection, in_use)
        self.number: int = row["log_number"]
        self.archive_id: str = row["archive_id"]
        self.digest: str = row["log_digest"]
        self.schema_version: int = row["schema_version"]

    def close(self) -> None:
        self._close()

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A fresh in-memory connection: the index attached read-only as `idx`, its views by plain name."""
        return _attached(self.path)

    def find_video(self, ref: str) -> str:
        """The id behind a full id, a unique prefix of one, or a unique name. Raises UsageError."""
        found = self._rows(
            "SELECT video_id, name FROM idx.store.videos "
            "WHERE name = $ref OR (starts_with(video_id, $ref) AND $ref <> '') ORDER BY video_id",
            {"ref": ref},
        )
        if len(found) == 1 or any(row["video_id"] == ref for row in found):
            return ref if len(found) > 1 else str(found[0]["video_id"])
        if found:
            raise UsageError(f"video {ref!r} is ambiguous: {_listed_videos(found)}")
        known = self._rows(
            f"SELECT video_id, name FROM idx.store.videos ORDER BY name, video_id LIMIT {_LISTED + 1}"
        )
        raise UsageError(
            f"no video {ref!r}: give an id, the start of one, or a name, of {_listed_videos(known)}"
        )

    def video(self, video_id: str) -> IndexedVideo:
        """Raises UsageError for an unknown id."""
        found = self._rows(
            "SELECT v.*, o.size_bytes AS audio_bytes, o.sha256 AS audio_sha256, "
            "(SELECT min(pts_origin) FROM idx.store.segments WHERE video_id = $id) AS pts_origin "
            "FROM idx.store.videos v LEFT JOIN idx.store.objects o ON o.key = v.audio_key "
            "WHERE v.video_id = $id",
            {"id": video_id},
        )
        if not found:
            raise UsageError(f"no video {video_id!r} in this archive")
        return _video(found[0])

    def has_video(self, video_id: str) -> bool:
        return bool(self._rows("SELECT 1 FROM idx.store.videos WHERE video_id = $id", {"id": video_id}))

    def meta(self, video_id: str) -> VideoMeta:
        """What people said last about a video. Raises UsageError for an unknown id."""
        video = self.video(video_id)
        return VideoMeta(
            video_id=video_id,
            name=video.name,
            tags=video.tags,
            recorded_at=video.recorded_at,
            hold=video.hold,
        )

    def segment(self, video_id: str, segment: int) -> SegmentRecord:
        """Raises UsageError if the video has no such segment."""
        found = self.segments(video_id, only=segment)
        if not found:
            raise UsageError(f"video {video_id} has no segment {segment}")
        return found[0]

    def segments(self, video_id: str, *, only: int | None = None) -> tuple[SegmentRecord, ...]:
        """All segments in order, or `only` one."""
        where = "WHERE video_id = $id AND ($only IS NULL OR segment = $only)"
        values = {"id": video_id, "only": only}
        stages: dict[int, list[Row]] = {}
        for row in self._rows(f"FROM idx.store.stages {where} ORDER BY segment, position", values):
            stages.setdefault(row["segment"], []).append(row)
        found = self._rows(f"FROM idx.store.segments {where} ORDER BY segment", values)
        return tuple(segment_record(row, stages.get(row["segment"], [])) for row in found)

    def routes(self, video_id: str, version: str) -> tuple[IndexedRoute, ...]:
        """All routes of one task version on one video, in stored order; empty if there are none."""
        found = self._rows(
            "FROM idx.store.routes WHERE video_id = $id AND version = $version ORDER BY position",
            {"id": video_id, "version": version},
        )
        return tuple(_route(row) for row in found)

    def footer(self, key: str) -> bytes:
        """The footer of a weights, latents or routes file. Raises StoreError if the index has none."""
        found = self._rows("SELECT footer FROM idx.store.footers WHERE key = $key", {"key": key})
        if not found:
            raise StoreError(f"{key} has no footer in the index of archive {self.archive_id}")
        return bytes(found[0]["footer"])

    def task(self, name: str, version: str | None = None) -> TaskRecord:
        """The newest version of a task, or the one that starts with `version`. Raises TaskError."""
        found = self._rows(
            "FROM idx.store.tasks WHERE name = $name ORDER BY log_number DESC, version", {"name": name}
        )
        if not found:
            known = sorted({row["name"] for row in self._rows("SELECT name FROM idx.store.tasks")})
            raise TaskError(f"no task {name!r} in this archive: it has {_listed(known)}")
        matching = [row for row in found if row["version"].startswith(version or "")]
        if not matching or (version and len(matching) > 1):
            problem = "several versions start" if matching else "no version starts"
            versions = _listed([row["version"][:12] for row in matching or found])
            raise TaskError(f"task {name}: {problem} with {version!r}, of {versions}")
        return _task(matching[0])

    def has_task(self, name: str, version: str) -> bool:
        """Whether exactly this version is registered."""
        found = "SELECT 1 FROM idx.store.tasks WHERE name = $name AND version = $version"
        return bool(self._rows(found, {"name": name, "version": version}))

    def tasks(self) -> tuple[TaskRecord, ...]:
        """The newest version of every task, by name."""
        newest = "QUALIFY row_number() OVER (PARTITION BY name ORDER BY log_number DESC, version) = 1"
        return tuple(_task(row) for row in self._rows(f"FROM idx.store.tasks {newest} ORDER BY name"))

    def _rows(self, sql: str, values: dict[str, Any] | None = None) -> list[Row]:
        # A cursor shares the attached file, and unlike a connection is not shared by threads.
        # Through Arrow: DuckDB's own rows need pytz for a TIMESTAMPTZ.
        with self._connection.cursor() as cursor:
            return list(cursor.sql(sql, params=values or {}).to_arrow_table().to_pylist())


def _attached(path: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:")
    try:
        quoted = str(path).replace("'", "''")
        connection.execute(f"ATTACH '{quoted}' AS idx (READ_ONLY)")
        for view in VIEWS:
            connection.execute(f"CREATE VIEW {view} AS FROM idx.main.{view}")
    except BaseException:
        connection.close()
        raise
    return connection


def _release(connection: duckdb.DuckDBPyConnection, in_use: int) -> None:
    connection.close()
    os.close(in_use)


def _video(row: Row) -> IndexedVideo:
    same = IndexedVideo.__slots__
    audio = None
    if row["audio_key"]:
        audio = StoredObject(key=row["audio_key"], size_bytes=row["audio_bytes"], sha256=row["audio_sha256"])
    values = row | {
        "time_base": Fraction(row["time_base_num"], row["time_base_den"]),
        "average_fps": Fraction(row["fps_num"], row["fps_den"]),
        "duration_seconds": row["duration"],
        "audio": audio,
        "tags": dict(row["tags"]),
        "recorded_at": row["recorded_at"] and row["recorded_at"].astimezone(UTC),
    }
    return IndexedVideo(**{name: values[name] for name in same})


def _route(row: Row) -> IndexedRoute:
    names = [name for name in RouteRecord.__slots__ if name not in ("stages", "adapter")]
    record = RouteRecord(**{name: row[name] for name in names}, stages=tuple(row["stages"]))
    return IndexedRoute(route=record, row_group=byte_range(row) if row["key"] else None)


def _task(row: Row) -> TaskRecord:
    return TaskRecord(
        name=row["name"],
        version=row["version"],
        kind=row["kind"],
        cuts=row["cuts"],
        labels=tuple(row["labels"]),
        spec=row["spec"],
    )


def _listed_videos(found: Sequence[Row]) -> str:
    return _listed([f"{row['video_id'][:12]} ({row['name']})" for row in found])


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")
    return shown or "none"
