"""`nvp tasks list`, `show`, `add`, `train`, `stabilize` and `steadiness`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvpstore.api.commands.opening import Subparsers, open_archive
from nvpstore.api.output import Output
from nvpstore.api.progress import ProgressLine, duration, size
from nvpstore.errors import TaskError, UsageError

if TYPE_CHECKING:
    from nvpstore.client import values as remote
    from nvpstore.ingest.stabilizing import StabilizerSummary
    from nvpstore.ingest.training import TrainedVideo
    from nvpstore.upkeep.tasks import AddedTask

# Spelled out, since help must not load torch.
KINDS = ("classification", "embedding", "detection", "segmentation", "depth", "action", "caption")
STEADY_VARIANTS = ("learned", "controlled", "spatial")
FITS = ("stretch", "crop", "letterbox")
# Options of `add` by the fields of upkeep.tasks.TaskRequest.
FIELDS = (
    "like", "provider", "model", "kind", "size", "fit", "mean", "std", "clip", "options", "weights", "seed",
    "new_version",
)  # fmt: skip

TASKS = """\
A task is a question to a frozen backbone, and a table in SQL. Its weights are brought by a Python package
(`package`), kept in the archive (`archive`), or drawn at random (`random`): then answers mean nothing, only
what they cost does.
"""
ADD = """\
NAME is a built-in task (`nvp tasks list --available`), or any name that SQL takes for a table, with --like or
with --provider, --model, --kind and --size. Other options go before what the built-in task says. The model is
built and run once: where it, its weights and its labels do not fit each other, nothing is registered.
Originals answer the task at once; `nvp tasks train` makes it cheap on videos that are fitted.

FILE of --weights is safetensors, or a checkpoint of tensors that torch reads without running code from it.
The archive keeps them, so that anybody who has it can ask the task.

--json: name, version, kind, cuts, labels (their number), weights, weights_bytes (kept here),
already_registered, warning.
"""
TRAIN = """\
Gives fitted videos routes for the task: of each segment's frames a share is learned from, up to 256 others
are only judged by. Videos that have routes of its newest version are left alone; NAME@VERSION trains another.
Where there is no original, decoded pictures stand in for it, and no fidelity is known. Each video is one
commit; a rerun continues.

--json: a list of video_id, name, state (trained, estimated, dropped, failed), segments, frames, fidelity (of
what queries take by default, by frames), reference (original or decoded), trained_frames, measured_frames,
adapter_bytes, seconds, why.
"""
STABILIZE = """\
Teaches a memory that makes a task's answers steady from frame to frame, or (NAME frames) pictures; queries
use it by `labels(stabilize := true)`. It learns from runs of stored frames that it disturbs, against the
median of the backbone's own answers around each; every fourth run only judges. One stabilizer of the archive
for each task version: another takes its place.

--json: name, version, state (trained, estimated), variant, cut, parameters, bytes, segments, judged_segments,
frames, steps, seconds; change, error and flips: each before and after, on runs that did not teach.
"""
STEADINESS = """\
How often the first label of a task of classes or actions changes, within segments, with and without its
stabilizer; and how far both agree. The stabilizer's own work is what is compared: a scene's true changes are
in both.

