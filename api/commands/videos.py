"""`nvp ingest`, `nvp ls`, `nvp show`, `nvp export`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from nvpstore.api.commands.opening import Subparsers, open_archive, seconds, tag
from nvpstore.api.output import Output
from nvpstore.api.progress import AfterEstimate, ProgressLine, duration, size
from nvpstore.errors import SourceError, UsageError

if TYPE_CHECKING:
    from nvpstore.archive import Archive, VideoSummary

# Those of Archive.ingest; spelled out, since help must not load the archive.
DEFAULT_PRESET = "demo"
DEFAULT_TASKS = ("labels",)

LS_COLUMNS = (
    "video_id",
    "name",
    "state",
    "duration",
    "fps",
    "width",
    "height",
    "frames",
    "psnr",
    "bpp",
    "stored_bytes",
)


def add_ingest(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser("ingest", help="fit and store videos; a rerun continues", **options)
    parser.add_argument("files", nargs="+", metavar="FILE", help="video file")
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
        "--name", metavar="NAME", help="name of the video (default: the file's; one FILE only)"
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
    parser.set_defaults(run=ingest)


def ingest(args: argparse.Namespace, output: Output) -> None:
    if args.name is not None and len(args.files) > 1:
        raise UsageError(f"--name with {len(args.files)} files: name one file at a time")
    archive = open_archive(args)
    summaries = [_ingest_one(archive, file, args) for file in args.files]
    value = summaries[0] if len(summaries) == 1 else summaries
    output.done(value, text="\n".join(_sentence(summary) for summary in summaries))
    below = [s.name for s in summaries if s.state == "below_target"]
    if args.strict and below:
        raise SourceError(f"below the PSNR target: {', '.join(below)}")


def _ingest_one(archive: Archive, file: str, args: argparse.Namespace) -> VideoSummary:
    tasks = tuple(args.tasks or DEFAULT_TASKS)
    line = ProgressLine(sys.stderr)

    def estimate() -> str:
        found = archive.estimate(file, preset=args.preset, tasks=tasks, device=args.device)
        return (
            f"{file}: {found.frames} frames, {found.segments} or more segments, "
            f"at most {duration(found.seconds)}, about {size(found.stored_bytes)}"
        )

    try:
        return archive.ingest(
            file,
            tasks=tasks,
            preset=args.preset,
            tags=dict(args.tags),
            name=args.name,
            device=args.device,
            keep_source=args.keep_source,
            refit=args.refit,
            progress=AfterEstimate(line, estimate),
        )
    finally:
        line.close()


def _sentence(summary: VideoSummary) -> str:
    how = "already stored" if summary.already_stored else summary.state.replace("_", " ")
    return f"{summary.video_id}  {summary.name}: {how}, {summary.psnr:.2f} dB, {size(summary.stored_bytes)}"


def add_ls(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser("ls", help="list videos", **options)
    parser.set_defaults(run=ls)


def ls(args: argparse.Namespace, output: Output) -> None:
    output.rows(open_archive(args).videos(), columns=LS_COLUMNS)


def add_show(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser("show", help="one video, its segments and routes", **options)
    parser.add_argument("video", metavar="VIDEO", help="video_id, its beginning, or a name")
    parser.set_defaults(run=show)


def show(args: argparse.Namespace, output: Output) -> None:
    output.record(open_archive(args).show(args.video))


def add_export(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser(
        "export", help="write a video for people to watch, marked as reconstructed", **options
    )
    parser.add_argument("video", metavar="VIDEO", help="video_id, its beginning, or a name")
    parser.add_argument("out", metavar="OUT", help="file to write; a name ending in / gets PNGs")
    parser.add_argument("--start", type=seconds, metavar="S", help="from this many seconds")
    parser.add_argument("--end", type=seconds, metavar="S", help="up to this many seconds")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--lossless", action="store_true", help="FFV1 RGB in mkv instead of H.264 in mp4")
    kinds.add_argument("--original", action="store_true", help="the source's own bytes, where they are kept")
    parser.set_defaults(run=export)


def export(args: argparse.Namespace, output: Output) -> None:
    if args.start is not None and args.end is not None and args.start >= args.end:
        raise UsageError(f"--start {args.start:g} --end {args.end:g}: the end must come after the start")
    summary = open_archive(args).export(
        args.video, args.out, start=args.start, end=args.end, lossless=args.lossless, original=args.original
    )
    output.done(summary, text=f"wrote {summary.frames} frames to {summary.path}")
