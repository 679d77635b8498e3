"""The folder of videos on their way in: each in a folder of its own, gone when nobody needs it any more.

Produced by uploads (`uploads/<ULID>/<name>`), consumed by the workers, swept by who starts them.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from nvpstore.api.jobs.job import Job, JobState
from nvpstore.api.jobs.queue import JobQueue
from nvpstore.errors import SourceError, StoreError, UsageError
from nvpstore.storage.keys import new_attempt

STALE_SECONDS = 24 * 3600.0
NEW_SECONDS = 60.0  # in which a room that was made is held by who made it
HELD = ".held"  # in a room, locked while it is used
SPARE_BYTES = 256 * 2**20  # stay free on the disk
_LIVING: tuple[JobState, ...] = ("queued", "running")
_ENDED: tuple[JobState, ...] = ("done", "failed", "cancelled")
_ALL = 10**9


@contextlib.contextmanager
def room(spool_dir: Path) -> Iterator[Path]:
    """A new folder for one video, removed afterwards. Raises StoreError where it cannot be made."""
    folder = spool_dir / new_attempt()
    held = FileLock(folder / HELD)
    try:
        folder.mkdir(parents=True)
        held.acquire()
    except OSError as cause:
        raise StoreError(f"cannot write to {spool_dir}: {cause.strerror}") from cause
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        held.release()


def check_free(folder: Path, size_bytes: int) -> None:
    """Raises StoreError where the disk has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < size_bytes + SPARE_BYTES:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise StoreError(f"the disk is full: {size_bytes} bytes are needed, {free} are free") from full


def uploaded(spool_dir: Path, file: str) -> Path:
    """The upload that a job names. Raises UsageError where that is none, SourceError where it is gone."""
    path = Path(file)
    if _folder_of(spool_dir, file) is None or path.is_symlink():
        raise UsageError(f"{path.name}: is no upload of this server")
    if not path.is_file():
        raise SourceError(f"{path.name}: the upload is gone; send it again")
    return path


def drop(spool_dir: Path, job: Job) -> None:
    """Remove the upload of a job that has ended, if it had one."""
    folder = _folder_of(spool_dir, job.request.get("file"))
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(
    spool_dir: Path,
    queue: JobQueue,
    *,
    stale_seconds: float = STALE_SECONDS,
    clock: Callable[[], float] = time.time,
) -> list[Path]:
    """Remove what no living job needs: uploads of jobs that ended, rooms of processes that are gone, and what
    nobody wrote to for long.

    Returns what was removed. An upload that is still arriving, or whose job is about to be submitted, has
    been written to lately; a room is held for as long as it is used.
    """
    # Listed before the jobs are looked at: an upload that comes later is not even considered.
    folders = _folders(spool_dir)
    if not folders:
        return []
    living = _used(spool_dir, queue, _LIVING)
    ended = _used(spool_dir, queue, _ENDED)
    now = clock()
    left = [
        folder
        for folder in folders
        if folder not in living
        and (folder in ended or _written(folder) < now - _patience(folder, stale_seconds))
    ]
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
    return left


def _folder_of(spool_dir: Path, file: object) -> Path | None:
    """The folder of an upload, directly below the spool; None for anything else."""
    if not isinstance(file, str):
        return None
    folder = Path(os.path.realpath(file)).parent
    return folder if folder.parent == Path(os.path.realpath(spool_dir)) else None


def _folders(spool_dir: Path) -> list[Path]:
    root = Path(os.path.realpath(spool_dir))
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _used(spool_dir: Path, queue: JobQueue, states: tuple[JobState, ...]) -> set[Path]:
    jobs = [job for state in states for job in queue.jobs(state=state, limit=_ALL)]
    found = (_folder_of(spool_dir, job.request.get("file")) for job in jobs)
    return {folder for folder in found if folder is not None}


def _patience(folder: Path, stale_seconds: float) -> float:
    """For how long a folder of no job is left alone after it was written to."""
    if not (folder / HELD).exists():
        return stale_seconds
    try:
        with FileLock(folder / HELD, timeout=0):
            return NEW_SECONDS
    except (Timeout, OSError):
        return math.inf


def _written(folder: Path) -> float:
    """When something in the folder was last written to; the future where it is gone."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:
        return float("inf")
