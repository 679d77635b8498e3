"""`nvp init`, `nvp catalog rebuild`, `nvp verify`, `nvp gc`, `nvp copy`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import nvpstore
from nvpstore.api.commands.opening import Subparsers, archive_uri, hours, open_itself, own_root
from nvpstore.api.output import Output, fields_of
from nvpstore.api.progress import ProgressLine, size
from nvpstore.errors import ArchiveError, IntegrityError, StoreError

if TYPE_CHECKING:
    from nvpstore.archive import Archive
    from nvpstore.upkeep.copying import CopyReport
    from nvpstore.upkeep.report import DeepReport, VerifyReport

VERIFY = """\
Reads the whole log and every byte that it names from the store, and compares digests. Fails where
anything is damaged. Damaged files of this machine's caches are removed.

--json: entries, objects, superseded, bytes, checkpoints, orphans; damages (object, found, video_id,
name, segment, stage, route: null where unknown); damaged_caches; deep (videos, frames, compared,
not_compared: videos without an original at hand), null without --deep.
"""
GC = """\
Deletes superseded objects and what writers left that never committed, once they are older than the
archive's grace. Safe beside writers and readers.

--json: dry_run, superseded (key, size_bytes, sha256), orphans (keys), unknown (keys that name nothing of
an archive: they stay).
"""
COPY = """\
Copies videos with routes, tasks, names, tags and kept originals from archive A into B, which is made
where there is none. What B has already is skipped; another fit of the same video is replaced. Videos
that fail are named, and the others are copied. Saved views stay behind: save them in B with `nvp views`.

--json: source, target, videos (copied), replaced and completed (of these), skipped, tasks, bytes,
failures (video_id, name, error).
"""


def add_init(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser("init", help="make an empty archive", **options)
    parser.add_argument("uri", nargs="?", metavar="URI", help="instead of --archive")
    parser.add_argument(
        "--grace",
        type=hours,
        metavar="HOURS",
        help="how long gc leaves alone what is not named any more, for good; a writer has half of it "
        "to upload a video (default: 24)",
    )
    parser.set_defaults(run=init)


def init(args: argparse.Namespace, output: Output) -> None:
    uri = own_root(args, args.uri or archive_uri(args))
    # Left out where it is not given: the default is the archive's own.
    grace = {} if args.grace is None else {"grace_seconds": round(args.grace.total_seconds())}
    nvpstore.Archive.create(uri, **grace)
    output.done({"archive": uri}, text=f"made an archive at {uri}")


def add_catalog(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser("catalog", help="look after the local index", **options)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    rebuild_parser = actions.add_parser("rebuild", help="drop the index and build it from the log", **options)
    rebuild_parser.set_defaults(run=rebuild)


def rebuild(args: argparse.Namespace, output: Output) -> None:
    archive = open_itself(args)
    archive.rebuild_catalog()
    videos = len(archive.videos())
    output.done({"videos": videos}, text=f"rebuilt the index: {videos} videos")


def add_verify(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="check that all that was committed is there and whole",
        description=VERIFY,
        **options,
    )
    parser.add_argument(
        "--deep",
        action="store_true",
        help="also decode every frame; where the original is at hand, compare the PSNR with the stored one",
    )
    parser.set_defaults(run=verify)


def verify(args: argparse.Namespace, output: Output) -> None:
    line = ProgressLine(sys.stderr)
    try:
        report = open_itself(args).verify(deep=args.deep, progress=line)
    finally:
        line.close()
    output.done(report, text="\n".join(_verify_lines(report)))
    if report.damages:
        raise IntegrityError(f"damaged: {len(report.damages)} findings")


def _verify_lines(report: VerifyReport) -> Iterator[str]:
    yield f"read {report.entries} log entries and {report.objects} objects, {size(report.bytes)}"
    if report.deep is not None:
        yield _deep_line(report.deep)
    for path in report.damaged_caches:
        yield f"removed a damaged file of this machine's cache: {path}"
    for damage in report.damages:
        yield f"damaged: {damage}"
    if not report.damages:
        yield "all whole"


def _deep_line(deep: DeepReport) -> str:
    return (
        f"decoded {deep.frames} frames of {deep.videos} videos: {deep.compared} compared with their "
        f"originals, {deep.not_compared} not compared"
    )


def add_gc(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser(
        "gc",
        help="delete what no log entry names any more",
        description=GC,
        **options,
    )
    parser.add_argument(
        "--grace", type=hours, metavar="HOURS", help="only what is older; not less than the archive's grace"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    parser.set_defaults(run=gc)


def gc(args: argparse.Namespace, output: Output) -> None:
    found = open_itself(args).gc(grace=args.grace, dry_run=args.dry_run)
    freed = size(sum(obj.size_bytes for obj in found.superseded))
    how = "would delete" if args.dry_run else "deleted"
    lines = [f"{how} {len(found.superseded)} superseded objects ({freed}) and {len(found.orphans)} orphans"]
    lines += [f"  {key}" for key in found.keys] if args.dry_run else []
    output.done({"dry_run": args.dry_run, **fields_of(found)}, text="\n".join(lines))


def add_copy(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser(
        "copy",
        help="copy videos into another archive; a rerun continues",
        description=COPY,
        **options,
    )
    parser.add_argument("source", metavar="A", help="archive to read")
    parser.add_argument("target", metavar="B", help="archive to write")
    parser.add_argument(
        "--where", metavar="SQL", help="only videos for which this holds, over the columns of the videos view"
    )
    parser.set_defaults(run=copy)


def copy(args: argparse.Namespace, output: Output) -> None:
    source, target = nvpstore.open(own_root(args, args.source)), _opened_or_made(own_root(args, args.target))
    line = ProgressLine(sys.stderr)
    try:
        report = source.copy_to(target, where=args.where, progress=line)
    finally:
        line.close()
    output.done(report, text=_copy_text(report))
    if report.failures:
        failed = "; ".join(f"{f.video_id} ({f.name}): {f.error}" for f in report.failures)
        raise StoreError(f"{len(report.failures)} videos could not be copied: {failed}")


def _opened_or_made(uri: str) -> Archive:
    try:
        return nvpstore.open(uri, create=True)
    except ArchiveError:  # made by somebody else at the same moment
        return nvpstore.open(uri)


def _copy_text(report: CopyReport) -> str:
    skipped = f", {report.skipped} were there already" if report.skipped else ""
    return f"copied {report.videos} videos ({size(report.bytes)}) to {report.target}{skipped}"
