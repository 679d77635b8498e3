"""Fetched bytes on this machine's disk: named by digest, bounded, shared by processes, never needed.

    <folder>/<owner>/<sha256>    owner: the video that the bytes are of, else `shared`
    <folder>/.erased/<owner>     the number of the log entry that erased the video
    <folder>/.used, .lock        bytes put since the last count, and the lock of whoever counts

No failure here fails a read: what cannot be cached is fetched again. Only forgetting must succeed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from nvpstore.errors import StoreError
from nvpstore.storage.contract import TEMPORARY_PREFIX
from nvpstore.storage.keys import new_attempt, parse_key
from nvpstore.types import ByteRange

SHARED = "shared"  # the owner of what belongs to no single video
_ERASED, _USED, _LOCK, _TRASH = ".erased", ".used", ".lock", ".trash-"
_KEPT_SHARE = 0.8  # an eviction makes room for more than one put
_UNFINISHED_SECONDS = 3600.0  # after which a file that is still unfinished is a killed process's
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _CachedFile:
    """One file as the evictor sees it. `used` is its modification time, set at every read."""

    used: float
    size_bytes: int
    path: Path


class RangeCache:
    """The cache of one archive. Any number of threads and processes may share a folder."""

    def __init__(self, folder: Path, *, budget_bytes: int) -> None:
        """Nothing is created before the first put. A budget of 0 caches nothing."""
        self.folder = folder
        self.budget_bytes = budget_bytes
        self.damaged = 0  # files that this process found damaged and removed

    # ------------------------------------------------------------ reading and writing

    def get(self, wanted: ByteRange) -> bytes | None:
        """Exactly the bytes that were committed, or None. A damaged file is removed."""
        path = self.path_of(owner_of(wanted.key), wanted.sha256)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() != wanted.sha256:
            self._drop_damaged(path)
            return None
        _touch(path)
        return data

    def put(self, fetched: ByteRange, data: bytes, *, as_of: int) -> None:
        """Keep verified bytes. `as_of` is the log number that the reader knows of.

        Refused where the owner was erased at that number or later: a reader in flight brings nothing back.
        """
        owner = owner_of(fetched.key)
        if len(data) > self.budget_bytes or self.is_erased(owner, as_of=as_of):
            return
        with contextlib.suppress(OSError):
            self._make_room(len(data))
            with self._inside(owner) as folder:
                # Asked again with the folder open: whoever erases from now on takes this folder away.
                if not self.is_erased(owner, as_of=as_of):
                    _write_into(folder, fetched.sha256, data)

    def find(self, owner: str, sha256: str, *, size_bytes: int) -> Path | None:
        """A file that `adopt` put here, used from now on; only its size is checked."""
        path = self.path_of(owner, sha256)
        try:
            if path.stat().st_size == size_bytes:
                _touch(path)
                return path
        except OSError:
            return None
        self._drop_damaged(path)
        return None

    def temporary(self, owner: str) -> Path:
        """Where a file to adopt is written: it goes with its owner. Raises StoreError."""
        try:
            (self.folder / owner).mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise StoreError(f"cannot write to {self.folder}: {cause.strerror}") from cause
        return self.folder / owner / (TEMPORARY_PREFIX + new_attempt())

    def adopt(self, path: Path, owner: str, sha256: str, *, as_of: int) -> Path:
        """Take over a verified file made at `temporary`, even one above the budget. Raises StoreError."""
        target = self.path_of(owner, sha256)
        try:
            self._make_room(path.stat().st_size)
            with self._inside(owner) as folder:
                if self.is_erased(owner, as_of=as_of):
                    path.unlink()
                    raise StoreError(f"video {owner} was erased meanwhile")
                os.rename(path.name, sha256, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as cause:
            raise StoreError(f"cannot write {target}: {cause.strerror}") from cause
        return target

    @contextlib.contextmanager
    def in_use(self, path: Path) -> Iterator[None]:
        """While a file that `find` or `adopt` gave is read by its name: no process evicts it. Raises
        StoreError where it is gone already."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as cause:
            raise StoreError(f"cannot read {path}: {cause.strerror}") from cause
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)

    def path_of(self, owner: str, sha256: str) -> Path:
        return self.folder / owner / sha256

    # ------------------------------------------------------------ forgetting and checking

    def is_erased(self, owner: str, *, as_of: int) -> bool:
        """Whether `owner` was erased at log number `as_of` or later."""
        return self._erased_at(owner) >= as_of

    def forget(self, owner: str, *, erased_at: int) -> None:
        """Remove all bytes of `owner`; none come back from readers older than the log number `erased_at`.

        Raises StoreError where something cannot be removed.
        """
        try:
            # Made where there is none yet: the mark is for readers that have put nothing so far.
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / _LOCK):
                self._mark_erased(owner, erased_at)
                # A put in flight holds the folder open, not its name: what it still writes goes with it.
                with contextlib.suppress(FileNotFoundError):
                    (self.folder / owner).rename(self.folder / (_TRASH + new_attempt()))
                self._empty_trash()
        except OSError as cause:
            raise StoreError(f"cannot remove {owner} from {self.folder}: {cause.strerror}") from cause

    def owners(self) -> frozenset[str]:
        """Everyone who has bytes here."""
        return frozenset(folder.name for folder in self._owner_folders())

    def check(self) -> tuple[Path, ...]:
        """All files whose bytes are not those that their name says; nothing is removed."""
        return tuple(file.path for file in sorted(self._files(), key=_path) if not _is_sound(file.path))

    def _mark_erased(self, owner: str, number: int) -> None:
        if self._erased_at(owner) >= number:
            return
        tombstone = self.folder / _ERASED / owner
        tombstone.parent.mkdir(exist_ok=True)
        temporary = tombstone.with_name(TEMPORARY_PREFIX + new_attempt())
        temporary.write_text(str(number))
        temporary.replace(tombstone)

    def _erased_at(self, owner: str) -> int:
        try:
            return int((self.folder / _ERASED / owner).read_text())
        except FileNotFoundError:
            return -1
        except (OSError, ValueError):  # erased, who knows when
            return sys.maxsize

    def _empty_trash(self) -> None:
        for folder in self.folder.glob(_TRASH + "*"):
            while folder.exists():
                try:
                    shutil.rmtree(folder)
                except OSError as error:
                    # A put that has the folder open still may add a file between listing and removing.
                    if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                        raise

    def _drop_damaged(self, path: Path) -> None:
        self.damaged += 1
        with contextlib.suppress(OSError):
            path.unlink()

    # ------------------------------------------------------------ the budget

    def _make_room(self, size_bytes: int) -> None:
        """Counts bytes before they are written, and evicts where they are too many. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._add_used(size_bytes) > self.budget_bytes:
            self._evict(size_bytes)

    def _add_used(self, change: int) -> int:
        """The bytes in use after `change`, as all processes count them: at least those that are."""
        descriptor = os.open(self.folder / _USED, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # Per open file, so that threads of one process exclude each other too.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            text = os.pread(descriptor, 32, 0)
            # Never counted, or lost: too many, so that the next step is a count.
            used = int(text) if text.isdigit() else self.budget_bytes + 1
            used = max(0, used + change)
            os.pwrite(descriptor, b"%020d" % used, 0)
        finally:
            os.close(descriptor)
        return used

    def _evict(self, wanted_bytes: int) -> None:
        """Removes what was not used for longest. One process at a time; the others go on meanwhile."""
        try:
            with FileLock(self.folder / _LOCK, timeout=0):
                before = self._add_used(0)
                files = sorted(self._files(), key=_last_use)
                left = sum(file.size_bytes for file in files)
                if left + wanted_bytes > self.budget_bytes:
                    left = self._remove_oldest(files, left, self.budget_bytes * _KEPT_SHARE - wanted_bytes)
                self._add_used(left + wanted_bytes - before)
        except Timeout:
            return

    def _remove_oldest(self, files: list[_CachedFile], left: int, allowed_bytes: float) -> int:
        for file in files:
            if left <= allowed_bytes:
                break
            with contextlib.suppress(OSError):
                _unlink_unused(file.path)
                left -= file.size_bytes
            with contextlib.suppress(OSError):
                file.path.parent.rmdir()  # only where it was the last
        return left

    def _files(self) -> Iterator[_CachedFile]:
        """Every file that may go: unfinished ones only where nobody can be writing them any more."""
        now = time.time()
        for folder in self._owner_folders():
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):
                        file = _CachedFile(entry.stat().st_mtime, entry.stat().st_size, Path(entry.path))
                        unfinished = entry.name.startswith(TEMPORARY_PREFIX)
                        if not unfinished or file.used < now - _UNFINISHED_SECONDS:
                            yield file

    def _owner_folders(self) -> list[Path]:
        try:
            with os.scandir(self.folder) as entries:
                return [Path(e.path) for e in entries if e.is_dir() and not e.name.startswith(".")]
        except OSError:
            return []

    @contextlib.contextmanager
    def _inside(self, owner: str) -> Iterator[int]:
        """A descriptor of the owner's folder, which stays the same folder if its name is taken away."""
        (self.folder / owner).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / owner, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def owner_of(key: str) -> str:
    """The video that an object belongs to, else `shared`. Raises UsageError for a key of no archive."""
    return parse_key(key).video_id or SHARED


def _write_into(folder: int, name: str, data: bytes) -> None:
    temporary = TEMPORARY_PREFIX + new_attempt()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise


def _unlink_unused(path: Path) -> None:
    """Raises BlockingIOError for a file that is in use."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(descriptor)


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(path)


def _is_sound(path: Path) -> bool:
    if path.name.startswith(TEMPORARY_PREFIX):
        return True
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except FileNotFoundError:  # evicted since it was listed
        return True
    except OSError:
        return False
    return digest.hexdigest() == path.name


def _last_use(file: _CachedFile) -> float:
    return file.used


def _path(file: _CachedFile) -> Path:
    return file.path
