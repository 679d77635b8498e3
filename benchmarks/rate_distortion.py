"""python -m benchmarks.rate_distortion [--clip bunny|bikes|FILE] [--size 160x320] [--frames 132]
[--epochs 50] [--parameters 90000 180000 350000 700000] [--bits 8 5] [--device cpu] [--folder F] [--out FILE]:
rate and quality of what is stored, beside what FFmpeg's encoders make of the same frames.

Ours: HNeRV fits for reconstruction alone, rounded after the fit to 8 bit or trained with a budget of bits a
weight, counted as the bytes of the weights and latents files as they are stored (zstd inside Parquet, footers
and all). Theirs: x264 and x265 (medium and veryslow), SVT-AV1, as bytes of their packets, at a ladder of
quality. Quality over all frames at this size: PSNR of RGB and of YUV (6:1:1), SSIM and MS-SSIM of luma, the
worst frame and the 5th percentile; seconds to encode and to decode. BD-rate of every codec against ours
(negative: it needs fewer bytes), where the curves overlap. Every point is kept in FOLDER: a rerun goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bjontegaard
import torch
import torch.nn.functional as F
from pytorch_msssim import ms_ssim, ssim
from torch import Tensor

from benchmarks.accuracy.codecs import Encoder, encode_at
from benchmarks.footage import bikes_path, bunny_path
from benchmarks.machine import ROOT, write_result
from benchmarks.roundtrip import networks, pictures, stored
from nvpstore.api.output import TextOutput, aligned
from nvpstore.codec.artifact import coded_frames
from nvpstore.codec.build import PRESETS, Preset, build_architecture
from nvpstore.codec.fit import SegmentFit
from nvpstore.video.source import read_frames

SEED = 0
WHOLE_BITS = 8.0  # rounded after the fit
LADDERS: Mapping[str, tuple[float, ...]] = {
    "x264": (18, 23, 28, 33, 38, 43),
    "x265": (18, 23, 28, 33, 38, 43),
    "av1": (20, 28, 36, 44, 52, 60),
}
SETTINGS: Mapping[str, tuple[str, str, Sequence[str]]] = {
    "x264": ("libx264", "crf", ("medium", "veryslow")),
    "x265": ("libx265", "crf", ("medium", "veryslow")),
    "av1": ("libsvtav1", "crf", ("6",)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What came back of the frames, uint8 [t, 3, h, w], and what it took."""

    rgb: Tensor
    stored_bytes: int
    encode_seconds: float
    decode_seconds: float
    settings: Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    args = _arguments(arguments)
    frames = load(args.clip, args.size, args.frames)
    kept = Kept(args.folder, frames)
    points = [point for make in (ours, theirs) for point in make(args, frames, kept)]
    result = {
        "question": "rate and distortion",
        "seed": SEED,
        "clip": args.clip,
        "shape_tchw": list(frames.shape),
        "epochs": args.epochs,
        "points": points,
        "bd_rate_percent": bd_rates(points),
    }
    write_result(args.out, result)
    output = TextOutput()
    for text in aligned(_HEADS, [_shown(point) for point in points]):
        output.text(text)
    for name, value in result["bd_rate_percent"].items():
        said = "no overlap" if value is None else f"{value:+.0f} %"
        output.text(f"BD-rate of {name} against ours: {said}")


# ---------------------------------------------------------------- ours


def ours(args: argparse.Namespace, frames: Tensor, kept: Kept) -> list[dict[str, Any]]:
    """A point a size and a number of bits."""
    made = []
    for parameters in args.parameters:
        for bits in args.bits:
            preset = preset_of(parameters, bits, len(frames), args.epochs)
            name = f"hnerv-{parameters}-{bits:g}bit-{args.epochs}"
            codec = f"ours {bits:g} bit"
            made.append(
                kept.point(
                    name,
                    codec,
                    lambda p=preset, n=name: fitted(
                        frames, p, args.device, args.folder / f"{n}.weights.parquet"
                    ),
                )
            )
    return made


