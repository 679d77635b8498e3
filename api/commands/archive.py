"""`nvp init`, `nvp catalog rebuild`, `nvp verify`."""

from __future__ import annotations

import argparse
from typing import Any

import nvpstore
from nvpstore.api.commands.opening import Subparsers, archive_uri, open_archive
from nvpstore.api.output import Output
from nvpstore.api.progress import size
from nvpstore.errors import IntegrityError


def add_init(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser("init", help="make an empty archive", **options)
    parser.add_argument("uri", nargs="?", metavar="URI", help="instead of --archive")
    parser.set_defaults(run=init)


def init(args: argparse.Namespace, output: Output) -> None:
    uri = args.uri or archive_uri(args)
    nvpstore.Archive.create(uri)
    output.done({"archive": uri}, text=f"made an archive at {uri}")


def add_catalog(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser("catalog", help="look after the local index", **options)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    rebuild_parser = actions.add_parser("rebuild", help="drop the index and build it from the log", **options)
    rebuild_parser.set_defaults(run=rebuild)


def rebuild(args: argparse.Namespace, output: Output) -> None:
    archive = open_archive(args)
    archive.rebuild_catalog()
    videos = len(archive.videos())
    output.done({"videos": videos}, text=f"rebuilt the index: {videos} videos")


def add_verify(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser(
        "verify", help="check that all committed objects are there and whole", **options
    )
    parser.add_argument("--deep", action="store_true", help="read every byte and compare digests")
    parser.set_defaults(run=verify)


def verify(args: argparse.Namespace, output: Output) -> None:
    report = open_archive(args).verify(deep=args.deep)
    depth = "digests equal" if args.deep else "present, sizes equal"
    lines = [f"{report.objects} objects, {size(report.bytes)}: {depth}" if not report.damages else "damaged:"]
    output.done(report, text="\n".join(lines + [f"  {damage}" for damage in report.damages]))
    if report.damages:
        raise IntegrityError(f"{len(report.damages)} of {report.objects} objects are missing or damaged")
