"""`nvp sql`: one statement in, its rows out in one of five formats."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nvpstore.api.commands.opening import Subparsers, open_archive
from nvpstore.api.output import Output
from nvpstore.api.rows import BINARY_FORMATS, WRITERS
from nvpstore.errors import UsageError


def add_sql(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser("sql", help="run one SELECT, or EXPLAIN [ANALYZE] one", **options)
    parser.add_argument("query", metavar="SQL", help="one statement; - reads it from stdin")
    parser.add_argument("--format", choices=tuple(WRITERS), help="(default: table; json with --json)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write there instead of stdout")
    parser.set_defaults(run=sql)


def sql(args: argparse.Namespace, output: Output) -> None:
    format_name = _format_name(args)
    query = sys.stdin.read() if args.query == "-" else args.query
    result = open_archive(args).sql(query)
    with _target(args.output) as stream:
        WRITERS[format_name](result, stream)
    for warning in result.warnings:
        sys.stderr.write(f"nvp: warning: {warning}\n")
    if result.skipped:
        segments = ", ".join(f"{skip.video_id[:8]} segment {skip.segment}" for skip in result.skipped[:3])
        more = ", …" if len(result.skipped) > 3 else ""
        sys.stderr.write(f"left out {len(result.skipped)} segments: {segments}{more}\n")


def _format_name(args: argparse.Namespace) -> str:
    if args.json and args.format not in (None, "json"):
        raise UsageError(f"--json with --format {args.format}: use one of them")
    name = args.format or ("json" if args.json else "table")
    if name in BINARY_FORMATS and args.output is None and sys.stdout.isatty():
        raise UsageError(f"--format {name} is binary: name a file with -o")
    return str(name)


@contextmanager
def _target(path: Path | None) -> Iterator[IO[bytes]]:
    if path is None:
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    # Renamed when it is whole: a failed query leaves neither half a file nor loses the one before.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as stream:
            yield stream
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