def preset_of(parameters: int, bits: float, frames: int, epochs: int) -> Preset:
    """Our schedule on the sizes of HNeRV's small models; strides for 160×320."""
    return replace(
        PRESETS["demo"],
        name=f"rd-{parameters}",
        coded_pixels=None,
        parameters=parameters,
        strides=(5, 4, 2, 2),
        kernels=(1, 3, 3, 3),
        width_profile=(1.0, 0.75, 0.5, 0.3, 0.2),
        max_segment_frames=frames,
        epochs=epochs,
        least_steps=0,
        target_psnr=None,
        weight_bits=None if bits >= WHOLE_BITS else bits,
    )


def fitted(frames: Tensor, preset: Preset, device: str, keep: Path) -> Shown:
    """A fit as it comes back from its files, of which the weights are left in `keep`."""
    arch = build_architecture(frames.shape[2], frames.shape[3], len(frames), preset)
    fit = SegmentFit(coded_frames(frames, arch), arch, preset, device=device, seed=SEED).run()
    kept = stored(fit)
    weights, latents = kept.files()
    keep.write_bytes(weights)
    began = time.perf_counter()
    shown = list(pictures(fit, *networks(fit, kept, device), (frames.shape[2], frames.shape[3])))
    return Shown(
        rgb=torch.cat(shown),
        stored_bytes=len(weights) + len(latents),
        encode_seconds=fit.seconds,
        decode_seconds=time.perf_counter() - began,
        settings={"parameters": preset.parameters, "weight_bits": preset.weight_bits},
    )


# ---------------------------------------------------------------- theirs


def theirs(args: argparse.Namespace, frames: Tensor, kept: Kept) -> list[dict[str, Any]]:
    made = []
    for name, (library, knob, presets) in SETTINGS.items():
        for preset in presets:
            options = {"preset": preset}
            encoder = Encoder(
                name=name, library=library, knob=knob, low=0, high=63, options=options, whole=True
            )
            for value in LADDERS[name]:
                label = f"{name} {preset}"
                made.append(
                    kept.point(
                        f"{name}-{preset}-{value:g}",
                        label,
                        lambda e=encoder, v=value: encoded(e, frames, v),
                    )
                )
    return made


def encoded(encoder: Encoder, frames: Tensor, knob: float) -> Shown:
    done = encode_at(encoder, frames, knob)
    return Shown(
        rgb=done.rgb,
        stored_bytes=done.stored_bytes,
        encode_seconds=done.encode_seconds,
        decode_seconds=done.decode_seconds,
        settings={encoder.knob: knob, **encoder.options},
    )


# ---------------------------------------------------------------- quality


class Kept:
    """Points that are done, a file each."""

    def __init__(self, folder: Path, frames: Tensor) -> None:
        self.folder, self.frames = folder, frames
        folder.mkdir(parents=True, exist_ok=True)

    def point(self, name: str, codec: str, make: Callable[[], Shown]) -> dict[str, Any]:
        path = self.folder / f"{name}.json"
        if not path.exists():
            shown = make()
            point = {"codec": codec, "name": name, **quality(shown, self.frames)}
            part = path.with_suffix(".part")
            part.write_text(json.dumps(point))
            part.replace(path)
            sys.stderr.write(f"{name}: {point['bpp']:.4f} bpp, {point['psnr']:.2f} dB\n")
        found: dict[str, Any] = json.loads(path.read_text())
        return found


@torch.no_grad()
def quality(shown: Shown, frames: Tensor) -> dict[str, Any]:
    """All figures of one point."""
    own, source = shown.rgb.float(), frames.float()
    errors = (own - source).square().flatten(1).mean(1).double()
    each = 10 * torch.log10(255**2 / errors.clamp_min(1e-9))
    yuv = (yuv_of(own) - yuv_of(source)).square().mean((0, 2, 3)).double()
    weighed = float((10 * torch.log10(255**2 / yuv)) @ torch.tensor([6, 1, 1], dtype=torch.float64)) / 8
    luma = yuv_of(own)[:, :1].clamp(0, 255), yuv_of(source)[:, :1].clamp(0, 255)
    sides = min(frames.shape[2:])
    return {
        "bytes": shown.stored_bytes,
        "bpp": 8 * shown.stored_bytes / (frames.shape[0] * frames.shape[2] * frames.shape[3]),
        "psnr": float(10 * torch.log10(255**2 / errors.mean())),
        "psnr_mean_of_frames": float(each.mean()),
        "psnr_worst": float(each.min()),
        "psnr_p5": float(each.quantile(0.05)),
        "psnr_yuv_611": weighed,
        "ssim": float(ssim(*luma, data_range=255)),
        # Five scales need more than 160 pixels on the shorter side.
        "ms_ssim": float(ms_ssim(*luma, data_range=255))
        if sides > 160
        else float(ms_ssim(*_doubled(luma), data_range=255)),
        "encode_seconds": shown.encode_seconds,
        "decode_seconds": shown.decode_seconds,
        **shown.settings,
    }


