"""python -m benchmarks.bunny [--size 640x1280] [--epochs 300] [--parameters 350000 …] [--device cpu]
[--out FILE]: is our HNeRV HNeRV? Table 1 of its paper.

Big Buck Bunny's 132 frames, cropped to 640×1280 (and made smaller where `--size` says so), fitted with the
paper's widths, kernels, schedule and batch. PSNR is the mean over frames, as published, of the networks in
fp32 and of what is stored, 8 bit; `psnr_all` is of the stored frames' mean squared error. Beside each the
demo's widths and schedule, at as many parameters and epochs. Seconds are of one core (of the clock on a GPU),
null where a fit was gone on with. A CPU does it small: --size 160x320 --epochs 50 --parameters 350000 takes a
quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.fit import stored_quality
from benchmarks.fitting import preset_of
from benchmarks.footage import bunny_path
from benchmarks.machine import ROOT, write_result
from benchmarks.roundtrip import networks, pictures, stored
from nvpstore.api.output import TextOutput, aligned
from nvpstore.codec.artifact import coded_frames
from nvpstore.codec.build import build_architecture, paper_kernels, paper_profile
from nvpstore.codec.fit import FittedSegment, SegmentFit
from nvpstore.codec.hnerv import Decoder
from nvpstore.video.source import read_frames

FRAMES, CROP = 132, (640, 1280)
STRIDES = {(640, 1280): (5, 4, 4, 2, 2)}  # as published; smaller ones end a stage earlier
SMALLER_STRIDES = (5, 4, 2, 2)
PUBLISHED = {350_000: 30.15, 750_000: 32.81, 1_500_000: 35.57, 3_000_000: 37.43}  # 640×1280, 300 epochs
SEED = 0


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    size = tuple(int(side) for side in args.size.split("x"))
    frames = load((size[0], size[1]))
    rows = []
    for parameters in args.parameters:
        for which in ("paper", "ours"):
            rows.append(kept(args.folder / f"{which}-{parameters}-{args.size}-{args.epochs}.json", which,
                             parameters, frames, args))  # fmt: skip
    result = {
        "question": "the published table of HNeRV on Bunny",
        "size": list(size),
        "frames": len(frames),
        "epochs": args.epochs,
        "device": args.device,
        "rows": rows,
    }
    write_result(args.out, result)
    output = TextOutput()
    heads = ("schedule", "parameters", "fp32 dB", "stored dB", "published", "stored bytes", "seconds")
    for text in aligned(heads, [_shown(row, size) for row in rows]):
        output.text(text)


def load(size: tuple[int, int]) -> Tensor:
    """uint8 [t, 3, h, w]: the middle of each frame at 640×1280, made smaller to `size`."""
    parts = []
    for batch in read_frames(str(bunny_path()), end_frame=FRAMES):
        top, left = ((a - b) // 2 for a, b in zip(batch.rgb_thwc.shape[1:3], CROP, strict=True))
        cropped = batch.rgb_thwc[:, top : top + CROP[0], left : left + CROP[1]]
        rgb = torch.from_numpy(np.ascontiguousarray(cropped)).permute(0, 3, 1, 2)
        if size != CROP:
            small = F.interpolate(rgb.float(), size, mode="bicubic", antialias=True)
            rgb = small.round().clamp(0, 255).byte()
        parts.append(rgb)
    return torch.cat(parts)


def kept(path: Path, which: str, parameters: int, frames: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """From an earlier run, or measured now."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        row = measured(which, parameters, frames, args, checkpoint=path.with_suffix(".checkpoint"))
        path.write_text(json.dumps(row))
        sys.stderr.write(f"{path.stem}: {row['psnr']:.2f} dB\n")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def measured(
    which: str, parameters: int, frames: Tensor, args: argparse.Namespace, *, checkpoint: Path
) -> dict[str, Any]:
    size = (frames.shape[2], frames.shape[3])
    strides = STRIDES.get(size, SMALLER_STRIDES)
    preset = replace(preset_of(which, parameters, len(frames)), epochs=args.epochs)
    if strides != preset.strides:
        profile = paper_profile(len(strides)) if which == "paper" else (*preset.width_profile, 0.094)
        kernels = paper_kernels(len(strides)) if which == "paper" else (*preset.kernels, 3)
        preset = replace(preset, strides=strides, width_profile=profile, kernels=kernels)
    arch = build_architecture(*size, len(frames), preset)
    began, again = time.process_time(), checkpoint.exists()
    fit = SegmentFit(
        coded_frames(frames, arch).half(), arch, preset, device=args.device, seed=SEED, checkpoint=checkpoint
    ).run()
    taken = time.process_time() - began if args.device == "cpu" else fit.seconds
    checkpoint.unlink(missing_ok=True)
    exact = per_frame(fit.decoder, fit.latents, fit, frames)
    read = per_frame(*networks(fit, stored(fit), args.device), fit, frames)
    psnr_all, stored_bytes = stored_quality(fit, frames, args.device)
    return {
        "schedule": which,
        "parameters": parameters,
        "psnr": float(exact.mean()),
        "psnr_stored": float(read.mean()),
        "psnr_all": psnr_all,
        "published": PUBLISHED.get(parameters),
        "stored_bytes": stored_bytes,
        "bpp": 8 * stored_bytes / (len(frames) * size[0] * size[1]),
        "seconds": None if again else taken,
    }


def per_frame(decoder: Decoder, latents: Tensor, fit: FittedSegment, frames: Tensor) -> np.ndarray:
    """PSNR (dB) [t] of what a decoder shows, in 8 bit."""
    found: list[Tensor] = []
    for shown in pictures(fit, decoder, latents, (frames.shape[2], frames.shape[3])):
        error = shown.double() - frames[len(found) : len(found) + len(shown)].double()
        found += list(-10 * torch.log10(error.square().mean((1, 2, 3)) / 255**2))
    return torch.stack(found).numpy()


def _shown(row: dict[str, Any], size: tuple[int, ...]) -> tuple[str, ...]:
    return (
        row["schedule"],
        str(row["parameters"]),
        f"{row['psnr']:.2f}",
        f"{row['psnr_stored']:.2f}",
        f"{row['published']:.2f}" if row["published"] and size == CROP else "",
        str(row["stored_bytes"]),
        "" if row["seconds"] is None else f"{row['seconds']:.0f}",
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="640x1280", metavar="HxW")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--parameters", type=int, nargs="+", default=list(PUBLISHED))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", type=Path, default=ROOT / "demo/bunny")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/bunny.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
