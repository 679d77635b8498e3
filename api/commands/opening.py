"""Opening the archive that a command names, and what argument parsers of all commands share."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import nvpstore
from nvpstore.errors import UsageError

if TYPE_CHECKING:
    from nvpstore.archive import Archive

Subparsers = Any  # argparse's class for this is private


def open_archive(args: argparse.Namespace) -> Archive:
    """The archive of --archive or NVP_ARCHIVE. Raises UsageError where neither is given."""
    return nvpstore.open(archive_uri(args))


def archive_uri(args: argparse.Namespace) -> str:
    if not args.archive:
        raise UsageError(
            "no archive named: use --archive URI or set NVP_ARCHIVE (a folder or s3://bucket/prefix)"
        )
    return str(args.archive)


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
