"""`nvp add`, `nvp ingest`, `nvp fit`: videos in, registered or fitted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nvpstore.api.commands import remote
from nvpstore.api.commands.estimating import estimated
from nvpstore.api.commands.intake import (
    DEFAULT_TASKS,
    FILES,
    SUMMARY,
    Stored,
    add_fail_fast,
    add_file_options,
    add_fit_options,
    add_task_option,
    check_targets,
    named_files,
    one_after_another,
    one_file,
)
from nvpstore.api.commands.opening import Subparsers, open_archive, open_itself, open_server, served
from nvpstore.api.commands.spreading import (
    SPREAD,
    add_skip_known,
    add_spread_options,
    fit_spread,
    ingest_spread,
    is_spread,
)
from nvpstore.api.output import Output
from nvpstore.api.progress import AfterEstimate, ProgressLine, duration, size
from nvpstore.errors import UsageError
from nvpstore.upkeep.folders import RemoteVideo, VideoFile

if TYPE_CHECKING:
    from pathlib import Path

    from nvpstore.archive import Archive

INGEST = f"""\
Fits and stores videos; a rerun continues, and what is stored already is no work.

{FILES}
{SUMMARY};
a list unless FILE is one file.

With --estimate no archive is needed, but for tasks of its own; tasks are timed too. Its --json: path, kind
(static, moving, film), motion, cuts_a_minute, preset, device, frames, distinct (the share of them that show
something new, as far as was tried), segments, epochs, reached, seconds, stored_bytes; and of an hour of such
footage, at its rate (full_rate) and at 1 frame a second (one_a_second): frames_a_second, device_hours,
stored_bytes.

{SPREAD}"""
ADD = f"""\
Registers videos without fitting them, in about the time it takes to read them. Queries read the originals
until `nvp fit` or `nvp ingest` has fitted them.

{FILES}
{SUMMARY};
psnr, bpp and fit_seconds are null; a list unless FILE is one file.
"""
FIT = f"""\
Fits videos that were added, from their originals; a rerun continues. Without VIDEO and --videos, all of them.

{SUMMARY};
a list unless one VIDEO is named.

