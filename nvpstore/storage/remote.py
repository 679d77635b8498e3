"""Objects behind any fsspec file system: s3://, memory:// and others."""

from __future__ import annotations

import contextlib
import errno
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec

from nvpstore.errors import ObjectExists, ObjectMissing, StoreError
from nvpstore.storage.contract import TEMPORARY_PREFIX, ObjectStore, check_length, describe
from nvpstore.types import StoredObject

# In memory, fsspec looks and then writes, which two threads of this process may do at once.
_memory_puts = threading.Lock()

_LONGEST_REASON = 300
_SHORTEST_SECRET = 4


class RemoteStore(ObjectStore):
    """A prefix of an fsspec file system.

    Puts rely on the file system's `mode="create"`, which is atomic on S3 (If-None-Match) and, under a
    lock of ours, in memory. Where fsspec only looks before it writes, two writers can race.
    """

    def __init__(self, uri: str, storage_options: Mapping[str, Any] | None = None) -> None:
        options = dict(storage_options or {})
        self._secrets = _secrets_of(uri, options)
        self._root = _without_credentials(uri).rstrip("/")
        try:
            # Other processes write at the same time, so a listing is never kept.
            self._fs, path = fsspec.core.url_to_fs(uri, **{"use_listings_cache": False, **options})
        except (ImportError, ValueError, OSError) as error:
            raise self._failed("open", "the root", error) from None
        self._base = str(path).rstrip("/")

    @property
    def root(self) -> str:
        return self._root

    def put(self, key: str, data: bytes) -> StoredObject:
        try:
            self._make_folder(key)
            with _memory_puts if "memory" in _protocols(self._fs) else contextlib.nullcontext():
                self._fs.pipe_file(self._path(key), data, mode="create")
        except FileExistsError:
            raise self._exists(key) from None
        except Exception as error:
            # Some S3 servers answer a second create with what s3fs turns into EINVAL.
            if isinstance(error, OSError) and error.errno == errno.EINVAL and self.exists(key):
                raise self._exists(key) from None
            raise self._failed("write", key, error) from self._cause(error)
        return describe(key, data)

    def get(self, key: str) -> bytes:
        with self._reading(key):
            return bytes(self._fs.cat_file(self._path(key)))

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        with self._reading(key):
            try:
                data = bytes(self._fs.cat_file(self._path(key), start=offset, end=offset + size_bytes))
            except OSError as error:
                # S3 answers a range that starts behind the end with an error, not with nothing.
                if error.errno != errno.EINVAL or self.size(key) > offset:
                    raise
                data = b""
        return check_length(data, key=key, root=self.root, offset=offset, size_bytes=size_bytes)

    def size(self, key: str) -> int:
        with self._reading(key):
            info = self._fs.info(self._path(key))
            if info["type"] != "file":
                raise FileNotFoundError(key)
            return int(info["size"])

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except ObjectMissing:
            return False
        return True

    def list(self, prefix: str = "") -> list[str]:
        folder = prefix.rpartition("/")[0]
        try:
            paths = self._fs.find(self._path(folder) if folder else self._base)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._failed("list", prefix, error) from self._cause(error)
        keys = (str(path)[len(self._base) :].lstrip("/") for path in paths)
        return sorted(k for k in keys if k.startswith(prefix) and f"/{TEMPORARY_PREFIX}" not in f"/{k}")

    def delete(self, key: str) -> None:
        try:
            self._fs.rm_file(self._path(key))
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._failed("delete", key, error) from self._cause(error)

    def _path(self, key: str) -> str:
        if not key or any(part in ("", ".", "..") for part in key.split("/")):
            raise StoreError(f"{key!r} is no key: parts must be non-empty and neither '.' nor '..'")
        return f"{self._base}/{key}"

    def _make_folder(self, key: str) -> None:
        # S3 has no folders, and asking for one there might create a bucket.
        if "s3" not in _protocols(self._fs):
            self._fs.makedirs(self._path(key).rpartition("/")[0], exist_ok=True)

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise ObjectMissing(f"{key} is missing in {self.root}") from None
        except StoreError:
            raise
        # File systems raise their client library's own types too, so that no list is complete.
        except Exception as error:
            raise self._failed("read", key, error) from self._cause(error)

    def _exists(self, key: str) -> ObjectExists:
        return ObjectExists(f"{key} exists in {self.root}; objects are never overwritten")

    def _failed(self, verb: str, key: str, error: Exception) -> StoreError:
        reason = " ".join(self._redacted(str(error)).split())[:_LONGEST_REASON]
        return StoreError(f"cannot {verb} {key} in {self.root}: {reason or type(error).__name__}")

    def _cause(self, error: Exception) -> Exception | None:
        # A traceback prints the cause too, so a cause that names a secret is dropped.
        return error if self._redacted(str(error)) == str(error) else None

    def _redacted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return re.sub(r"(\w+://\S+?)\?\S*", r"\1", re.sub(r"://[^/@\s]*@", "://", text))


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _without_credentials(uri: str) -> str:
    return re.sub(r"://[^/]*@", "://", uri).partition("?")[0]


def _secrets_of(uri: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """All strings that no message may show: user information of the URI and every option's value."""
    found = re.findall(r"://([^/]*)@", uri)
    found += [part for text in found for part in text.split(":")]
    found += [uri.partition("?")[2], *_strings(options)]
    return tuple(sorted({text for text in found if len(text) >= _SHORTEST_SECRET}, key=len, reverse=True))


def _strings(value: object) -> list[str]:
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []
