"""The index of an archive on this machine: one immutable DuckDB file a log number.

One process builds a file, under a lock, from the newest usable one and the entries since; then it is renamed
into place and everyone opens it read-only. The store is the truth: any file here can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import threading
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import duckdb
from filelock import FileLock

from nvpstore.catalog.snapshot import Snapshot
from nvpstore.catalog.sync import apply_entries
from nvpstore.config import load_settings
from nvpstore.errors import ObjectMissing, StoreError
from nvpstore.storage.keys import check_attempt, new_attempt
from nvpstore.storage.log import open_log
from nvpstore.storage.objects import ObjectStore

_KEPT = 2  # files kept though nobody holds them: the newest, and the one that others may be opening
_DIGEST = 12
_NAME = re.compile(rf"index-(\d+)-([0-9a-f]{{{_DIGEST}}})\.duckdb")
_BUILDING = ".building-"

_SCHEMA = resources.files("nvpstore.catalog").joinpath("schema.sql").read_text()
# A file of another release is not used: any change of the schema changes this number.
_SCHEMA_VERSION = int(hashlib.sha256(_SCHEMA.encode()).hexdigest()[:7], 16)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class _IndexFile:
    number: int
    digest: str
    path: Path


class Catalog:
    """The index of one archive. Can be shared by threads.

    `cache_dir` is where index files live, in a folder a archive id (default: `$NVP_CACHE`, else
    `$XDG_CACHE_HOME/nvpstore`, else `~/.cache/nvpstore`).
    """

    def __init__(self, store: ObjectStore, cache_dir: str | Path | None = None) -> None:
        """Raises ArchiveError if the store holds no archive."""
        self._store = store
        self._log = open_log(store)
        self.archive_id = check_attempt(self._log.read(0).subject)
        # Absolute: a snapshot outlives a change of the working folder.
        self.folder = Path(cache_dir or load_settings().cache_dir).expanduser().absolute() / self.archive_id
        self._current: Snapshot | None = None
        self._one_thread = threading.Lock()

    def snapshot(self) -> Snapshot:
        """The archive as of the newest log entry. Raises IntegrityError for damaged stored objects."""
        with self._one_thread:
            if self._current is None:
                self._current = self._newest()
            if self._current is None or self._is_behind(self._current):
                self._current = self._built(from_scratch=False)
            return self._current

    def rebuild(self) -> Snapshot:
        """The same from nothing but the store. Raises IntegrityError also for a gap in the log."""
        with self._one_thread:
            self._log.check_complete()
            self._current = self._built(from_scratch=True)
            return self._current

    def _is_behind(self, snapshot: Snapshot) -> bool:
        return next(self._log.entries(after=snapshot.number), None) is not None

    def _built(self, *, from_scratch: bool) -> Snapshot:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "build.lock"):
                base = None if from_scratch else self._newest()
                # Another process may have built it while this one waited for the lock.
                if base is not None and not self._is_behind(base):
                    return base
                snapshot = self._build(base)
                self._remove_unused(snapshot)
                return snapshot
        except OSError as error:
            raise StoreError(f"cannot build the index in {self.folder}: {error.strerror or error}") from error
        except duckdb.Error as error:
            reason = str(error).partition("\n")[0]
            raise StoreError(f"cannot build the index in {self.folder}: {reason}") from error

    def _build(self, base: Snapshot | None) -> Snapshot:
        for left_over in self.folder.glob(f"{_BUILDING}*"):  # of builders that were killed
            left_over.unlink()
        temporary = self.folder / f"{_BUILDING}{new_attempt()}.duckdb"
        try:
            number, digest = self._write(temporary, base)
            path = self.folder / f"index-{number}-{digest[:_DIGEST]}.duckdb"
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        snapshot = _opened(path)
        if snapshot is None:
            raise StoreError(f"{path} was removed while it was opened; try again")
        return snapshot

    def _write(self, path: Path, base: Snapshot | None) -> tuple[int, str]:
        """Write the index to `path`. Returns the number and checksum of the last entry in it."""
        if base is not None:
            shutil.copyfile(base.path, path)
        with duckdb.connect(str(path)) as connection:
            if base is None:
                connection.execute(_SCHEMA)
            after = base.number if base else -1
            last = apply_entries(connection, self._store, self._log.entries(after=after))
            number, digest = (last.number, last.checksum) if last else (after, base.digest if base else "")
            connection.execute("DELETE FROM store.snapshot")
            connection.execute(
                "INSERT INTO store.snapshot VALUES (?, ?, ?, ?)",
                [self.archive_id, number, digest, _SCHEMA_VERSION],
            )
        _sync(path)
        return number, digest

    def _newest(self) -> Snapshot | None:
        """The newest file that belongs to this log and can be read, if any."""
        for file in self._files():
            if not self._is_of_this_log(file):
                continue
            with contextlib.suppress(duckdb.Error, OSError):  # half written, damaged, or removed just now
                snapshot = _opened(file.path)
                if snapshot and (snapshot.archive_id, snapshot.schema_version, snapshot.number) == (
                    self.archive_id, _SCHEMA_VERSION, file.number,
                ):  # fmt: skip
                    return snapshot
        return None

    def _files(self) -> list[_IndexFile]:
        """All index files of the archive id, newest first."""
        matches = [(_NAME.fullmatch(path.name), path) for path in self.folder.glob("index-*.duckdb")]
        files = [_IndexFile(number=int(m[1]), digest=m[2], path=path) for m, path in matches if m]
        return sorted(files, reverse=True)

    def _is_of_this_log(self, file: _IndexFile) -> bool:
        # A copied, restored or re-created root can have the same id and another history.
        try:
            return self._log.read(file.number).checksum.startswith(file.digest)
        except ObjectMissing:
            return False

    def _remove_unused(self, current: Snapshot) -> None:
        others = [file.path for file in self._files() if file.path != current.path]
        for path in others[_KEPT - 1 :]:
            with contextlib.suppress(OSError), path.open("rb") as file:
                # Fails while any snapshot holds its shared lock.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _opened(path: Path) -> Snapshot | None:
    """Open an index file and keep it from being removed; None if that happened first."""
    in_use = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(in_use, fcntl.LOCK_SH)
        if os.fstat(in_use).st_ino == path.stat().st_ino:
            return Snapshot(path, in_use=in_use)
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(in_use)
        raise
    os.close(in_use)
    return None


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
