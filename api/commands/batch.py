"""`nvp batch`: one statement over everything, its rows as Parquet, written once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvpstore.api.commands.opening import Subparsers, open_itself
from nvpstore.api.output import Output
from nvpstore.api.progress import ProgressLine, duration, size
from nvpstore.errors import UsageError

if TYPE_CHECKING:
    from nvpstore.archive import Archive
    from nvpstore.batches.driver import BatchEstimate, BatchReport

BATCH = """\
Computes the answers that a SELECT needs, keeps them in the archive for all queries, and writes its rows as
Parquet files under OUT, a folder or s3://bucket/prefix. Killed anywhere, the same command goes on; finished,
it is no work. manifest-<n>.json names the files that count.

--json: uri, run, rows, files, bytes, snapshot, touched_videos, decoded_frames, answered_frames, seconds,
already_there; with --dry-run videos, segments, frames, answered_frames, bytes, gflops, parts, seconds, money.
"""


def add_batch(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser(
        "batch", help="run a SELECT over everything, with many workers", description=BATCH, **options
    )
    parser.add_argument("file", metavar="FILE", help="a file with one SELECT; - reads it from stdin")
    parser.add_argument("-o", "--output", metavar="OUT", help="where the rows go")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="(default: local)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="(default: 1)")
    parser.add_argument(
        "--partition-by", action="append", default=[], metavar="COLUMN", help="a folder a value; repeatable"
    )
    parser.add_argument("--incremental", action="store_true", help="add the rows of videos that came since")
    parser.add_argument("--dry-run", action="store_true", help="say what it would take")
    parser.add_argument(
        "--frames-a-second", type=float, metavar="X", help="of one worker, for --dry-run's time"
    )
    parser.add_argument(
        "--price-an-hour", type=float, metavar="X", help="of one worker, for --dry-run's money"
    )
    parser.set_defaults(run=batch)


def batch(args: argparse.Namespace, output: Output) -> None:
    sql = sys.stdin.read() if args.file == "-" else _read(Path(args.file))
    archive = open_itself(args)
    if args.dry_run:
        found = archive.estimate_batch(
            sql,
            workers=args.workers,
            frames_a_second=args.frames_a_second,
            price_an_hour=args.price_an_hour,
        )
        output.done(found, text=_estimate(found, args.workers))
        return
    if args.output is None:
        raise UsageError("-o OUT: say where the rows go (or --dry-run)")
    report = _run(archive, sql, args)
    output.done(report, text=_said(report))


def _run(archive: Archive, sql: str, args: argparse.Namespace) -> BatchReport:
    line = ProgressLine(sys.stderr)
    try:
        return archive.batch(
            sql,
            args.output,
            engine=args.engine,
            workers=args.workers,
            partition_by=args.partition_by,
            incremental=args.incremental,
            progress=line,
        )
    finally:
        line.close()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise UsageError(f"{path}: no text of SQL can be read there: {cause}") from cause


def _said(report: BatchReport) -> str:
    if report.already_there:
        return f"{report.uri}: there already, {report.rows} rows"
    return (
        f"{report.uri}: {report.rows} rows in {report.files} files, {size(report.bytes)}; "
        f"{report.decoded_frames} frames decoded of {report.touched_videos} videos, "
        f"{report.answered_frames} were answered before, {duration(report.seconds)}"
    )


def _estimate(found: BatchEstimate, workers: int) -> str:
    gflops = "" if found.gflops is None else f", {found.gflops:.0f} GFLOPs"
    time = "" if found.seconds is None else f", {duration(found.seconds)} by {workers} workers"
    money = "" if found.money is None else f", {found.money:.2f} in money"
    return (
        f"{found.frames} frames of {found.segments} segments in {found.videos} videos to compute, "
        f"{found.answered_frames} answered before; {size(found.bytes)} to read{gflops}{time}{money}"
    )
