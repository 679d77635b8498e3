"""Objects as plain files: durable, and complete from the first moment that anyone can see them."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from nvpstore.errors import ObjectMissing, StoreError, UsageError
from nvpstore.storage.contract import (
    TEMPORARY_PREFIX,
    ObjectStore,
    check_key,
    check_length,
    opened_source,
    pieces,
    taken,
)
from nvpstore.storage.keys import attempt_time, new_attempt
from nvpstore.types import StoredObject

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted here",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "there is a folder of this name",
    errno.ENOTSUP: "this file system has no hard links, which puts need",
    errno.EMLINK: "this file system has no hard links, which puts need",
}

# How often a put begins anew because a sweep removed its folder, which was empty still.
_MOST_BEGINNINGS = 20


class LocalStore(ObjectStore):
    """A folder. It need not exist before the first put."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    @property
    def root(self) -> str:
        return str(self._folder)

    def put(self, key: str, data: bytes) -> StoredObject:
        return self._put(key, io.BytesIO(data))

    def put_file(self, key: str, path: Path) -> StoredObject:
        with opened_source(path) as file:
            return self._put(key, file)

    def get(self, key: str) -> bytes:
        with self._reading(key):
            return self._path(key).read_bytes()

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        with self._reading(key), self._path(key).open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), size_bytes, offset)
            # One pread may stop early (signals, 2 GiB): ask on until nothing comes.
            while len(data) < size_bytes:
                more = os.pread(file.fileno(), size_bytes - len(data), offset + len(data))
                if not more:
                    break
                data += more
        return check_length(data, key=key, root=self.root, offset=offset, size_bytes=size_bytes)

    def size(self, key: str) -> int:
        with self._reading(key):
            found = self._path(key).stat()
            if not stat.S_ISREG(found.st_mode):
                raise FileNotFoundError(key)
            return found.st_size

    def list(self, prefix: str = "") -> list[str]:
        folder, slash, name = prefix.rpartition("/")
        try:
            return sorted(_keys(self._folder / folder, folder + slash, name))
        except OSError as error:
            raise self._failed("list", prefix or "all objects", error) from error

    def delete(self, key: str) -> None:
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise self._failed("delete", key, error) from error

    def sweep_unfinished(self, prefix: str = "", *, before: datetime) -> int:
        """Remove temporary files by the time in their names, then folders that are empty.

        A put that was about to use such a folder makes it again. The root stays.
        """
        try:
            return self._sweep(self._folder / prefix.rpartition("/")[0], prefix, before)
        except OSError as error:
            raise self._failed("sweep", prefix or "all folders", error) from error

    def local_path(self, key: str) -> str | None:
        return str(self._path(key))

    def _put(self, key: str, file: BinaryIO) -> StoredObject:
        path = self._path(key)
        try:
            for _ in range(_MOST_BEGINNINGS):
                with contextlib.suppress(FileNotFoundError):
                    return self._put_once(key, path, file)
            return self._put_once(key, path, file)
        except OSError as error:
            self._remove_empty(path.parent)
            raise self._failed("write", key, error) from error

    def _put_once(self, key: str, path: Path, file: BinaryIO) -> StoredObject:
        """Raises FileNotFoundError where a sweep removed the folder or the temporary file meanwhile."""
        temporary = path.with_name(TEMPORARY_PREFIX + new_attempt())
        made = _make_folder(path.parent)
        try:
            obj = _write_synced(key, temporary, file)
            # Only now, with a file in it, can no sweep find the folder empty.
            for folder in made:
                _sync_folder(folder.parent)
            # A link fails if the name is taken, and never shows half a file.
            try:
                os.link(temporary, path)
            except FileExistsError:
                if not filecmp.cmp(temporary, path, shallow=False):
                    raise taken(key, root=self.root) from None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        # Also where another put of these bytes was first: its link may not have reached the disk yet.
        _sync_folder(path.parent)
        return obj

    def _sweep(self, base: Path, prefix: str, before: datetime) -> int:
        swept = 0
        for folder, _, names in os.walk(base, topdown=False, onerror=_refuse):
            below = "" if Path(folder) == self._folder else os.path.relpath(folder, self._folder) + "/"
            for name in names:
                if (below + name).startswith(prefix) and _begun_before(name, before):
                    Path(folder, name).unlink(missing_ok=True)
                    swept += 1
            if below and below.startswith(prefix):
                _remove_if_empty(Path(folder))
        return swept

    def _remove_empty(self, folder: Path) -> None:
        """Remove `folder` and those above it while they are empty, but not the root."""
        with contextlib.suppress(OSError):
            while folder != self._folder:
                folder.rmdir()
                folder = folder.parent

    def _path(self, key: str) -> Path:
        return self._folder / check_key(key)

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise ObjectMissing(f"{key} is missing in {self.root}") from None
        except OSError as error:
            raise self._failed("read", key, error) from error

    def _failed(self, verb: str, key: str, error: OSError) -> StoreError:
        reason = _REASONS.get(error.errno or 0) or error.strerror or type(error).__name__
        return StoreError(f"cannot {verb} {key} in {self.root}: {reason}")


def _keys(folder: Path, below: str, start: str = "") -> Iterator[str]:
    """Keys of all files under `folder`, whose own key prefix is `below`, with names from `start` on."""
    try:
        entries = list(os.scandir(folder))
    # A sweep may have removed it meanwhile; below a file there is nothing.
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if not entry.name.startswith(start):
            continue
        if entry.is_dir():
            yield from _keys(folder / entry.name, f"{below}{entry.name}/")
        elif not entry.name.startswith(TEMPORARY_PREFIX):
            yield below + entry.name


def _write_synced(key: str, path: Path, source: BinaryIO) -> StoredObject:
    found = hashlib.sha256()
    with path.open("xb") as file:
        for piece in pieces(source):
            found.update(piece)
            file.write(piece)
        size_bytes = file.tell()
        file.flush()
        os.fsync(file.fileno())
    return StoredObject(key=key, size_bytes=size_bytes, sha256=found.hexdigest())


def _make_folder(folder: Path) -> list[Path]:
    """Create `folder` and its parents; returns those made, which are to be recorded in the folders above."""
    if folder.is_dir():
        return []
    made = _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        made.append(folder)
    return made


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _begun_before(name: str, when: datetime) -> bool:
    """Whether a file of this name is a writer's temporary one from before `when`."""
    if not name.startswith(TEMPORARY_PREFIX):
        return False
    try:
        return attempt_time(name.removeprefix(TEMPORARY_PREFIX)) < when
    except UsageError:
        return False


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
