"""`nvp ingest` and `nvp fit` with `--engine`: videos over many workers."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from nvpstore.api.commands.intake import DEFAULT_TASKS, check_targets, sentence
from nvpstore.api.commands.opening import open_itself, served
from nvpstore.api.output import Output
from nvpstore.api.progress import ProgressLine, duration
from nvpstore.errors import SourceError, UsageError

if TYPE_CHECKING:
    from nvpstore.batches.intake import IntakeReport
    from nvpstore.intake import Fitting, Spread

SPREAD = """\
With --engine or --workers, videos are spread over workers, which let others' work go first (nice 10); one
that fails is listed and the others go on, with exit status 1 at the end. Files named in full come first.
Workers share the GPUs: processes take them in turn, Ray gives each an equal part of one.
--json is then: stored (a list as above), failed (named, error), skipped, seconds.
"""


def add_spread_options(parser: argparse.ArgumentParser) -> None:
    """Where the work runs."""
    parser.add_argument(
        "--engine",
        choices=("local", "processes", "ray"),
        help="spread over workers: processes here, or actors of a Ray cluster (default: one after another)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="how many; several may share a GPU (default: 1)"
    )
    parser.add_argument(
        "--by",
        choices=("videos", "segments"),
        help="what a worker has: a video, or a segment, for few long ones (default: videos)",
    )
    parser.add_argument(
        "--gpus-a-worker",
        type=float,
        metavar="X",
        help="with ray, the part of a GPU that a worker takes (default: all GPUs, divided)",
    )


def add_skip_known(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--skip-known",
        action="store_true",
        help="with --engine: do not fetch objects whose URI and size a fitted video has",
    )


def is_spread(args: argparse.Namespace) -> bool:
    """Whether workers were asked for. Raises UsageError for options that need them or cannot go with them."""
    if args.engine is None and args.workers is None:
        for option in ("gpus_a_worker", "skip_known", "by"):
            if getattr(args, option, None):
                raise UsageError(f"--{option.replace('_', '-')} needs --engine")
        return False
    if served(args):
        raise UsageError("--engine and --workers: a server has workers of its own (NVP_WORKERS)")
    if args.fail_fast:
        raise UsageError("--fail-fast is for videos one after another: with --engine others go on")
    return True


def ingest_spread(args: argparse.Namespace, output: Output) -> None:
    from nvpstore.intake import ingest_all

    if args.name is not None:
        raise UsageError("--name is for one video: with --engine each has its file's name")
    archive, line = open_itself(args), ProgressLine(sys.stderr)
    try:
        report = ingest_all(
            archive,
            args.files,
            fitting=_fitting(args),
            spread=_spread(args),
            skip_known=args.skip_known,
            progress=line,
        )
    finally:
        line.close()
    _show(report, args, output)


def fit_spread(args: argparse.Namespace, videos: list[str], output: Output) -> None:
    from nvpstore.intake import fit_all

    archive, line = open_itself(args), ProgressLine(sys.stderr)
    try:
        report = fit_all(archive, videos, fitting=_fitting(args), spread=_spread(args), progress=line)
    finally:
        line.close()
    _show(report, args, output)


def _fitting(args: argparse.Namespace) -> Fitting:
    # Here, as wherever the archive is loaded: help must not.
    from nvpstore.intake import Fitting

    return Fitting(
        tasks=tuple(args.tasks or DEFAULT_TASKS),
        preset=args.preset,
        device=args.device,
        keep_source=args.keep_source,
        refit=args.refit,
        tone_map=getattr(args, "tone_map", False),
        tags=tuple(getattr(args, "tags", ())),
        recorded_at=getattr(args, "recorded_at", None),
    )


def _spread(args: argparse.Namespace) -> Spread:
    from nvpstore.intake import Spread

    return Spread(
        engine=args.engine or "local",
        workers=1 if args.workers is None else args.workers,
        gpus_a_worker=args.gpus_a_worker,
        by=args.by or "videos",
    )


def _show(report: IntakeReport, args: argparse.Namespace, output: Output) -> None:
    lines = [sentence(stored) for stored in report.stored]
    lines += [f"failed  {failure.named}: {failure.error}" for failure in report.failed]
    known = f", {report.skipped} known" if report.skipped else ""
    lines.append(
        f"{len(report.stored)} stored, {len(report.failed)} failed{known}, {duration(report.seconds)}"
    )
    output.done(report, text="\n".join(lines))
    if report.failed:
        count = len(report.stored) + len(report.failed)
        raise SourceError(f"{len(report.failed)} of {count} videos failed, such as {report.failed[0].named}")
    check_targets(report.stored, strict=args.strict)
