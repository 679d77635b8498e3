"""`nvp add`, `nvp ingest`, `nvp fit` where the archive is a server's: files are sent, then waited for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nvpstore.api.commands.intake import DEFAULT_TASKS, Stored
from nvpstore.api.progress import ProgressLine
from nvpstore.errors import UsageError
from nvpstore.upkeep.folders import RemoteVideo, VideoFile

if TYPE_CHECKING:
    from pathlib import Path

    from nvpstore.client.remote import RemoteArchive


def ingesting(archive: RemoteArchive, args: argparse.Namespace) -> Callable[[VideoFile], Stored]:
    _check_offered(args)

    def store(video: VideoFile) -> Stored:
        with _progress() as line:
            return archive.ingest(
                _place(video),
                tasks=_tasks(args),
                preset=args.preset,
                tags=dict(args.tags),
                name=args.name,
                recorded_at=args.recorded_at,
                device=args.device,
                keep_source=args.keep_source,
                refit=args.refit,
                progress=line,
            )

    return store


def adding(archive: RemoteArchive, args: argparse.Namespace) -> Callable[[VideoFile], Stored]:
    _check_offered(args)

    def store(video: VideoFile) -> Stored:
        with _progress() as line:
            return archive.add(
                _place(video),
                tasks=_tasks(args),
                tags=dict(args.tags),
                name=args.name,
                recorded_at=args.recorded_at,
                keep_source=args.keep_source,
                progress=line,
            )

    return store


def fitting(archive: RemoteArchive, args: argparse.Namespace) -> Callable[[str], Stored]:
    def store(ref: str) -> Stored:
        with _progress() as line:
            return archive.fit(
                ref,
                tasks=_tasks(args),
                preset=args.preset,
                device=args.device,
                keep_source=args.keep_source,
                refit=args.refit,
                progress=line,
            )

    return store


def _check_offered(args: argparse.Namespace) -> None:
    if args.tone_map:
        raise UsageError("--tone-map: servers take SDR only; map the file, or store it in an archive here")


def _tasks(args: argparse.Namespace) -> tuple[str, ...]:
    return tuple(args.tasks or DEFAULT_TASKS)


def _place(video: VideoFile) -> Path | str:
    """Files of this machine are sent; the server fetches others itself."""
    return video.uri if isinstance(video, RemoteVideo) else video.path


@contextmanager
def _progress() -> Iterator[ProgressLine]:
    line = ProgressLine(sys.stderr)
    try:
        yield line
    finally:
        line.close()
