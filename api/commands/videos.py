"""`nvp ls`, `nvp show`, `nvp tag`, `nvp rm`, `nvp export`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from nvpstore.api.commands.opening import Subparsers, instant, open_archive, seconds, tag
from nvpstore.api.output import Output
from nvpstore.errors import NvpError, UsageError

if TYPE_CHECKING:
    from nvpstore.types import VideoMeta

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


def add_tag(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser(
        "tag",
        help="say something about a video, or show what is said",
        description="Changes what is given, keeps the rest, and shows all of it.\n\n"
        "--json: video_id, name, tags, recorded_at, hold.",
        **options,
    )
    parser.add_argument("video", metavar="VIDEO", help="video_id, its beginning, or a name")
    parser.add_argument("tags", nargs="*", type=tag, metavar="K=V", help="tag to set")
    parser.add_argument(
        "--remove", action="append", default=[], metavar="K", help="tag to remove; repeatable"
    )
    parser.add_argument("--name", metavar="NAME", help="a new name")
    parser.add_argument(
        "--recorded-at", type=instant, metavar="TIME", help="ISO 8601; UTC where it names no zone"
    )
    parser.add_argument(
        "--hold", action=argparse.BooleanOptionalAction, help="forbid, or allow, that it is erased"
    )
    parser.set_defaults(run=tag_video)


def tag_video(args: argparse.Namespace, output: Output) -> None:
    meta = open_archive(args).tag(
        args.video,
        tags=dict(args.tags),
        remove=args.remove,
        name=args.name,
        recorded_at=args.recorded_at,
        hold=args.hold,
    )
    output.done(meta, text=_meta_text(meta))


def _meta_text(meta: VideoMeta) -> str:
    lines = [f"{meta.video_id}  {meta.name}{': on hold' if meta.hold else ''}"]
    if meta.recorded_at is not None:
        lines.append(f"  recorded {meta.recorded_at.isoformat()}")
    return "\n".join(lines + [f"  {key}={value}" for key, value in sorted(meta.tags.items())])


def add_rm(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser(
        "rm",
        help="erase videos for good",
        description="Erases videos for good, with their names and tags; only the id remains.\n"
        "Killed, the same command with the id again completes it.\n\n"
        "--json: video_id, number (of the log entry), objects (deleted); a list for several videos.",
        **options,
    )
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video_id, its beginning, or a name")
    parser.add_argument("--yes", action="store_true", help="do not ask; needed where nobody can be asked")
    parser.set_defaults(run=rm)


def rm(args: argparse.Namespace, output: Output) -> None:
    if not args.yes and not _confirmed(args.videos):
        raise NvpError("nothing was erased")
    archive = open_archive(args)
    erasures, errors = [], []
    for ref in dict.fromkeys(args.videos):
        try:
            erasures.append(archive.erase(ref))
        except NvpError as error:
            errors.append(error)
    if erasures:
        value = erasures[0] if len(args.videos) == 1 else erasures
        output.done(value, text="\n".join(f"erased {e.video_id}: {e.objects} objects" for e in erasures))
    if errors:
        raise type(errors[0])("; ".join(map(str, errors)))


def _confirmed(videos: list[str]) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(f"rm {' '.join(videos)}: --yes is needed where nobody can be asked")
    sys.stderr.write(f"erase {', '.join(videos)} for good? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def add_export(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser(
        "export", help="write a video for people to watch, marked as reconstructed", **options
    )
    parser.add_argument("video", metavar="VIDEO", help="video_id, its beginning, or a name")
    parser.add_argument("out", metavar="OUT", help="file to write; a name ending in / gets PNGs")
    parser.add_argument("--start", type=seconds, metavar="S", help="from this many seconds")
    parser.add_argument("--end", type=seconds, metavar="S", help="up to this many seconds")
    parser.add_argument(
        "--stabilize", action="store_true", help="steady pictures (nvp tasks stabilize frames)"
    )
    parser.add_argument(
        "--upscale", type=int, choices=(2, 4), default=1, help="times the size; detail is synthesised"
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--lossless",
        action="store_true",
        help="FFV1 RGB in mkv instead of H.264 in mp4; in mp4 where pixels are not square",
    )
    kinds.add_argument("--original", action="store_true", help="the source's own bytes, where they are kept")
    parser.set_defaults(run=export)


def export(args: argparse.Namespace, output: Output) -> None:
    if args.start is not None and args.end is not None and args.start >= args.end:
        raise UsageError(f"--start {args.start:g} --end {args.end:g}: the end must come after the start")
    if args.original and args.stabilize:
        raise UsageError("--original --stabilize: the source's own bytes stay what they are")
    if args.original and args.upscale > 1:
        raise UsageError("--original --upscale: the source's own bytes stay what they are")
    summary = open_archive(args).export(
        args.video,
        args.out,
        start=args.start,
        end=args.end,
        lossless=args.lossless,
        original=args.original,
        stabilize=args.stabilize,
        upscale=args.upscale,
    )
    output.done(summary, text=f"wrote {summary.frames} frames to {summary.path}")
