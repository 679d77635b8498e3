"""Objects behind any fsspec file system: memory:// and others. S3 has a store of its own."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import fsspec

from nvpstore.errors import ObjectMissing, StoreError
from nvpstore.storage.contract import (
    TEMPORARY_PREFIX,
    ObjectStore,
    check_key,
    check_length,
    describe,
    taken,
)
from nvpstore.storage.redaction import redacted, secrets_of, without_credentials
from nvpstore.storage.retries import DEADLINE_SECONDS, GivenUp, persistently
from nvpstore.types import StoredObject

T = TypeVar("T")

# In memory, fsspec looks and then writes, which two threads of this process may do at once.
_memory_puts = threading.Lock()

_LONGEST_REASON = 300

# Collecting a file system in a forked child would close its connections in an epoll set that the parent still
# waits on. So what a child inherits it keeps, and never uses.
_file_systems: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by id: some are equal
_inherited: list[Any] = []
os.register_at_fork(after_in_child=lambda: _inherited.extend(_file_systems.values()))


class RemoteStore(ObjectStore):
    """What stores behind fsspec share: one file system a process, patience, and errors without secrets.

    `deadline_seconds` (> 0) bounds how long one request is tried again.
    """

    def __init__(
        self,
        uri: str,
        storage_options: Mapping[str, Any] | None = None,
        *,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        self._uri = uri
        self._options = self._completed(dict(storage_options or {}))
        self._secrets = secrets_of(uri, storage_options or {})
        self._root = without_credentials(uri).rstrip("/")
        self._deadline_seconds = deadline_seconds
        self._opened: tuple[int, Any, str] = (0, None, "")
        self._base = self._open()[1]

    @property
    def root(self) -> str:
        return self._root

    @property
    def _fs(self) -> Any:
        return self._open()[0]

    def _open(self) -> tuple[Any, str]:
        """The file system and the root's path in it."""
        # Connections and the thread that serves them do not survive a fork.
        if self._opened[0] != os.getpid():
            try:
                fs, path = fsspec.core.url_to_fs(self._uri, **self._options)
            except (ImportError, ValueError, OSError) as error:
                raise self._failed("open", "the root", error) from None
            self._prepare(fs)
            _file_systems[id(fs)] = fs
            self._opened = (os.getpid(), fs, str(path).rstrip("/"))
        return self._opened[1:]

    def _completed(self, options: dict[str, Any]) -> dict[str, Any]:
        """The caller's options for the file system, with ours where they say nothing."""
        # Other processes write at the same time, so a listing is never kept.
        return {"use_listings_cache": False, **options}

    def _prepare(self, fs: Any) -> None:
        """Set what no option of the file system sets."""

    def _is_transient(self, error: BaseException) -> bool:
        """Whether the same request may succeed when it is sent again."""
        return isinstance(error, ConnectionError | TimeoutError)

    def _is_missing(self, error: Exception) -> bool:
        """Whether there is no such object."""
        return isinstance(error, FileNotFoundError)

    def _try(self, verb: str, key: str, action: Callable[[], T]) -> T:
        """Do `action`, again where that may help; its errors become ours, for `verb` and `key`."""
        try:
            return persistently(
                action, is_transient=self._is_transient, deadline_seconds=self._deadline_seconds
            )
        except StoreError:
            raise
        # File systems raise their client library's own types too, so that no list is complete.
        except Exception as error:
            if self._is_missing(error):
                raise ObjectMissing(f"{key} is missing in {self.root}") from None
            raise self._failed(verb, key, error) from self._cause(error)

    def _failed(self, verb: str, key: str, error: Exception) -> StoreError:
        last: BaseException = error
        tried = ""
        if isinstance(error, GivenUp):
            last = error.last
            tried = f" (given up after {error.attempts} attempts in {error.seconds:.0f} s)"
        reason = " ".join(redacted(str(last), self._secrets).split())[:_LONGEST_REASON].rstrip(". ")
        return StoreError(f"cannot {verb} {key} in {self.root}: {reason or type(last).__name__}{tried}")

    def _cause(self, error: BaseException | None) -> BaseException | None:
        """The error, to be chained, if no link of its chain would print a secret."""
        link = error
        while link is not None:
            if redacted(str(link), self._secrets) != str(link):
                return None
            link = link.__cause__ or link.__context__
        return error


class FsspecStore(RemoteStore):
    """A prefix of an fsspec file system.

    Puts rely on the file system's `mode="create"`, which is made atomic in memory by a lock of ours. Where
    fsspec only looks before it writes, two writers can race.
    """

    def put(self, key: str, data: bytes) -> StoredObject:
        path = self._path(key)

        def create() -> None:
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            try:
                with _memory_puts if "memory" in self._fs.protocol else contextlib.nullcontext():
                    self._fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                if bytes(self._fs.cat_file(path)) != data:
                    raise taken(key, root=self.root) from None

        self._try("write", key, create)
        return describe(key, data)

    def get(self, key: str) -> bytes:
        path = self._path(key)
        return self._try("read", key, lambda: bytes(self._fs.cat_file(path)))

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        path, end = self._path(key), offset + size_bytes
        data = self._try("read", key, lambda: bytes(self._fs.cat_file(path, start=offset, end=end)))
        return check_length(data, key=key, root=self.root, offset=offset, size_bytes=size_bytes)

    def size(self, key: str) -> int:
        path = self._path(key)

        def look() -> int:
            info = self._fs.info(path)
            if info["type"] != "file":
                raise FileNotFoundError(key)
            return int(info["size"])

        return self._try("read", key, look)

    def list(self, prefix: str = "") -> list[str]:
        folder = prefix.rpartition("/")[0]
        path = self._path(folder) if folder else self._base

        def find() -> Iterable[Any]:
            try:
                found: Iterable[Any] = self._fs.find(path)
            except FileNotFoundError:
                return ()
            return found

        paths = self._try("list", prefix or "all objects", find)
        keys = (str(path)[len(self._base) :].lstrip("/") for path in paths)
        return sorted(k for k in keys if k.startswith(prefix) and f"/{TEMPORARY_PREFIX}" not in f"/{k}")

    def delete(self, key: str) -> None:
        path = self._path(key)

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(path)

        self._try("delete", key, remove)

    def _path(self, key: str) -> str:
        return f"{self._base}/{check_key(key)}"
