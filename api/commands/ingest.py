"""`nvp ingest`: files, folders, globs and object-store prefixes in, one video each."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from nvpstore.api.commands.opening import Subparsers, instant, open_archive, tag
from nvpstore.api.output import Output
from nvpstore.api.progress import AfterEstimate, ProgressLine, duration, size
from nvpstore.errors import SourceError, UsageError
from nvpstore.upkeep.folders import VIDEO_SUFFIXES, RemoteVideo, VideoFile, at_hand, expand

if TYPE_CHECKING:
    from pathlib import Path

    from nvpstore.archive import Archive, VideoSummary

# Those of Archive.ingest; spelled out, since help must not load the archive.
DEFAULT_PRESET = "demo"
DEFAULT_TASKS = ("labels",)

DESCRIPTION = f"""\
Fits and stores videos; a rerun continues, and what is stored already is no work.

FILE is a video file, a folder (with all below it), a glob such as 'cam?/**/*.mp4', or the same in an object
store: s3://bucket/clip.mp4, s3://bucket/prefix/, 's3://bucket/**/*.mp4'. Of folders, prefixes and globs
these are taken: {" ".join(VIDEO_SUFFIXES)}

--json: video_id, name, state, frames, psnr, bpp, stored_bytes, source_bytes, fit_seconds, already_stored;
a list unless FILE is one file.
"""


def add_ingest(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser(
        "ingest", help="fit and store videos; a rerun continues", description=DESCRIPTION, **options
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="file, folder, glob or prefix")
    parser.add_argument(
        "--preset", default=DEFAULT_PRESET, metavar="NAME", help="how to fit (default: %(default)s)"
    )
    parser.add_argument(
        "--task",
        action="append",
        dest="tasks",
        metavar="NAME",
        help="task to prepare; repeatable (default: labels)",
    )
    parser.add_argument(
        "--tag", action="append", dest="tags", type=tag, default=[], metavar="K=V", help="tag; repeatable"
    )
    parser.add_argument(
        "--name", metavar="NAME", help="name of the video (default: the file's; one video only)"
    )
    parser.add_argument(
        "--recorded-at",
        type=instant,
        metavar="TIME",
        help="when the first frame was recorded: ISO 8601; UTC where it names no zone",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    parser.add_argument(
        "--keep-source",
        choices=("reference", "copy", "none"),
        default="reference",
        help="remember where the file is, copy it into the archive, or neither (default: reference)",
    )
    parser.add_argument("--refit", action="store_true", help="fit again what is stored already")
    parser.add_argument(
        "--strict", action="store_true", help="fail where a video stays below its PSNR target"
    )
    parser.add_argument(
        "--fail-fast", action="store_true", help="stop at the first file that is no video, of several"
    )
    parser.set_defaults(run=ingest)


def ingest(args: argparse.Namespace, output: Output) -> None:
    videos = expand(args.files)
    if args.name is not None and len(videos) > 1:
        raise UsageError(f"--name with {len(videos)} files: name one file at a time")
    archive = open_archive(args)
    # One file that is named in full is one document, whatever a folder happens to hold.
    alone = len(videos) == 1 and [videos[0].name] == [name.rpartition("/")[2] for name in args.files]
    summaries, failures = [], []
    for video in videos:
        try:
            summaries.append(_ingest_one(archive, video, args))
        except SourceError as error:
            if args.fail_fast or len(videos) == 1:
                raise
            failures.append(str(error))
    value = summaries[0] if alone else summaries
    output.done(value, text="\n".join(_sentence(summary) for summary in summaries) or "nothing was stored")
    if failures:
        raise SourceError(f"{len(failures)} of {len(videos)} files failed: {'; '.join(failures)}")
    below = [s.name for s in summaries if s.state == "below_target"]
    if args.strict and below:
        raise SourceError(f"below the PSNR target: {', '.join(below)}")


def _ingest_one(archive: Archive, video: VideoFile, args: argparse.Namespace) -> VideoSummary:
    with at_hand(video, archive.catalog.folder / "incoming") as path:
        try:
            return _fit(archive, video, path, args)
        except SourceError as error:
            # Nobody knows the name of a temporary file.
            raise SourceError(str(error).replace(str(path), str(video))) from error


def _fit(archive: Archive, video: VideoFile, path: Path, args: argparse.Namespace) -> VideoSummary:
    tasks = tuple(args.tasks or DEFAULT_TASKS)
    line = ProgressLine(sys.stderr)

    def estimate() -> str:
        found = archive.estimate(path, preset=args.preset, tasks=tasks, device=args.device)
        return (
            f"{video}: {found.frames} frames, {found.segments} or more segments, "
            f"at most {duration(found.seconds)}, about {size(found.stored_bytes)}"
        )

    try:
        return archive.ingest(
            path,
            tasks=tasks,
            preset=args.preset,
            tags=dict(args.tags),
            name=args.name,
            recorded_at=args.recorded_at,
            device=args.device,
            keep_source=args.keep_source,
            source_uri=video.uri if isinstance(video, RemoteVideo) else None,
            refit=args.refit,
            progress=AfterEstimate(line, estimate),
        )
    finally:
        line.close()


def _sentence(summary: VideoSummary) -> str:
    how = "already stored" if summary.already_stored else summary.state.replace("_", " ")
    return f"{summary.video_id}  {summary.name}: {how}, {summary.psnr:.2f} dB, {size(summary.stored_bytes)}"
