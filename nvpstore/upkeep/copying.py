"""Copying videos from one archive into another: each verified, under a fresh attempt, in one commit."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import sqlglot
from filelock import FileLock
from sqlglot import exp
from sqlglot.errors import SqlglotError

from nvpstore.catalog import Catalog, Snapshot
from nvpstore.config import Settings
from nvpstore.errors import IntegrityError, NvpError, QueryError, StoreError, UsageError
from nvpstore.query.request import Request
from nvpstore.query.run import execute
from nvpstore.query.steps import Operators
from nvpstore.storage import keys
from nvpstore.storage.commit import (
    PreparedVideo,
    commit_routes,
    commit_stabilizer,
    commit_video,
    register_task,
)
from nvpstore.storage.tables import decode_manifest, decode_routes
from nvpstore.types import RouteRecord, StoredObject, TaskRecord, TaskRoutes
from nvpstore.upkeep.progress import Counter, OnProgress

_FILES = ("weights", "latents", "audio", "source")


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyFailure:
    """A video that could not be copied, and why."""

    video_id: str
    name: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyReport:
    """What a copy did. `bytes` were written for the `videos` copied; `skipped` ones were there already.

    Of `videos`, `replaced` took the place of another fit of the same source, and `completed` got routes only.
    `tasks` were registered for them.
    """

    source: str
    target: str
    videos: int
    replaced: int
    completed: int
    skipped: int
    tasks: int
    bytes: int
    failures: tuple[CopyFailure, ...]


def videos_where(
    snapshot: Snapshot,
    where: str | None,
    *,
    operators_factory: Callable[[], Operators],
    settings: Settings,
) -> list[str]:
    """Ids of the videos for which the SQL predicate `where` holds, over the columns of the `videos` view.

    It is treated as any user's SQL: read-only, bounded, without files or network. Raises QueryError.
    """
    if where is not None:
        _check_predicate(where)
    # On lines of its own, so that a comment in it ends before our parenthesis.
    sql = "SELECT video_id FROM videos" + (f" WHERE (\n{where}\n)" if where is not None else "")
    request = Request(sql=sql, snapshot=snapshot, operators_factory=operators_factory, settings=settings)
    result = execute(request)
    return sorted({str(video_id) for (video_id,) in result.fetchall()})


def _check_predicate(where: str) -> None:
    # Alone, it must be one whole expression: nothing that ends our SELECT and goes on otherwise.
    try:
        tree = sqlglot.parse_one(where, dialect="duckdb")
    except SqlglotError as cause:
        raise QueryError(f"--where {where!r} is no predicate: {str(cause).partition(chr(10))[0]}") from cause
    if not isinstance(tree, exp.Condition):
        raise QueryError(f"--where {where!r} is no predicate over the columns of videos")


def copy_videos(
    source: Catalog, target: Catalog, video_ids: Sequence[str], *, progress: OnProgress | None = None
) -> CopyReport:
    """Copy videos with their routes, tasks, sound, kept originals, name, tags, `recorded_at` and hold.

    Each becomes visible by one commit, its bytes verified on the way. A video whose content the target has
    already is skipped; what people say about it there stays. Killed anywhere, the same call again completes.
    One that fails is reported, and the others are copied. Raises UsageError where both are one archive.
    """
    if source.log.store.root == target.log.store.root:
        raise UsageError(f"{source.log.store.root}: cannot copy an archive into itself")
    copier = _Copier(source, target, video_ids, progress)
    for video_id in video_ids:
        copier.copy(video_id)
    return copier.report()


class _Copier:
    """One run. What is read of the source is its state when the run began."""

    def __init__(
        self, source: Catalog, target: Catalog, video_ids: Sequence[str], progress: OnProgress | None
    ) -> None:
        self._source, self._target = source, target
        self._from, self._to = source.log.store, target.log.store
        self._snapshot = source.snapshot()
        chosen = set(video_ids)
        sizes = {obj.key: obj.size_bytes for obj in self._snapshot.objects()}
        total = sum(size for key, size in sizes.items() if keys.parse_key(key).video_id in chosen)
        self._counter = Counter("copy", total, progress)
        self._videos = self._replaced = self._completed = self._skipped = self._tasks = self._bytes = 0
        self._failures: list[CopyFailure] = []

    def report(self) -> CopyReport:
        return CopyReport(
            source=self._from.root,
            target=self._to.root,
            videos=self._videos,
            replaced=self._replaced,
            completed=self._completed,
            skipped=self._skipped,
            tasks=self._tasks,
            bytes=self._bytes,
            failures=tuple(self._failures),
        )

    def copy(self, video_id: str) -> None:
        """Copy one video, or say in the report why not."""
        rest = sum(obj.size_bytes for obj in self._snapshot.objects(video_id))
        before = self._counter.done
        try:
            with _one_at_a_time(self._target.folder / "fits", video_id) as folder:
                self._copy(video_id, folder)
        except NvpError as error:
            self._failed(video_id, error)
        self._counter.add(rest - (self._counter.done - before))

    def _copy(self, video_id: str, folder: Path) -> None:
        # Before anything is fetched: an erasure that comes meanwhile is newer, and forbids the commit.
        there = self._target.snapshot()
        lacking = _lacking(self._snapshot, there, video_id)
        if not (self._snapshot.has_video(video_id) and lacking.anything):
            self._skipped += 1
            return
        objects = self._objects(video_id, lacking)
        routes = [decode_routes(self._from.get_verified(obj)) for obj in objects["routes"]]
        self._register_tasks(routes, there, folder)
        if lacking.files:
            self._commit_video(video_id, objects, routes, there, folder)
        else:
            for own in routes:
                commit_routes(self._target.log, own, self._target.snapshot().base(video_id))
        if _lacking(self._snapshot, self._target.snapshot(), video_id).anything:
            raise IntegrityError(f"video {video_id} in {self._to.root} differs from what was copied")
        self._videos += 1
        self._completed += not lacking.files
        self._replaced += lacking.files and there.has_video(video_id)
        self._bytes += sum(obj.size_bytes for found in objects.values() for obj in found)
        with suppress(StoreError):  # it only spares others work
            self._target.checkpoint()

    def _failed(self, video_id: str, error: NvpError) -> None:
        try:
            gone = not self._source.snapshot().has_video(video_id)
            settled = gone or not _lacking(self._snapshot, self._target.snapshot(), video_id).anything
        except NvpError:
            settled = False
        if settled:  # erased there, or stored here by somebody else, while it was on its way
            self._skipped += 1
        else:
            name = self._snapshot.video(video_id).name
            self._failures.append(CopyFailure(video_id=video_id, name=name, error=str(error)))

    def _objects(self, video_id: str, lacking: _Lacking) -> dict[str, list[StoredObject]]:
        """What is to be copied, by kind: all that is in force, or some routes."""
        found: dict[str, list[StoredObject]] = {"routes": []}
        for obj in self._snapshot.objects(video_id):
            parsed = keys.parse_key(obj.key)
            if lacking.files or parsed.version in lacking.routes:
                found.setdefault(parsed.kind, []).append(obj)
        return found

    def _commit_video(
        self,
        video_id: str,
        objects: Mapping[str, Sequence[StoredObject]],
        routes: Sequence[TaskRoutes],
        there: Snapshot,
        folder: Path,
    ) -> None:
        files: dict[str, Path] = {}
        for obj in (obj for kind in _FILES for obj in objects.get(kind, ())):
            files[obj.key] = folder / str(len(files))
            self._from.get_file(obj, files[obj.key])
            self._counter.add(obj.size_bytes)
        (manifest,) = objects["manifest"]
        prepared = PreparedVideo(
            video=decode_manifest(self._from.get_verified(manifest)),
            routes=tuple(routes),
            files=files,
            meta=self._snapshot.meta(video_id),
        )
        commit_video(self._target.log, prepared, there.base(video_id), replaces=True)

    def _register_tasks(self, routes: Sequence[TaskRoutes], there: Snapshot, folder: Path) -> None:
        for own in routes:
            if there.has_task(own.task, own.version):
                continue
            task = self._snapshot.task(own.task, own.version)
            register_task(self._target.log, task, weights=self._weights(task, folder))
            self._tasks += 1
        for own in routes:
            self._copy_stabilizer(own.task, own.version, there)

    def _copy_stabilizer(self, name: str, version: str, there: Snapshot) -> None:
        """Where the target has none of that version; its own stays."""
        stored = self._snapshot.stabilizer(name, version)
        if stored is None or there.stabilizer(name, version) is not None:
            return
        commit_stabilizer(
            self._target.log,
            name=name,
            version=version,
            data=self._from.get_verified(stored),
            later_than=there.latest_attempt,
        )

    def _weights(self, task: TaskRecord, folder: Path) -> Path | None:
        """A file with what the source keeps of the task's weights."""
        stored = self._snapshot.stored_weights(task)
        if stored is None:
            return None
        self._from.get_file(stored, folder / "weights")
        return folder / "weights"