--json: a list of answers (plain, stabilized), frames, seconds, flips, flips_per_second, agreement (with the
plain ones).
"""


def add_tasks(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser(
        "tasks", help="list, show, register and train tasks", description=TASKS, **options
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    list_parser = actions.add_parser("list", help="tasks of the archive", **options)
    list_parser.add_argument(
        "--available", action="store_true", help="all tasks that this release knows, registered or not"
    )
    list_parser.set_defaults(run=list_tasks)
    show_parser = actions.add_parser("show", help="one task with its labels", **options)
    show_parser.add_argument("name", metavar="NAME", help="task name, or NAME@VERSION")
    show_parser.set_defaults(run=show_task)
    _add_add(actions, **options)
    _add_train(actions, **options)
    _add_stabilize(actions, **options)
    _add_steadiness(actions, **options)


def _add_add(actions: Subparsers, **options: Any) -> None:
    parser = actions.add_parser("add", help="register a task", description=ADD, **options)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--like", metavar="BUILTIN", help="as this built-in task, under another name")
    parser.add_argument("--provider", metavar="P", help="the library that builds the model")
    parser.add_argument("--model", metavar="M", help="the provider's name of it")
    parser.add_argument("--kind", choices=KINDS, help="what its output means")
    parser.add_argument("--size", type=_pair, metavar="HxW", help="height and width of its input, pixels")
    parser.add_argument("--fit", choices=FITS, help="how pictures are brought to that size")
    parser.add_argument("--mean", type=_colour, metavar="R,G,B", help="of its input, 0 to 255")
    parser.add_argument("--std", type=_colour, metavar="R,G,B", help="the same (default: ImageNet's)")
    parser.add_argument(
        "--clip", type=_pair, metavar="FRAMESxSTRIDE", help="actions: pictures at once, every so many frames"
    )
    parser.add_argument("--options", type=_object, metavar="JSON", help="the provider's own settings")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--weights", type=Path, metavar="FILE", help="where no package brings them")
    weights.add_argument("--random", dest="seed", type=int, metavar="SEED", help="for figures of cost alone")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="one a line, in class order")
    parser.add_argument(
        "--new-version", action="store_true", help="NAME is there: from now on this one answers"
    )
    parser.set_defaults(run=add_task)


def _add_train(actions: Subparsers, **options: Any) -> None:
    parser = actions.add_parser("train", help="give fitted videos routes", description=TRAIN, **options)
    parser.add_argument("name", metavar="NAME", help="task name, or NAME@VERSION")
    parser.add_argument(
        "--videos", metavar="SQL", help="those for which this holds, over the columns of the videos view"
    )
    parser.add_argument(
        "--share",
        type=float,
        default=0.05,
        metavar="X",
        help="of each segment's frames, to learn from (default: %(default)s)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    parser.add_argument("--again", action="store_true", help="also videos that have routes of the task")
    parser.add_argument(
        "--dry-run", action="store_true", help="write nothing: measure one segment, and scale that up"
    )
    parser.set_defaults(run=train_task)


def _add_stabilize(actions: Subparsers, **options: Any) -> None:
    parser = actions.add_parser(
        "stabilize", help="make a task's answers, or pictures, steady", description=STABILIZE, **options
    )
    parser.add_argument("name", metavar="NAME", help="task name, NAME@VERSION, or frames")
    parser.add_argument(
        "--videos", metavar="SQL", help="those for which this holds, over the columns of the videos view"
    )
    parser.add_argument(
        "--share",
        type=float,
        default=0.25,
        metavar="X",
        help="of each segment's frames, to learn from (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=int, default=200, metavar="N", help="of training (default: %(default)s)"
    )
    parser.add_argument(
        "--stability",
        type=float,
        default=0.2,
        metavar="X",
        help="what being steady is worth beside being right; below 0.5 (default: %(default)s)",
    )
    parser.add_argument(
        "--variant", choices=STEADY_VARIANTS, help="(default: controlled, and of pictures spatial)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    parser.add_argument(
        "--dry-run", action="store_true", help="write nothing: take two steps, and scale them up"
    )
    parser.set_defaults(run=stabilize_task)


def _add_steadiness(actions: Subparsers, **options: Any) -> None:
    parser = actions.add_parser(
        "steadiness", help="how often answers change", description=STEADINESS, **options
    )
    parser.add_argument("name", metavar="NAME", help="task name, or NAME@VERSION")
    parser.add_argument(
        "--videos", metavar="SQL", help="those for which this holds, over the columns of the videos view"
    )
    parser.add_argument("--every", type=float, metavar="S", help="seconds between frames (default: all)")
    parser.set_defaults(run=show_steadiness)


def list_tasks(args: argparse.Namespace, output: Output) -> None:
    tasks = open_archive(args).tasks(available=args.available)
    output.rows(tasks, columns=("name", "kind", "cuts", "weights", "version"))


def show_task(args: argparse.Namespace, output: Output) -> None:
    output.record(open_archive(args).task(args.name))


def add_task(args: argparse.Namespace, output: Output) -> None:
    described = {name: value for name in FIELDS if (value := getattr(args, name)) is not None}
    labels = None if args.labels is None else _lines(args.labels)
    added = open_archive(args).add_task(args.name, labels=labels, **described)
    if added.warning:
        sys.stderr.write(f"nvp: warning: {added.warning}\n")
    output.done(added, text=_sentence(added))


def train_task(args: argparse.Namespace, output: Output) -> None:
    line = ProgressLine(sys.stderr)
    try:
        trained = open_archive(args).train_task(
            args.name,
            videos=args.videos,
            share=args.share,
            device=args.device,
            again=args.again,
            dry_run=args.dry_run,
            progress=line,
        )
    finally:
        line.close()
    output.rows(
        trained,
        columns=(
            "name", "state", "segments", "fidelity", "trained_frames", "measured_frames", "adapter_bytes",
            "seconds",
        ),
    )  # fmt: skip
    sys.stderr.write(f"{_summary(trained)}\n")
    if bad := [row for row in trained if row.why]:
        said = "; ".join(f"{row.name}: {row.why}" for row in bad)
        raise TaskError(f"{len(bad)} of {len(trained)} videos were not trained: {said}")


def stabilize_task(args: argparse.Namespace, output: Output) -> None:
    line = ProgressLine(sys.stderr)
    try:
        made = open_archive(args).stabilize(
            args.name,
            videos=args.videos,
            share=args.share,
            steps=args.steps,
            stability=args.stability,
            variant=args.variant,
            device=args.device,
            dry_run=args.dry_run,
            progress=line,
        )
    finally:
        line.close()
    output.done(made, text=_steadied(made))


def show_steadiness(args: argparse.Namespace, output: Output) -> None:
    found = open_archive(args).steadiness(args.name, videos=args.videos, every=args.every)
    output.rows(found, columns=("answers", "frames", "seconds", "flips", "flips_per_second", "agreement"))


def _steadied(made: StabilizerSummary | remote.StabilizerSummary) -> str:
    where = f" from {made.cut}" if made.cut else ""
    if made.state == "estimated":
        return (
            f"{made.name}: {made.steps} steps on {made.frames} frames of {made.segments} segments would take "
            f"{duration(made.seconds)}: {made.variant}{where}, {made.parameters} parameters"
        )
    told = [
        f"{name} {pair[0]:.3g} → {pair[1]:.3g}"
        for name, pair in (("change", made.change), ("error", made.error), ("flips a second", made.flips))
        if pair is not None
    ]
    judged = f"; on {made.judged_segments} others: {', '.join(told)}" if told else "; judged by no others"
    return (
        f"{made.name}@{made.version[:8]} is stabilized: {made.variant}{where}, {size(made.bytes)}, taught by "
        f"{made.frames} frames of {made.segments} segments{judged}"
    )


def _sentence(added: AddedTask | remote.AddedTask) -> str:
    how = "was registered" if added.already_registered else "is registered"
    kept = f" ({size(added.weights_bytes)})" if added.weights_bytes else ""
    return (
        f"{added.name}@{added.version[:8]} {how}: {added.kind}, {added.cuts} cuts, "
        f"weights: {added.weights}{kept}"
    )


def _summary(trained: Sequence[TrainedVideo] | Sequence[remote.TrainedVideo]) -> str:
    if not trained:
        return "no fitted video lacks routes of this task"
    frames, seconds = sum(row.frames for row in trained), sum(row.seconds for row in trained)
    about = "estimated: " if any(row.state == "estimated" for row in trained) else ""
    stored = sum(row.adapter_bytes for row in trained)
    return f"{about}{len(trained)} videos, {frames} frames, {duration(seconds)}, adapters {size(stored)}"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as cause:
        raise UsageError(f"--labels {path}: not a text in UTF-8") from cause


def _pair(text: str) -> tuple[int, int]:
    """AxB, two whole numbers (argparse type)."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not two whole numbers such as 224x224")
    return int(match[1]), int(match[2])


def _colour(text: str) -> tuple[float, float, float]:
    """R,G,B (argparse type)."""
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers such as 127,127,127") from None
    return red, green, blue


def _object(text: str) -> Mapping[str, Any]:
    """A JSON object (argparse type)."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return found
