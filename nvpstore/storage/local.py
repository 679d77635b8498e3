"""Objects as plain files: durable, and complete from the first moment that anyone can see them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from nvpstore.errors import ObjectExists, ObjectMissing, StoreError
from nvpstore.storage.contract import TEMPORARY_PREFIX, ObjectStore, check_length, describe
from nvpstore.storage.keys import new_attempt
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


class LocalStore(ObjectStore):
    """A folder. It need not exist before the first put."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    @property
    def root(self) -> str:
        return str(self._folder)

    def put(self, key: str, data: bytes) -> StoredObject:
        path = self._path(key)
        temporary = path.with_name(TEMPORARY_PREFIX + new_attempt())
        try:
            _make_folder(path.parent)
            try:
                _write_synced(temporary, data)
                # A link fails if the name is taken, and never shows half a file.
                os.link(temporary, path)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()
            _sync_folder(path.parent)
        except FileExistsError:
            raise ObjectExists(f"{key} exists in {self.root}; objects are never overwritten") from None
        except OSError as error:
            raise self._failed("write", key, error) from error
        return describe(key, data)

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

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except ObjectMissing:
            return False
        return True

    def list(self, prefix: str = "") -> list[str]:
        base = self._folder / prefix.rpartition("/")[0]
        keys = (path.relative_to(self._folder).as_posix() for path in self._files(base))
        return sorted(key for key in keys if key.startswith(prefix))

    def delete(self, key: str) -> None:
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise self._failed("delete", key, error) from error

    def local_path(self, key: str) -> str | None:
        return str(self._path(key))

    def _path(self, key: str) -> Path:
        if not key or any(part in ("", ".", "..") for part in key.split("/")):
            raise StoreError(f"{key!r} is no key: parts must be non-empty and neither '.' nor '..'")
        return self._folder / key

    def _files(self, base: Path) -> Iterator[Path]:
        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise self._failed("list", str(base.relative_to(self._folder)), error) from error

        for folder, _, names in os.walk(base, onerror=refuse):
            yield from (Path(folder, name) for name in names if not name.startswith(TEMPORARY_PREFIX))

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


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _make_folder(folder: Path) -> None:
    """Create `folder` and its parents, each recorded durably in the folder above it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