# ---------------------------------------------------------------- what is where


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lacking:
    """What one archive has of a video and another has not: `files` (its fit), and task versions' `routes`."""

    files: bool
    routes: frozenset[str]

    @property
    def anything(self) -> bool:
        return self.files or bool(self.routes)


def _lacking(here: Snapshot, there: Snapshot, video_id: str) -> _Lacking:
    """By digests and figures: keys and attempts differ from archive to archive. A video that is fitted lacks
    nothing of one that is only added.
    """
    if here.state(video_id) == "added" and there.state(video_id) not in (None, "added"):
        return _Lacking(files=False, routes=frozenset())
    own, others = _digests(here, video_id), _digests(there, video_id)
    versions = {keys.parse_key(obj.key).version for obj in here.objects(video_id)} - {""}
    return _Lacking(
        files=not (there.has_video(video_id) and own <= others),
        routes=frozenset(
            version
            for version in versions
            if not _route_contents(here, video_id, version) <= _route_contents(there, video_id, version)
        ),
    )


def _digests(snapshot: Snapshot, video_id: str) -> set[tuple[str, str]]:
    kinds = ((keys.parse_key(obj.key).kind, obj.sha256) for obj in snapshot.objects(video_id))
    return {(kind, sha256) for kind, sha256 in kinds if kind in _FILES}


def _route_contents(snapshot: Snapshot, video_id: str, version: str) -> set[tuple[RouteRecord, str]]:
    found = snapshot.routes(video_id, version)
    return {(each.route, each.row_group.sha256 if each.row_group else "") for each in found}


@contextmanager
def _one_at_a_time(work_dir: Path, video_id: str) -> Iterator[Path]:
    """A folder for the video's files, empty before and gone afterwards. `rm` finds it by the video's id.

    Whoever stores the same video from this machine waits.
    """
    folder = work_dir / video_id / "copy"
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(work_dir / f"{video_id}.lock"):
            try:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(OSError):  # where an unfinished fit is, it stays
                    folder.parent.rmdir()
    except OSError as cause:
        raise StoreError(f"cannot work in {work_dir}: {cause.strerror}") from cause
