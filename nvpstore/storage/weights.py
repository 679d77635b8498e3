"""Weights of tasks that an archive keeps, as files for whoever builds their backbones.

<folder>/<sha256>.safetensors    fetched or about to be stored; shared by processes
<folder>/.lock                   held while one is written, and what killed writers left is removed
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from nvpstore.errors import ObjectMissing, StoreError, TaskError
from nvpstore.storage import keys
from nvpstore.storage.contract import TEMPORARY_PREFIX, ObjectStore
from nvpstore.types import StoredObject

FOLDER = "weights"  # of what a machine keeps of an archive


class WeightsOf(Protocol):
    """A task version, as its spec says it."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def weights_sha256(self) -> str: ...


def weights_file(store: ObjectStore, task: WeightsOf, *, folder: Path | None) -> Path:
    """The weights that the archive keeps with a task: its own file, or one fetched once into `folder`.

    What was fetched is verified. Raises TaskError where the archive keeps none, StoreError where they cannot
    be fetched or written.
    """
    key = keys.task_weights_key(task.name, task.version)
    if (local := store.local_path(key)) is not None and Path(local).is_file():
        return Path(local)
    if local is not None:
        raise _absent(store, task)
    if folder is None:
        raise TaskError(f"{_named(task)}: no cache folder to fetch its weights to")

    def fetch(path: Path) -> None:
        try:
            wanted = StoredObject(key=key, size_bytes=store.size(key), sha256=task.weights_sha256)
        except ObjectMissing:
            raise _absent(store, task) from None
        store.get_file(wanted, path)

    return _kept(folder, task.weights_sha256, fetch)


def keep_weights(folder: Path, data: bytes) -> Path:
    """A file in `folder` with `data`, the bytes of a safetensors file. Raises StoreError."""

    def write(path: Path) -> None:
        temporary = path.with_name(TEMPORARY_PREFIX + path.name)
        temporary.write_bytes(data)
        temporary.replace(path)

    return _kept(folder, hashlib.sha256(data).hexdigest(), write)


def _kept(folder: Path, sha256: str, make: Callable[[Path], None]) -> Path:
    path = folder / f"{sha256}.safetensors"
    if _is_sound(path, sha256):
        return path
    with _alone(folder):
        if not _is_sound(path, sha256):  # another process may have made it while this one waited
            make(path)
    return path


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            for left in folder.glob(f"{TEMPORARY_PREFIX}*"):
                left.unlink(missing_ok=True)
            yield
    except OSError as cause:
        raise StoreError(f"cannot write to {folder}: {cause.strerror or type(cause).__name__}") from cause


def _is_sound(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


def _absent(store: ObjectStore, task: WeightsOf) -> TaskError:
    return TaskError(f"{_named(task)}: its weights are neither in a package nor in {store.root}")


def _named(task: WeightsOf) -> str:
    return f"task {task.name}@{task.version[:8]}"
