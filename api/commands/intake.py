"""What `nvp ingest`, `nvp add` and `nvp fit` share: options, and one video after another."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from nvpstore.api.commands.opening import instant, tag
from nvpstore.api.output import Output
from nvpstore.api.progress import size
from nvpstore.errors import SourceError, UsageError
from nvpstore.upkeep.folders import VIDEO_SUFFIXES, VideoFile, at_hand, expand

if TYPE_CHECKING:
    from pathlib import Path

    from nvpstore.archive import Archive

T = TypeVar("T")


class Stored(Protocol):
    """What is shown of a stored video, whoever stored it."""

    @property
    def video_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def frames(self) -> int: ...
    @property
    def psnr(self) -> float | None: ...
    @property
    def stored_bytes(self) -> int: ...
    @property
    def already_stored(self) -> bool: ...


# Those of Archive.ingest; spelled out, since help must not load the archive.
DEFAULT_PRESET = "demo"
DEFAULT_TASKS = ("labels",)

FILES = f"""\
FILE is a video file, a folder (with all below it), a glob such as 'cam?/**/*.mp4', or the same in an object
store: s3://bucket/clip.mp4, s3://bucket/prefix/, 's3://bucket/**/*.mp4'. Of folders, prefixes and globs
these are taken: {" ".join(VIDEO_SUFFIXES)}
"""
SUMMARY = """\
--json: video_id, name, state, frames, psnr, bpp, stored_bytes, source_bytes, fit_seconds, already_stored"""


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """Which files, and what is said about them."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="file, folder, glob or prefix")
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
    parser.add_argument(
        "--tone-map", action="store_true", help="map HDR (PQ, HLG) to SDR, which is what is stored"
    )


def add_task_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task",
        action="append",
        dest="tasks",
        metavar="NAME",
        help="task to prepare; repeatable (default: labels)",
    )


def add_fit_options(parser: argparse.ArgumentParser) -> None:
    """How to fit."""
    parser.add_argument(
        "--preset", default=DEFAULT_PRESET, metavar="NAME", help="how to fit (default: %(default)s)"
    )
    add_task_option(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    parser.add_argument("--refit", action="store_true", help="fit again what is fitted already")
    parser.add_argument(
        "--strict", action="store_true", help="fail where a video stays below its PSNR target"
    )


def add_fail_fast(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fail-fast", action="store_true", help="stop at the first file that is no video, of several"
    )


def named_files(args: argparse.Namespace) -> tuple[list[VideoFile], bool]:
    """The files, and whether just one was named in full: then that is one document, not a list."""
    videos = expand(args.files)
    if args.name is not None and len(videos) > 1:
        raise UsageError(f"--name with {len(videos)} files: name one file at a time")
    alone = len(videos) == 1 and [videos[0].name] == [name.rpartition("/")[2] for name in args.files]
    return videos, alone


def one_file(archive: Archive, video: VideoFile, store: Callable[[Path], Stored]) -> Stored:
    """`store` on the file, which is fetched for it if it is far away."""
    with at_hand(video, archive.catalog.folder / "incoming") as path:
        try:
            return store(path)
        except SourceError as error:
            # Nobody knows the name of a temporary file.
            raise SourceError(str(error).replace(str(path), str(video))) from error


def one_after_another(
    items: Sequence[T],
    store: Callable[[T], Stored],
    output: Output,
    *,
    alone: bool,
    fail_fast: bool,
    empty: str,
) -> list[Stored]:
    """Stores them all and shows the summaries, or `empty`; files that are no videos fail at the end.

    Raises SourceError naming them, at once where there is only one or with `fail_fast`.
    """
    summaries: list[Stored] = []
    failures: list[str] = []
    for item in items:
        try:
            summaries.append(store(item))
        except SourceError as error:
            if fail_fast or len(items) == 1:
                raise
            failures.append(str(error))
    value = summaries[0] if alone else summaries
    output.done(value, text="\n".join(sentence(summary) for summary in summaries) or empty)
    if failures:
        raise SourceError(f"{len(failures)} of {len(items)} files failed: {'; '.join(failures)}")
    return summaries


def check_targets(summaries: Sequence[Stored], *, strict: bool) -> None:
    below = [s.name for s in summaries if s.state == "below_target"]
    if strict and below:
        raise SourceError(f"below the PSNR target: {', '.join(below)}")


def sentence(summary: Stored) -> str:
    """What people read of a stored video."""
    how = "already stored" if summary.already_stored else summary.state.replace("_", " ")
    found = f"{summary.frames} frames" if summary.psnr is None else f"{summary.psnr:.2f} dB"
    return f"{summary.video_id}  {summary.name}: {how}, {found}, {size(summary.stored_bytes)}"
