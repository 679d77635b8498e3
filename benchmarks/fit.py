"""python -m benchmarks.fit --out benchmarks/results/fit.json [--clip FILE] [--device cpu] [--preset NAME …]

How long a clip takes to fit, and what PSNR its stored 8-bit weights have at source size over all
frames. Pixels only, no task terms. Each preset's result is kept as it is finished, and an unfinished
fit continues from its checkpoint, so a run that was cut off is continued by the same command.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch

from benchmarks.frames import Frames, read_frames, synthetic_frames
from benchmarks.machine import write_result
from benchmarks.roundtrip import networks, pictures, stored
from nvpstore.codec.artifact import coded_frames
from nvpstore.codec.build import build_architecture, find_preset
from nvpstore.codec.fit import FittedSegment, SegmentFit

SEED = 0
DEFAULT_PRESETS = ("demo", "hnerv-0.75m")


def main() -> None:
    args = parse_arguments()
    source = read_frames(args.clip, limit=args.frames) if args.clip else None
    frames = synthetic_frames(frames=args.frames, height=640, width=1280) if source is None else source
    footage = {"clip": args.clip.name if args.clip else "synthetic", "shape_thwc": list(frames.shape)}
    results = [finished_or_measured(name, frames, footage, args) for name in args.preset]
    write_result(args.out, {"question": "fit", "seed": SEED, "footage": footage, "presets": results})


def finished_or_measured(
    name: str, frames: Frames, footage: dict[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """One preset's result: from an earlier run of the same footage and device, or measured now."""
    path = args.out.with_name(f"{args.out.stem}-{name}.json")
    wanted = {"preset": name, "device": args.device, "footage": footage}
    if path.exists():
        earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if all(earlier[key] == value for key, value in wanted.items()):
            return earlier
    result = {**wanted, **measure(name, frames, args.device, checkpoint=path.with_suffix(".checkpoint"))}
    write_result(path, result)
    return result


def measure(name: str, frames: Frames, device: str, *, checkpoint: Path) -> dict[str, Any]:
    """Fit the frames as one segment at most as long as the preset allows."""
    preset = find_preset(name)
    rgb_tchw = torch.from_numpy(frames[: preset.max_segment_frames]).permute(0, 3, 1, 2)
    arch = build_architecture(rgb_tchw.shape[2], rgb_tchw.shape[3], len(rgb_tchw), preset)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    fit = SegmentFit(
        coded_frames(rgb_tchw, arch), arch, preset, device=device, seed=SEED, checkpoint=checkpoint
    )
    fitted = fit.run()
    checkpoint.unlink(missing_ok=True)
    psnr, stored_bytes = stored_quality(fitted, rgb_tchw, device)
    return {
        "frames": len(rgb_tchw),
        "epochs": fitted.epochs,
        "seconds": fitted.seconds,
        "seconds_per_epoch": fitted.seconds / fitted.epochs,
        "psnr": psnr,
        "payload_bytes": stored_bytes,
        "bpp": 8 * stored_bytes / (rgb_tchw.shape[0] * rgb_tchw.shape[2] * rgb_tchw.shape[3]),
    }


def stored_quality(fitted: FittedSegment, rgb_tchw: torch.Tensor, device: str) -> tuple[float, int]:
    """PSNR (dB) of what the stored bytes decode to, all frames at source size; and the count of bytes."""
    kept = stored(fitted)
    squared_error, done = 0.0, 0
    for shown in pictures(fitted, *networks(fitted, kept, device), (rgb_tchw.shape[2], rgb_tchw.shape[3])):
        difference = shown.double() - rgb_tchw[done : done + len(shown)].double()
        squared_error += float(difference.square().sum())
        done += len(shown)
    return 10 * math.log10(255**2 / (squared_error / rgb_tchw.numel())), kept.payload_bytes


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--frames", type=int, default=132)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", nargs="+", default=list(DEFAULT_PRESETS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
