"""Clips on disk: each made once for all who wait for it, and kept while there is room.

    <folder>/<video>/<attempt>-<start>-<end>.mp4

All methods but `forget` are for the event loop's thread.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path

from anyio import CapacityLimiter, to_thread

from nvpstore.api.jobs.spool import check_free
from nvpstore.api.service.problems import Refused

AT_ONCE = 2  # clips in the making; more would only make each other slow
LOOK_SECONDS = 0.5  # how often those who wait look whether anybody still waits for their answer
RETRY_SECONDS = 5

Export = Callable[[Path, Callable[[int], None]], object]  # raising in the second stops it
Exists = Callable[[str], bool]


class _Stopped(Exception):
    """Nobody waits for this clip any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipName:
    """A part of a video as one attempt stored it, in seconds; None: from its start, to its end.

    `steady` tells by which stabilizer it is made steady, if at all; `upscale` how many times as large as
    the source it is.
    """

    video_id: str
    attempt: str
    start: float | None
    end: float | None
    steady: str = ""
    upscale: int = 1

    @property
    def path(self) -> Path:
        steady = f"-{self.steady}" if self.steady else ""
        larger = f"-x{self.upscale}" if self.upscale > 1 else ""
        return Path(self.video_id, f"{self.attempt}-{self.start}-{self.end}{steady}{larger}.mp4")


@dataclass(slots=True, kw_only=True)
class _Making:
    task: asyncio.Task[None]
    stop: threading.Event
    waiting: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    used: float
    size_bytes: int
    path: Path


class ClipStore:
    """`exists` says whether the archive still has a video: of others nothing is kept."""

    def __init__(self, folder: Path, *, budget_bytes: int, exists: Exists, at_once: int = AT_ONCE) -> None:
        self._folder, self._budget_bytes, self._exists = folder, budget_bytes, exists
        self._at_once = at_once
        self._threads = CapacityLimiter(at_once)
        self._making: dict[Path, _Making] = {}
        self._held: Counter[Path] = Counter()
        for left in folder.glob("*/.*.part"):  # of a server that was killed
            left.unlink(missing_ok=True)

    async def hold(self, name: ClipName, export: Export, *, gone: Callable[[], Awaitable[bool]]) -> Path:
        """The clip's file, which stays until it is released; `export` makes it where there is none.

        `gone` says whether the caller waits no more. Raises Refused where too many are in the making, and
        what `export` raises.
        """
        path = self._folder / name.path
        while not path.exists():
            making = self._making.get(path) or self._begin(path, export)
            if making.stop.is_set():  # others gave it up just now: it ends, and is begun anew
                await asyncio.wait({making.task})
                await asyncio.sleep(0)  # until `_made` has been called
                continue
            await _wait_for(making, gone)
        self._held[path] += 1
        with suppress(OSError):  # by the time of access it is known what was not used for longest
            os.utime(path, (time.time(), path.stat().st_mtime))
        return path

    def release(self, path: Path) -> None:
        self._held[path] -= 1
        if not self._held[path]:
            del self._held[path]

    def forget(self, video_id: str) -> None:
        """Remove all clips of a video that was erased."""
        shutil.rmtree(self._folder / video_id, ignore_errors=True)

    def _begin(self, path: Path, export: Export) -> _Making:
        if len(self._making) >= self._at_once:
            raise Refused(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{len(self._making)} clips are in the making, as many as may be: try again later",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        stop = threading.Event()
        making = _Making(task=asyncio.create_task(self._make(path, export, stop)), stop=stop)
        self._making[path] = making
        making.task.add_done_callback(partial(self._made, path))
        return making

    async def _make(self, path: Path, export: Export, stop: threading.Event) -> None:
        await to_thread.run_sync(_write, path, export, stop, limiter=self._threads)
        for old in await to_thread.run_sync(self._superfluous, path, limiter=self._threads):
            if old not in self._held:
                old.unlink(missing_ok=True)

    def _made(self, path: Path, task: asyncio.Task[None]) -> None:
        del self._making[path]
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody may have

    def _superfluous(self, newest: Path) -> list[Path]:
        """What to remove: clips of videos that are gone, of earlier attempts, and what was not used for
        longest."""
        files = [file for file in map(_file, self._folder.glob("*/*.mp4")) if file is not None]
        attempt = newest.name.partition("-")[0]
        lost = {video for video in {file.path.parent for file in files} if not self._exists(video.name)}
        stale = [
            file
            for file in files
            if file.path.parent in lost
            or (file.path.parent == newest.parent and not file.path.name.startswith(f"{attempt}-"))
        ]
        kept = sorted((file for file in files if file not in stale), key=lambda file: file.used)
        beyond = sum(file.size_bytes for file in kept) - self._budget_bytes
        for file in kept:
            if beyond > 0 and file.path != newest:
                stale.append(file)
                beyond -= file.size_bytes
        return [file.path for file in stale]


async def _wait_for(making: _Making, gone: Callable[[], Awaitable[bool]]) -> None:
    """Until it is made. Where the last one who waits goes away, it is stopped."""
    making.waiting += 1
    try:
        while not making.task.done():
            await asyncio.wait({making.task}, timeout=LOOK_SECONDS)
            if not making.task.done() and await gone():
                raise Refused(HTTPStatus.REQUEST_TIMEOUT, "the caller went away")
        making.task.result()
    finally:
        making.waiting -= 1
        if not making.waiting:
            making.stop.set()


def _write(path: Path, export: Export, stop: threading.Event) -> None:
    def going_on(_: int) -> None:
        if stop.is_set():
            raise _Stopped
        check_free(path.parent, 0)

    path.parent.mkdir(parents=True, exist_ok=True)
    export(path, going_on)


def _file(path: Path) -> _File | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return _File(used=found.st_atime, size_bytes=found.st_size, path=path)
