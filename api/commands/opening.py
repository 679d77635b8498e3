"""Opening the archive that a command names, and what argument parsers of all commands share."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import nvpstore
from nvpstore.client.connecting import is_server
from nvpstore.errors import UsageError

if TYPE_CHECKING:
    from nvpstore.archive import Archive
    from nvpstore.client.remote import RemoteArchive

Subparsers = Any  # argparse's class for this is private


def open_archive(args: argparse.Namespace) -> Archive | RemoteArchive:
    """The archive of --archive or NVP_ARCHIVE, or the server there. Raises UsageError where none is named."""
    return open_server(args) if served(args) else open_itself(args)


def open_server(args: argparse.Namespace) -> RemoteArchive:
    return nvpstore.connect(archive_uri(args))


def open_itself(args: argparse.Namespace) -> Archive:
    """The archive, which must not be a server's."""
    return nvpstore.open(own_root(args, archive_uri(args)))


def own_root(args: argparse.Namespace, uri: str) -> str:
    """A root that is no server's address, which is a UsageError."""
    if is_server(uri):
        raise UsageError(
            f"nvp {args.command} needs the archive itself (a folder or s3://bucket/prefix); {uri} is a server"
        )
    return uri


def archive_uri(args: argparse.Namespace) -> str:
    if not args.archive:
        raise UsageError(
            "no archive named: use --archive URI or set NVP_ARCHIVE (a folder, s3://bucket/prefix or "
            "http://host:port)"
        )
    return str(args.archive)


def served(args: argparse.Namespace) -> bool:
    """Whether a server does the work."""
    return is_server(archive_uri(args))


def seconds(text: str) -> float:
    """A number of seconds ≥ 0 (argparse type)."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} seconds: at least 0 is needed")
    return value


def instant(text: str) -> datetime:
    """A time in ISO 8601 as UTC, which it is where it names no zone (argparse type)."""
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time in ISO 8601, such as 2026-05-01T12:30:00+02:00"
        ) from None
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


def hours(text: str) -> timedelta:
    """A number of hours > 0 (argparse type)."""
    try:
        value = timedelta(hours=float(text))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of hours") from None
    if value <= timedelta():
        raise argparse.ArgumentTypeError(f"{text} hours: more than 0 are needed")
    return value


def tag(text: str) -> tuple[str, str]:
    """KEY=VALUE (argparse type)."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value