def yuv_of(rgb: Tensor) -> Tensor:
    """BT.601, full range, of [t, 3, h, w] in 0 … 255."""
    matrix = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    return torch.einsum("ij,tjhw->tihw", matrix, rgb)


def _doubled(luma: tuple[Tensor, Tensor]) -> list[Tensor]:
    return [F.interpolate(x, scale_factor=2, mode="nearest") for x in luma]


def bd_rates(points: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Of each codec against the best of ours (Bjøntegaard, VCEG-M33; Akima interpolation)."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        curves.setdefault(point["codec"], []).append((point["bpp"], point["psnr"]))
    own = frontier([p for name, curve in curves.items() if name.startswith("ours") for p in curve])
    theirs = {name: frontier(curve) for name, curve in curves.items() if not name.startswith("ours")}
    return {name: _bd(own, curve) for name, curve in theirs.items()}


def frontier(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points than which no other has fewer bytes and a better picture, by rate."""
    best: list[tuple[float, float]] = []
    for rate, psnr in sorted(curve):
        if not best or psnr > best[-1][1]:
            best.append((rate, psnr))
    return best


def _bd(own: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> float | None:
    low, high = max(own[0][1], other[0][1]), min(own[-1][1], other[-1][1])
    if len(own) < 4 or len(other) < 4 or low >= high:
        return None
    (r0, p0), (r1, p1) = (list(zip(*curve, strict=True)) for curve in (own, other))
    value = bjontegaard.bd_rate(r0, p0, r1, p1, method="akima", require_matching_points=False)
    return float(value) if math.isfinite(value) else None


# ---------------------------------------------------------------- parts


def load(clip: str, size: str, count: int) -> Tensor:
    """The first frames of a clip, resized, uint8 [t, 3, h, w]."""
    path = {"bunny": bunny_path, "bikes": bikes_path}.get(clip, lambda: Path(clip))()
    height, width = (int(side) for side in size.split("x"))
    parts: list[Tensor] = []
    for batch in read_frames(str(path), end_frame=count):
        rgb = torch.from_numpy(batch.rgb_thwc).permute(0, 3, 1, 2).float()
        small = F.interpolate(rgb, (height, width), mode="bicubic", antialias=True)
        parts.append(small.clamp(0, 255).round().byte())
    return torch.cat(parts)


_HEADS = ("codec", "bpp", "PSNR", "worst", "YUV 6:1:1", "SSIM", "encode s", "decode s")


def _shown(point: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        point["codec"],
        f"{point['bpp']:.4f}",
        f"{point['psnr']:.2f}",
        f"{point['psnr_worst']:.2f}",
        f"{point['psnr_yuv_611']:.2f}",
        f"{point['ssim']:.4f}",
        f"{point['encode_seconds']:.1f}",
        f"{point['decode_seconds']:.2f}",
    )


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rate_distortion", description=__doc__)
    parser.add_argument("--clip", default="bunny")
    parser.add_argument("--size", default="160x320", metavar="HxW")
    parser.add_argument("--frames", type=int, default=132)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--parameters", type=int, nargs="+", default=[90_000, 180_000, 350_000, 700_000])
    parser.add_argument("--bits", type=float, nargs="+", default=[8, 5])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", type=Path, default=ROOT / "demo/rate_distortion")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/rate_distortion.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
