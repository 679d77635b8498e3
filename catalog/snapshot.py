"""One archive at one log number, read from index files that no one changes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from nvpstore.catalog.connections import Terms
from nvpstore.catalog.files import OpenIndex, connect_elsewhere
from nvpstore.catalog.fold import HeldObject, owner_of
from nvpstore.catalog.rows import Row, byte_range, held_object, saved_view, segment_record, stored_object
from nvpstore.catalog.tables import TABLES
from nvpstore.errors import NotFound, StoreError, TaskError, UsageError
from nvpstore.storage.commit import Base
from nvpstore.storage.keys import SOURCES_PREFIX, STABILIZERS_PREFIX, task_weights_key
from nvpstore.types import (
    ByteRange,
    RouteRecord,
    SavedView,
    SegmentRecord,
    StoredObject,
    TaskRecord,
    VideoMeta,
    VideoState,
    WeightsPlace,
)

# What DuckDB raises for a damaged file, beside errors that say "corrupt".
_UNREADABLE = (
    duckdb.IOException,
    duckdb.FatalException,
    duckdb.InternalException,
    duckdb.SerializationException,
)
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
    pixel_aspect: Fraction | None  # None: only the manifest says it (exports.pixel_aspect)
    frames: int
    duration_seconds: float | None
    pts_origin: int | None
    preset: str | None
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
    """Made by `Catalog`. Can be shared by threads; keeps its files from being removed until it is closed.

    Every method raises StoreError naming the file where the index turns out to be damaged; the next snapshot
    of the catalog is then from a fresh one.
    """

    def __init__(self, index: OpenIndex) -> None:
        """Raises duckdb.Error if the files are no index; then `index` stays open."""
        self._index = index
        self.damaged = False
        self._connection = index.connect()
        try:
            (row,) = self._connection.sql("FROM idx.store.snapshot").to_arrow_table().to_pylist()
        except BaseException:
            self._connection.close()
            raise
        self._close = weakref.finalize(self, _release, self._connection, index)
        self.number: int = row["log_number"]
        self.archive_id: str = row["archive_id"]
        self.digest: str = row["log_digest"]
        self.grace_seconds: int = row["grace_seconds"]
        # No attempt that was committed up to here sorts above it.
        self.latest_attempt: str = row["latest_attempt"]
        self.schema_version: int = row["schema_version"]

    @property
    def path(self) -> Path:
        """The newest file of the index."""
        return self._index.file.path

    @property
    def index(self) -> OpenIndex:
        return self._index

    def close(self) -> None:
        self._close()

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A fresh in-memory connection: the index, read-only, as `idx.store.*`, the views by plain name."""
        with self.noticing_damage():
            return self._index.connect()

    @contextmanager
    def lend(self, terms: Terms) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection as `connect` gives it, for as long as the block runs; see `Connections.lend`."""
        with ExitStack() as stack:
            with self.noticing_damage():
                connection = stack.enter_context(self._index.connections.lend(terms))
            yield connection

    def elsewhere(self) -> Callable[[], duckdb.DuckDBPyConnection]:
        """What gives a connection as `connect` does when it is called in another process; can be pickled."""
        return partial(connect_elsewhere, self._index.file)

    @contextmanager
    def noticing_damage(self) -> Iterator[None]:
        """Around queries on connections of this snapshot: damage becomes a StoreError naming the file."""
        try:
            yield
        except Exception as error:
            reason = _damage(error)
            if reason is None:
                raise
            self.damaged = True
            files = " or ".join(str(path) for path in self._index.file.paths)
            raise StoreError(f"the index {files} is damaged: {reason}") from error

    def check(self) -> None:
        """Read every byte that a query could. Raises StoreError if the index is damaged."""
        with self.noticing_damage(), self._index.connect() as connection:
            for table in TABLES:
                connection.execute(f"SELECT sum(hash(t)::HUGEINT) FROM idx.store.{table} t").fetchall()

    def find_video(self, ref: str) -> str:
        """The id behind a full id, a unique prefix of one, or a unique name.

        Raises NotFound for an unknown one, UsageError for an ambiguous one.
        """
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
        raise NotFound(
            f"no video {ref!r}: give an id, the start of one, or a name, of {_listed_videos(known)}"
        )

    def video(self, video_id: str) -> IndexedVideo:
        """Raises NotFound for an unknown id."""
        found = self._rows(
            "SELECT v.*, o.size_bytes AS audio_bytes, o.sha256 AS audio_sha256, "
            "(SELECT min(pts_origin) FROM idx.store.segments WHERE video_id = $id) AS pts_origin "
            "FROM idx.store.videos v "
            "LEFT JOIN idx.store.objects o ON o.owner = v.video_id AND o.key = v.audio_key "
            "WHERE v.video_id = $id",
            {"id": video_id},
        )
        if not found:
            raise NotFound(f"no video {video_id!r} in this archive")
        return _video(found[0])

    def has_video(self, video_id: str) -> bool:
        return self.state(video_id) is not None

    def state(self, video_id: str) -> VideoState | None:
        """None where there is no such video."""
        found = self._rows("SELECT state FROM idx.store.videos WHERE video_id = $id", {"id": video_id})
        return found[0]["state"] if found else None

    def meta(self, video_id: str) -> VideoMeta:
        """What people said last about a video. Raises NotFound for an unknown id."""
        video = self.video(video_id)
        return VideoMeta(
            video_id=video_id,
            name=video.name,
            tags=video.tags,
            recorded_at=video.recorded_at,
            hold=video.hold,
        )

    def segment(self, video_id: str, segment: int) -> SegmentRecord:
        """Raises NotFound if the video has no such segment."""
        found = self.segments(video_id, only=segment)
        if not found:
            raise NotFound(f"video {video_id} has no segment {segment}")
        return found[0]

    def segment_of(self, video_id: str, frame: int) -> int:
        """The segment that a frame is in. Raises NotFound where the video has no such frame."""
        found = self.ask(
            "SELECT segment FROM idx.store.segments WHERE video_id = $id "
            "AND start_frame <= $frame AND $frame < start_frame + frames",
            {"id": video_id, "frame": frame},
        )
        if not found:
            video = self.video(video_id)
            raise NotFound(f"{video.name} has no frame {frame}: it has frames 0 to {video.frames - 1}")
        return int(found[0]["segment"])

    def segments(self, video_id: str, *, only: int | None = None) -> tuple[SegmentRecord, ...]:
        """All segments in order, or `only` one."""
        where = "WHERE video_id = $id"
        values: dict[str, Any] = {"id": video_id}
        if only is not None:
            where, values = f"{where} AND segment = $only", {"id": video_id, "only": only}
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
        """The footer of a weights, latents, routes or results file. Raises StoreError if there is none."""
        found = self.ask(
            "SELECT footer FROM idx.store.footers WHERE video_id = $id AND key = $key",
            {"id": owner_of(key), "key": key},
        )
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

    def weights_of(self, task: TaskRecord) -> WeightsPlace:
        """Where the weights of a registered task version are."""
        found = self._rows(
            "SELECT weights FROM idx.store.task_versions WHERE name = $name AND version = $version",
            {"name": task.name, "version": task.version},
        )
        place: WeightsPlace = found[0]["weights"]
        return place

    def stored_weights(self, task: TaskRecord) -> StoredObject | None:
        """The weights that the archive keeps with a task version; None where it keeps none."""
        key = task_weights_key(task.name, task.version)
        found = self._rows("FROM idx.store.objects WHERE owner = '' AND key = $key", {"key": key})
        return stored_object(found[0]) if found else None

    def stabilizer(self, name: str, version: str) -> StoredObject | None:
        """The stabilizer in force of a task version (or of `frames`, version PICTURES); None without one."""
        found = self._rows(
            "FROM idx.store.objects WHERE owner = '' AND replaced_at IS NULL AND starts_with(key, $folder)",
            {"folder": f"{STABILIZERS_PREFIX}{name}/{version}/"},
        )
        return stored_object(found[0]) if found else None

    def tasks(self) -> tuple[TaskRecord, ...]:
        """The newest version of every task, by name."""
        newest = "QUALIFY row_number() OVER (PARTITION BY name ORDER BY log_number DESC, version) = 1"
        return tuple(_task(row) for row in self._rows(f"FROM idx.store.tasks {newest} ORDER BY name"))

    def views(self) -> tuple[SavedView, ...]:
        """The saved views, by name."""
        return tuple(saved_view(row) for row in self._rows("FROM idx.store.views ORDER BY name"))

    # ------------------------------------------------------------ objects

    def objects(self, video_id: str | None = None, *, in_force: bool = True) -> list[StoredObject]:
        """All objects by key, or those of one video ("": of none). Not `in_force`: replaced ones too."""
        conditions = ["true" if video_id is None else "owner = $id"]
        conditions += ["replaced_at IS NULL"] if in_force else []
        found = self._rows(
            f"FROM idx.store.objects WHERE {' AND '.join(conditions)} ORDER BY key",
            {} if video_id is None else {"id": video_id},
        )
        return [stored_object(row) for row in found]

    def superseded(self, *, before: datetime) -> list[HeldObject]:
        """Objects that others replaced before that time, by key; no collection has removed them yet."""
        found = self._rows(
            "FROM idx.store.objects WHERE replaced_at < $before ORDER BY key", {"before": before}
        )
        return [held_object(row) for row in found]

    def held(self, keys: Iterable[str]) -> set[str]:
        """Those of `keys` that the log names, in force or waiting to be collected; the others are orphans."""
        values = {"keys": list(keys)}
        among = "SELECT unnest($keys::VARCHAR[])"
        return {
            row["key"]
            for row in self._rows(f"SELECT key FROM idx.store.objects WHERE key IN ({among})", values)
        }

    def base(self, video_id: str) -> Base:
        """This state, for a commit of the video to be prepared on."""
        kept = [obj for obj in self.objects(video_id) if obj.key.startswith(SOURCES_PREFIX)]
        state = self.state(video_id)
        return Base(
            number=self.number,
            stored=state is not None,
            fitted=state not in (None, "added"),
            latest_attempt=self.latest_attempt,
            source=kept[0] if kept else None,
        )

    def erased(self, *, after: int = -1) -> dict[str, int]:
        """Erased videos, also those stored again since, with the entry that erased them, if above `after`."""
        found = self._rows(
            "FROM idx.store.erased WHERE log_number > $after ORDER BY log_number", {"after": after}
        )
        return {row["video_id"]: row["log_number"] for row in found}

    def ask(self, sql: str, values: dict[str, Any]) -> list[Row]:
        """The rows of a query on `idx.store`, with values for its named parameters; of no TIMESTAMPTZ."""
        # As DuckDB's own rows: for few of them, half of what `_rows` takes is a second binding.
        with self.noticing_damage(), self._connection.cursor() as cursor:
            cursor.execute(sql, values)
            names = [name for name, *_ in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def _rows(self, sql: str, values: dict[str, Any] | None = None) -> list[Row]:
        # A cursor shares the attached files, and unlike a connection is not shared by threads.
        # Through Arrow: DuckDB's own rows need pytz for a TIMESTAMPTZ.
        with self.noticing_damage(), self._connection.cursor() as cursor:
            return list(cursor.sql(sql, params=values or {}).to_arrow_table().to_pylist())


def _release(connection: duckdb.DuckDBPyConnection, index: OpenIndex) -> None:
    connection.close()
    index.close()


def _damage(error: BaseException | None) -> str | None:
    """What DuckDB says of a damaged file, in one line; None for other errors."""
    while error is not None:
        text = str(error).partition("\n")[0]
        if isinstance(error, duckdb.Error) and ("Corrupt" in text or isinstance(error, _UNREADABLE)):
            return text
        error = error.__cause__
    return None


def _video(row: Row) -> IndexedVideo:
    same = IndexedVideo.__slots__
    audio = None
    if row["audio_key"]:
        audio = StoredObject(key=row["audio_key"], size_bytes=row["audio_bytes"], sha256=row["audio_sha256"])
    values = row | {
        "time_base": Fraction(row["time_base_num"], row["time_base_den"]),
        "average_fps": Fraction(row["fps_num"], row["fps_den"]),
        "pixel_aspect": row["aspect_num"] and Fraction(row["aspect_num"], row["aspect_den"]),
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