{SPREAD}"""


def add_ingest(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser(
        "ingest", help="fit and store videos; a rerun continues", description=INGEST, **options
    )
    add_file_options(parser)
    add_fit_options(parser)
    parser.add_argument(
        "--keep-source",
        choices=("reference", "copy", "none"),
        help="remember where the file is, copy it into the archive, or neither "
        "(default: reference; none where it is sent to a server)",
    )
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="store nothing: say what it would take here, by a look at each file and a short trial fit",
    )
    add_fail_fast(parser)
    add_spread_options(parser)
    add_skip_known(parser)
    parser.set_defaults(run=ingest)


def add_add(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser(
        "add", help="register videos without fitting them", description=ADD, **options
    )
    add_file_options(parser)
    add_task_option(parser)
    parser.add_argument(
        "--keep-source",
        choices=("reference", "copy"),
        help="remember where the file is, or copy it into the archive "
        "(default: reference; copy where it is sent to a server)",
    )
    add_fail_fast(parser)
    parser.set_defaults(run=add)


def add_fit(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser("fit", help="fit videos that were added", description=FIT, **options)
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="id, its beginning, or a unique name")
    parser.add_argument(
        "--videos",
        dest="where",
        metavar="SQL",
        help="those for which this holds, over the columns of the videos view",
    )
    add_fit_options(parser)
    parser.add_argument(
        "--keep-source",
        choices=("reference", "copy", "none"),
        help="from then on remember where the original is, copy it into the archive, or neither "
        "(default: as it is kept now)",
    )
    add_fail_fast(parser)
    add_spread_options(parser)
    parser.set_defaults(run=fit)


def ingest(args: argparse.Namespace, output: Output) -> None:
    if args.estimate:
        estimated(args, output)
        return
    if is_spread(args):
        ingest_spread(args, output)
        return
    videos, alone = named_files(args)
    store = remote.ingesting(open_server(args), args) if served(args) else _ingesting(open_itself(args), args)
    summaries = one_after_another(
        videos, store, output, alone=alone, fail_fast=args.fail_fast, empty="nothing was stored"
    )
    check_targets(summaries, strict=args.strict)


def add(args: argparse.Namespace, output: Output) -> None:
    videos, alone = named_files(args)
    store = remote.adding(open_server(args), args) if served(args) else _adding(open_itself(args), args)
    one_after_another(videos, store, output, alone=alone, fail_fast=args.fail_fast, empty="nothing was added")


def fit(args: argparse.Namespace, output: Output) -> None:
    if args.videos and args.where is not None:
        raise UsageError("VIDEO and --videos: give one or the other")
    where = [] if args.refit else ["state = 'added'"]
    # On lines of its own, so that a comment in it ends before our parenthesis.
    where += [] if args.where is None else [f"(\n{args.where}\n)"]
    if args.refit and not args.videos and args.where is None:
        raise UsageError("--refit: name each VIDEO, or choose with --videos")
    videos = args.videos or open_archive(args).videos_where(" AND ".join(where))
    if is_spread(args):
        fit_spread(args, list(videos), output)
        return
    store = remote.fitting(open_server(args), args) if served(args) else _fitting(open_itself(args), args)
    summaries = one_after_another(
        videos,
        store,
        output,
        alone=len(args.videos) == 1,
        fail_fast=args.fail_fast,
        empty="no video is only added",
    )
    check_targets(summaries, strict=args.strict)


def _ingesting(archive: Archive, args: argparse.Namespace) -> Callable[[VideoFile], Stored]:
    return lambda video: one_file(archive, video, lambda path: _ingest_file(archive, video, path, args))


def _adding(archive: Archive, args: argparse.Namespace) -> Callable[[VideoFile], Stored]:
    return lambda video: one_file(archive, video, lambda path: _add_file(archive, video, path, args))


def _fitting(archive: Archive, args: argparse.Namespace) -> Callable[[str], Stored]:
    return lambda ref: _fit_video(archive, ref, args)


def _ingest_file(archive: Archive, video: VideoFile, path: Path, args: argparse.Namespace) -> Stored:
    tasks = tuple(args.tasks or DEFAULT_TASKS)
    line = ProgressLine(sys.stderr)
    try:
        return archive.ingest(
            path,
            tasks=tasks,
            preset=args.preset,
            tags=dict(args.tags),
            name=args.name,
            recorded_at=args.recorded_at,
            device=args.device,
            keep_source=args.keep_source or "reference",
            source_uri=_uri(video),
            refit=args.refit,
            tone_map=args.tone_map,
            progress=AfterEstimate(line, lambda: _estimate(archive, str(video), path, args)),
        )
    finally:
        line.close()


def _add_file(archive: Archive, video: VideoFile, path: Path, args: argparse.Namespace) -> Stored:
    line = ProgressLine(sys.stderr)
    try:
        return archive.add(
            path,
            tasks=tuple(args.tasks or DEFAULT_TASKS),
            tags=dict(args.tags),
            name=args.name,
            recorded_at=args.recorded_at,
            keep_source=args.keep_source or "reference",
            source_uri=_uri(video),
            tone_map=args.tone_map,
            progress=AfterEstimate(line, lambda: f"{video}: reading it through"),
        )
    finally:
        line.close()


def _fit_video(archive: Archive, ref: str, args: argparse.Namespace) -> Stored:
    line = ProgressLine(sys.stderr)
    try:
        return archive.fit(
            ref,
            tasks=tuple(args.tasks or DEFAULT_TASKS),
            preset=args.preset,
            device=args.device,
            keep_source=args.keep_source,
            refit=args.refit,
            progress=AfterEstimate(line, lambda: _estimate(archive, ref, archive.original(ref), args)),
        )
    finally:
        line.close()


def _uri(video: VideoFile) -> str | None:
    return video.uri if isinstance(video, RemoteVideo) else None


def _estimate(archive: Archive, named: str, path: Path, args: argparse.Namespace) -> str:
    found = archive.estimate(
        path, preset=args.preset, tasks=tuple(args.tasks or DEFAULT_TASKS), device=args.device
    )
    return (
        f"{named}: {found.frames} frames, {found.segments} or more segments, "
        f"at most {duration(found.seconds)}, about {size(found.stored_bytes)}"
    )
