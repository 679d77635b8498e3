"""The index of an archive on this machine: immutable DuckDB files, a large base and a small delta on it.

One process builds a file, under a lock, from the newest usable ones and the entries since; then it is renamed
into place and everyone opens it read-only. The store is the truth: any file here can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from math import isqrt
from pathlib import Path

import duckdb
from filelock import FileLock, Timeout

from nvpstore.catalog import files, roots, tables
from nvpstore.catalog.files import BUILDING, OpenIndex, list_indexes, remove_files
from nvpstore.catalog.snapshot import Snapshot
from nvpstore.catalog.sync import Applied, apply_log
from nvpstore.catalog.workspace import IndexPosition, Workspace, read_tables
from nvpstore.config import load_settings
from nvpstore.errors import ArchiveError, IntegrityError, ObjectMissing, StoreError
from nvpstore.storage.checkpoints import (
    Checkpoint,
    fetch_checkpoint,
    list_checkpoints,
    put_checkpoint,
    write_checkpoint,
)
from nvpstore.storage.keys import check_video_id, new_attempt
from nvpstore.storage.log import Log
from nvpstore.storage.objects import ObjectStore
from nvpstore.storage.range_cache import RangeCache

_CHECKPOINT = ".checkpoint"  # the folder in which one is written
# Folders beside the index files that hold, by video id, what was fetched of a video. Fits have their own.
_CACHES = ("ranges", "originals")


class Catalog:
    """The index of one archive. Can be shared by threads.

    `cache_dir` is where index files live, in a folder a archive id (default: `$NVP_CACHE`, else
    `$XDG_CACHE_HOME/nvpstore`, else `~/.cache/nvpstore`).
    """

    def __init__(self, store: ObjectStore, cache_dir: str | Path | None = None) -> None:
        """Raises ArchiveError if the store holds no archive. Costs one request."""
        self._store = store
        self.log = Log(store)
        # Absolute: a snapshot outlives a change of the working folder.
        self._cache = Path(cache_dir or load_settings().cache_dir).expanduser().absolute()
        self._current: Snapshot | None = None
        self._one_thread = threading.Lock()
        remembered = roots.remembered(self._cache, store.root)
        if remembered is not None:
            self.archive_id = remembered
            self._current = self._newest()
        if self._current is None:
            self.archive_id = self.log.archive_id
            roots.remember(self._cache, store.root, self.archive_id)

    @property
    def folder(self) -> Path:
        """What this machine keeps of the archive."""
        return self._cache / self.archive_id

    def snapshot(self) -> Snapshot:
        """The archive as of the newest log entry. Raises IntegrityError for damaged stored objects."""
        with self._one_thread:
            if self._current is None:
                self._current = self._newest()
            if self._current is None or self._current.damaged or self._is_behind(self._current):
                self._current = self._built(from_scratch=False)
            return self._current

    def rebuild(self) -> Snapshot:
        """The same from nothing but log and objects. Raises IntegrityError also for a gap in the log."""
        with self._one_thread:
            self.log.check_complete()
            self._current = self._built(from_scratch=True)
            return self._current

    def checkpoint(self, *, force: bool = False) -> int | None:
        """Store a checkpoint of the newest entry, if enough came since the last one or by `force`.

        Returns its number, None if none was stored. It is for writers to call; readers need no checkpoint.
        """
        snapshot = self.snapshot()
        newest = next((found.number for found in list_checkpoints(self._store)), -1)
        if not force and snapshot.number - newest <= step(snapshot.number):
            return None
        with FileLock(self.folder / "checkpoint.lock"), self._folder(_CHECKPOINT) as folder:
            path = folder / "checkpoint.parquet"
            with snapshot.noticing_damage(), snapshot.connect() as connection:
                write_checkpoint(path, read_tables(connection))
            stored = put_checkpoint(self._store, snapshot.number, path)
        # An erasure that came meanwhile may have listed what to delete before this was there.
        if any(entry.kind == "erase" for entry in self.log.entries(after=snapshot.number)):
            self._store.delete(stored.key)
            return None
        return snapshot.number

    def check(self) -> None:
        """Read all of the newest index. Raises StoreError naming the file if it is damaged."""
        self.snapshot().check()

    def forget(self, video_id: str, *, number: int) -> None:
        """Drop what this machine keeps of a video that entry `number` erased.

        Raises StoreError if the log does not reach that far.
        """
        snapshot = self.snapshot()
        if snapshot.number < number:
            raise StoreError(
                f"entry {number} of {self._store.root} is not there: the newest is {snapshot.number}"
            )
        with FileLock(self.folder / "build.lock"):
            remove_files(self.folder, keep=snapshot.index.file.paths, in_use_too=True)
            self._remove_traces({video_id: number})

    # ------------------------------------------------------------ building

    def _is_behind(self, snapshot: Snapshot) -> bool:
        try:
            self.log.read(snapshot.number + 1)
        except ObjectMissing:
            return False
        return True

    def _built(self, *, from_scratch: bool) -> Snapshot:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "build.lock"):
                self._clean_up()
                start = None if from_scratch else self._newest() or self._from_checkpoint()
                # Another process may have built it while this one waited for the lock.
                if start is not None and not self._is_behind(start):
                    return start
                return self._build(start)
        except OSError as error:
            raise StoreError(f"cannot build the index in {self.folder}: {error.strerror or error}") from error
        except duckdb.Error as error:
            reason = str(error).partition("\n")[0]
            raise StoreError(f"cannot build the index in {self.folder}: {reason}") from error

    def _clean_up(self) -> None:
        """Remove what builders left that were killed, and files that turned out to be damaged."""
        for left_over in self.folder.glob(f"{BUILDING}*"):
            shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
        if self._current is not None and self._current.damaged:
            self._drop(self._current)

    def _drop(self, damaged: Snapshot) -> None:
        for path in damaged.index.file.paths:
            path.unlink(missing_ok=True)
        if damaged is self._current:
            self._current = None

    def _build(self, start: Snapshot | None) -> Snapshot:
        try:
            return self._advanced(start)
        except duckdb.Error:
            if start is None:
                raise
            # Most likely a damaged base, of which blocks are read that no query needed before.
            self._drop(start)
            return self._advanced(self._from_checkpoint())

    def _advanced(self, start: Snapshot | None) -> Snapshot:
        """The index of all entries, from `start` and those since."""
        after, digest = (start.number, start.digest) if start else (-1, "")
        with contextlib.closing(Workspace(self.folder, start.index if start else None)) as workspace:
            done = apply_log(workspace, self.log, after=after, checksum=digest)
            position = self._position(start, done)
            if start is None or done.erased or _outgrown(start, position.number, workspace.touched):
                file = files.base_file(self.folder, position.number, position.digest)
                self._write(file, lambda path: workspace.write_base(path, position))
            else:
                base = start.index.file.base or start.index.file
                file = files.delta_file(position.number, position.digest, base)
                self._write(file, lambda path: workspace.write_delta(path, position))
        snapshot = _opened(file)
        self._tidy(snapshot, before=None if done.erased else start)
        self._remove_traces(snapshot.erased(after=after), anew=start is None)
        return snapshot

    def _from_checkpoint(self) -> Snapshot | None:
        """A base from the newest checkpoint that is whole and of this log; None without one."""
        for checkpoint in list_checkpoints(self._store):
            # Derived from the log: whatever is wrong with one, an older one or the log itself will do.
            with contextlib.suppress(StoreError, ArchiveError, duckdb.Error):
                return self._imported(checkpoint)
        return None

    def _imported(self, checkpoint: Checkpoint) -> Snapshot:
        entry = self.log.read(checkpoint.number)
        file = files.base_file(self.folder, entry.number, entry.checksum)
        with (
            self._folder(f"{BUILDING}{new_attempt()}") as download,
            contextlib.closing(Workspace(self.folder, None)) as workspace,
        ):
            parquet = download / "checkpoint.parquet"
            fetch_checkpoint(self._store, checkpoint, parquet)
            found = workspace.checkpoint_position(parquet)
            if (found.archive_id, found.digest) != (self.archive_id, entry.checksum):
                raise IntegrityError(f"{checkpoint.key} is of another log")
            self._write(file, lambda path: workspace.write_checkpointed(path, parquet))
        snapshot = _opened(file)
        self._tidy(snapshot, before=None)
        self._remove_traces(snapshot.erased(), anew=True)
        return snapshot

    def _position(self, start: Snapshot | None, done: Applied) -> IndexPosition:
        if done.last is None:
            raise StoreError(
                f"the log of {self._store.root} ends before entry {start.number if start else 0}"
            )
        return IndexPosition(
            archive_id=self.archive_id,
            number=done.last.number,
            digest=done.last.checksum,
            grace_seconds=start.grace_seconds if start else done.grace_seconds or 0,
            latest_attempt=max(done.latest_attempt, start.latest_attempt if start else ""),
        )

    @contextlib.contextmanager
    def _folder(self, name: str) -> Iterator[Path]:
        """An empty folder for the time being."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, file: files.IndexFile, write: Callable[[Path], None]) -> None:
        temporary = self.folder / f"{BUILDING}{new_attempt()}.duckdb"
        try:
            write(temporary)
            os.replace(temporary, file.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    # ------------------------------------------------------------ files

    def _newest(self) -> Snapshot | None:
        """The newest index that belongs to this log and can be read, if any."""
        for file in list_indexes(self.folder):
            if self._current is not None and self._current.index.file == file:
                return self._current
            if not self._is_of_this_log(file):
                continue
            with contextlib.suppress(duckdb.Error, OSError):  # half written, damaged, or removed just now
                snapshot = _opened(file)
                if (snapshot.archive_id, snapshot.schema_version, snapshot.number) == (
                    self.archive_id, tables.SCHEMA_VERSION, file.number,
                ):  # fmt: skip
                    return snapshot
        return None

    def _is_of_this_log(self, file: files.IndexFile) -> bool:
        # A copied, restored or re-created root can have the same id and another history.
        # One whose entry is damaged is no proof of anything; reading the log will say what is wrong.
        try:
            return self.log.read(file.number).checksum.startswith(file.digest)
        except (ObjectMissing, IntegrityError):
            return False

    def _tidy(self, current: Snapshot, *, before: Snapshot | None) -> None:
        """Remove older files, but keep `before`, which others may be opening just now, and what is in use.

        Without `before` something may have been erased since the older files: then none of them stays.
        """
        keep = [path for index in (current, before) if index for path in index.index.file.paths]
        remove_files(self.folder, keep=keep, in_use_too=before is None)
        if before is None:
            self._remove_unfinished_checkpoint()

    def _remove_unfinished_checkpoint(self) -> None:
        # Whoever holds the lock is alive and removes the folder itself.
        with contextlib.suppress(Timeout), FileLock(self.folder / "checkpoint.lock", blocking=False):
            shutil.rmtree(self.folder / _CHECKPOINT, ignore_errors=True)

    def _remove_traces(self, erased: Mapping[str, int], *, anew: bool = False) -> None:
        """Remove what this machine keeps of videos, by the entry that erased each.

        `anew`: all that ever were; a fit that runs may be of one that is stored again since.
        """
        for kind in _CACHES:
            cache = RangeCache(self.folder / kind, budget_bytes=0)
            # Marks are for readers that are under way; on a machine that has no cache there are none.
            for video_id in erased if cache.folder.exists() else ():
                cache.forget(check_video_id(video_id), erased_at=erased[video_id])
        for video_id in erased:
            folder = self.folder / "fits" / check_video_id(video_id)
            if not anew:
                shutil.rmtree(folder, ignore_errors=True)
            elif folder.exists():
                with contextlib.suppress(Timeout), FileLock(folder.with_suffix(".lock"), blocking=False):
                    shutil.rmtree(folder, ignore_errors=True)


def step(number: int) -> int:
    """After how many entries a new base or checkpoint is due: what it costs grows with the archive."""
    return max(64, 2 * isqrt(number))


def _outgrown(start: Snapshot, number: int, touched: int) -> bool:
    base = start.index.file.base or start.index.file
    # One collection of garbage may touch thousands of videos, which each delta then would carry along.
    return number - base.number > step(number) or touched > 8 * step(number)


def _opened(file: files.IndexFile) -> Snapshot:
    index = OpenIndex(file)
    try:
        return Snapshot(index)
    except BaseException:
        index.close()
        raise
