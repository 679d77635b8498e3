"""`nvp upscale train`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvpstore.api.commands.opening import Subparsers, open_itself
from nvpstore.api.output import Output
from nvpstore.api.progress import ProgressLine, duration
from nvpstore.errors import SourceError, UsageError

if TYPE_CHECKING:
    from nvpstore.archive import Archive
    from nvpstore.upscaling.footage import Decoding, RgbFrames
    from nvpstore.upscaling.settings import TrainingProgress, TrainingSummary

# Spelled out, since help must not load torch.
PRESETS = ("tiny", "full", "micro")
TRAIN = """\
Trains an upscaler on videos and photographs, or where none are named on the originals that the archive has
kept; of those of fitted videos every second clip is made small from what the archive shows in their place,
so that its softness is learned too. Footage must be sharp: large frames are learned from at half their size.
FOLDER gets upscaler.safetensors, sample pictures (bicubic, upscaled, sharp from left to right) and
checkpoints: killed, the same command goes on.

Steps are those of each phase: a diffusion teacher, distilling it to one step, reconstruction, then against
discriminators. 0 leaves one out. SD-Turbo is under Stability AI's community licence; nothing is downloaded.

--json: weights, parameters, seconds, diverged (the last phase ended early, with its average before that).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """Progress as the line on stderr shows it."""

    phase: str
    done: int
    total: int
    eta_seconds: float | None
    psnr: float | None = None


def add_upscale(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser("upscale", help="train what makes frames larger", **options)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    train_parser = actions.add_parser("train", help="train an upscaler", description=TRAIN, **options)
    train_parser.add_argument(
        "footage", nargs="*", type=Path, metavar="PATH", help="videos, pictures, folders"
    )
    train_parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FOLDER", help="where it is kept"
    )
    train_parser.add_argument("--preset", choices=PRESETS, default="tiny", help="(default: %(default)s)")
    train_parser.add_argument(
        "--steps", type=_steps, metavar="T,D,R,A", help="of each phase (default: 4000,2000,20000,10000)"
    )
    train_parser.add_argument("--initial", type=Path, metavar="FILE", help="weights to begin with")
    train_parser.add_argument(
        "--sd-turbo", type=Path, metavar="FOLDER", help="a local copy, whose U-Net preset full begins with"
    )
    train_parser.add_argument(
        "--pruning", type=float, metavar="X", help="share of channels that is taken out"
    )
    train_parser.add_argument(
        "--clips", type=int, default=4, metavar="N", help="at once (default: %(default)s)"
    )
    train_parser.add_argument(
        "--side", type=int, default=128, metavar="N", help="pixels (default: %(default)s)"
    )
    train_parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: %(default)s)")
    train_parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)"
    )
    train_parser.set_defaults(run=train)


def train(args: argparse.Namespace, output: Output) -> None:
    from nvpstore.upscaling.footage import load_footage
    from nvpstore.upscaling.settings import TrainingSettings
    from nvpstore.upscaling.training import Training

    chosen = {} if args.steps is None else {"steps": args.steps}
    settings = TrainingSettings(
        preset=args.preset,
        pruning=args.pruning,
        clips=args.clips,
        side=args.side,
        seed=args.seed,
        **chosen,
    )
    decodings = {} if args.footage else _originals(args)
    footage = load_footage(
        args.footage or list(decodings),
        frames=settings.frames,
        side=settings.side,
        decodings={path: decoding for path, decoding in decodings.items() if decoding is not None},
    )
    training = Training(
        footage,
        settings,
        args.out,
        initial=args.initial,
        sd_turbo=args.sd_turbo,
        device=_device(args.device),
    )
    line = ProgressLine(sys.stderr)
    try:
        summary = training.run(lambda progress: line(_shown(progress)))
    finally:
        line.close()
    output.done(summary, text=_sentence(summary))


def _originals(args: argparse.Namespace) -> dict[Path, Decoding | None]:
    """Where they are, and what the archive shows of those that are fitted."""
    archive = open_itself(args)
    found: dict[Path, Decoding | None] = {}
    for video in archive.videos():
        ref = str(video["video_id"])
        try:
            path = archive.original(ref)
        except SourceError as error:
            sys.stderr.write(f"nvp: left out: {error}\n")
            continue
        found[path] = None
        if video["bpp"] is not None:
            sys.stderr.write(f"nvp: {video['name']}: its decodes at {video['bpp']:.3f} bpp too\n")
            found[path] = partial(_decoded, archive, ref)
    if not found:
        raise UsageError("no originals are at hand to learn from; name videos, pictures or folders")
    return found


def _decoded(archive: Archive, ref: str) -> Iterator[RgbFrames]:
    return (batch.rgb_thwc for batch in archive.frames(ref))


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _steps(text: str) -> tuple[int, ...]:
    try:
        steps = tuple(int(part) for part in text.split(","))
    except ValueError:
        steps = ()
    if len(steps) != 4:
        raise argparse.ArgumentTypeError(f"{text!r}: four whole numbers T,D,R,A are needed")
    return steps


def _shown(progress: TrainingProgress) -> _Shown:
    return _Shown(
        phase=progress.phase, done=progress.step, total=progress.steps, eta_seconds=progress.eta_seconds
    )


def _sentence(summary: TrainingSummary) -> str:
    ended = "; it diverged and ended early" if summary.diverged else ""
    took = duration(summary.seconds)
    return f"wrote {summary.weights}: {summary.parameters} parameters after {took}{ended}"
