"""Video files by name, folder, glob or object-store prefix; remote ones are fetched while they are needed."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout
from fsspec.utils import glob_translate

from nvpstore.errors import ObjectMissing, SourceError, StoreError, UsageError
from nvpstore.storage.contract import PIECE_BYTES, ObjectStore
from nvpstore.storage.objects import open_store

VIDEO_SUFFIXES = (
    ".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".flv", ".wmv",
    ".3gp", ".y4m",
)  # fmt: skip

_REMOTE = re.compile(r"(?!(?:file|local)://)[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalVideo:
    """A file on this machine."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteVideo:
    """An object `key` of `store`, whatever else that holds."""

    store: ObjectStore
    key: str

    @property
    def uri(self) -> str:
        """Where it is, without credentials."""
        return f"{self.store.root}/{self.key}"

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    def __str__(self) -> str:
        return self.uri


VideoFile = LocalVideo | RemoteVideo


def expand(inputs: Iterable[str]) -> list[VideoFile]:
    """The video files that `inputs` name, each once, in the order named; sorted where one names several.

    A file is taken whatever its suffix, and whether it is there or not. Of a folder (with all below it), a
    prefix such as `s3://bucket/prefix/`, and a glob (`*`, `?`, `[…]`, `**` for any folders) only files with
    one of VIDEO_SUFFIXES are taken, and none that is hidden or in a hidden folder. Raises UsageError for an
    input that names nothing, StoreError where a store cannot be listed.
    """
    found: dict[str, VideoFile] = {}
    for pattern in inputs:
        videos = _remote(pattern) if _REMOTE.match(pattern) else _local(pattern)
        if not videos:
            raise UsageError(f"no videos at {pattern}: looked for {' '.join(VIDEO_SUFFIXES)}")
        for video in videos:
            found.setdefault(str(video), video)
    return list(found.values())


@contextlib.contextmanager
def at_hand(video: VideoFile, folder: Path) -> Iterator[Path]:
    """The video as a local file; a remote one is streamed into `folder` and removed afterwards.

    What killed processes left in `folder` is removed too. Raises SourceError where a remote video is gone,
    StoreError where it cannot be fetched or written.
    """
    if isinstance(video, LocalVideo):
        yield video.path
        return
    with contextlib.ExitStack() as cleanup:
        try:
            path = _fetched(video, folder, cleanup)
        except ObjectMissing as cause:
            raise SourceError(f"{video} is gone") from cause
        except OSError as cause:
            raise StoreError(f"cannot write to {folder}: {cause.strerror or cause}") from cause
        yield path


# ---------------------------------------------------------------- on this machine


def _local(pattern: str) -> list[VideoFile]:
    path = Path(unquote(urlsplit(pattern).path) if "://" in pattern else pattern).expanduser()
    if path.is_dir():
        return [LocalVideo(path=found) for found in sorted(_below(path))]
    if path.exists() or not _MAGIC.search(str(path)):
        return [LocalVideo(path=path)]
    named: set[Path] = set()
    for match in map(Path, glob.iglob(str(path), recursive=True)):
        if match.is_dir():
            named |= set(_below(match))
        elif _is_video(match):
            named.add(match)
    return [LocalVideo(path=found) for found in sorted(named)]


def _below(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(where, name) for name in files if _is_video(Path(name)))


def _is_video(path: PurePath) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


# ---------------------------------------------------------------- in object stores


def _remote(uri: str) -> list[VideoFile]:
    magic = _MAGIC.search(uri)
    if magic is None and (file := _remote_file(uri)):
        return [file]
    # All below the last folder that is named in full.
    base = uri[: uri.rfind("/", 0, magic.start()) + 1] if magic else uri
    matches = re.compile(glob_translate(uri[len(base) :].rstrip("/") or "**")).match
    store = open_store(base)
    return [RemoteVideo(store=store, key=key) for key in store.list() if _is_named(key, matches)]


def _remote_file(uri: str) -> RemoteVideo | None:
    scheme, _, path = uri.partition("://")
    folder, _, name = path.rpartition("/")
    if not folder or not name:
        return None
    store = open_store(f"{scheme}://{folder}")
    return RemoteVideo(store=store, key=name) if store.exists(name) else None


def _is_named(key: str, matches: Callable[[str], object]) -> bool:
    """Whether a glob matches the key of a video, or one of the folders that it is in."""
    parts = PurePosixPath(key).parts
    if not _is_video(PurePosixPath(key)) or any(part.startswith(".") for part in parts):
        return False
    return any(matches("/".join(parts[:depth])) for depth in range(1, len(parts) + 1))


def _fetched(video: RemoteVideo, folder: Path, cleanup: contextlib.ExitStack) -> Path:
    own = folder / hashlib.sha256(video.uri.encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    cleanup.enter_context(FileLock(f"{own}.lock"))
    cleanup.callback(shutil.rmtree, own, ignore_errors=True)
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    path = own / video.name
    size_bytes = video.store.size(video.key)
    with path.open("xb") as file:
        for offset in range(0, size_bytes, PIECE_BYTES):
            file.write(video.store.get_range(video.key, offset, min(PIECE_BYTES, size_bytes - offset)))
    return path


def _sweep(folder: Path) -> None:
    """Remove what killed processes left; what is in use is locked."""
    for left in folder.iterdir():
        if left.is_dir():
            with contextlib.suppress(Timeout), FileLock(f"{left}.lock", timeout=0):
                shutil.rmtree(left, ignore_errors=True)
