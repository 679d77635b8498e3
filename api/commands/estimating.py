"""`nvp ingest --estimate`: what storing files would take here. Needs no archive but for its tasks."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from nvpstore.api.commands.intake import DEFAULT_TASKS, named_files
from nvpstore.api.commands.opening import open_itself
from nvpstore.api.output import Output
from nvpstore.api.progress import duration, size
from nvpstore.errors import NvpError
from nvpstore.upkeep.folders import VideoFile, at_hand

if TYPE_CHECKING:
    from nvpstore.ingest.estimate import HourCost, IngestEstimate
    from nvpstore.tasks.registry import LoadedTask


def estimated(args: argparse.Namespace, output: Output) -> None:
    """Look at each file and show what it would take."""
    videos, alone = named_files(args)
    found = [_estimate(video, args) for video in videos]
    output.done(found[0] if alone else found, text="\n".join(map(_told, found)) or "no file to look at")


def _estimate(video: VideoFile, args: argparse.Namespace) -> IngestEstimate:
    from nvpstore.codec.build import find_preset  # torch, which help must not load
    from nvpstore.ingest.estimate import estimate_ingest
    from nvpstore.ingest.writer import usable_device

    preset, device = find_preset(args.preset), usable_device(args.device)
    tasks = [_task(name, args) for name in dict.fromkeys(args.tasks or DEFAULT_TASKS)]
    with TemporaryDirectory() as folder, at_hand(video, Path(folder)) as path:
        found = estimate_ingest(str(path), preset, tasks=tasks, device=device)
    return replace(found, path=str(video))


def _task(name: str, args: argparse.Namespace) -> LoadedTask:
    """Of the archive that the command names, if it can be opened; built-in ones need none."""
    from nvpstore.ingest.named import named_task
    from nvpstore.tasks.registry import available, builtin_spec, load

    try:
        return named_task(open_itself(args).catalog, name)
    except NvpError:  # no archive named, none there yet, or a server's
        if name not in available():
            raise
        return load(builtin_spec(name))


def _told(found: IngestEstimate) -> str:
    at_most = "" if found.reached else "at most "
    return "\n".join(
        (
            f"{found.path}: {found.kind} ({found.motion:.1f} of 255 from frame to frame, "
            f"{found.cuts_a_minute:.1f} cuts a minute), {found.frames} frames{_new(found)}, "
            f"about {found.segments} segments",
            f"  this file: {at_most}{duration(found.seconds)} of {found.device}, "
            f"about {size(found.stored_bytes)}",
            *(_hour(cost, found.device, at_most) for cost in (found.full_rate, found.one_a_second)),
        )
    )


def _new(found: IngestEstimate) -> str:
    return "" if found.distinct == 1 else f", {found.distinct:.0%} of them new"


def _hour(cost: HourCost, device: str, at_most: str) -> str:
    return (
        f"  an hour like it at {cost.frames_a_second:g} frames a second: "
        f"{at_most}{cost.device_hours:.2f} {device} hours, about {size(cost.stored_bytes)}"
    )
