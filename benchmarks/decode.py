"""python -m benchmarks.decode [--preset demo hnerv-1.5m] [--batch 1 4 16] [--frames 32] [--repeats 5]
[--clock wall|processor] [--device cpu] [--out FILE]: how fast stored segments decode, to every stage and in
every batch.

Frames a second of warm weights, by the depth that is decoded to; milliseconds from a segment's stored bytes
to the features of all its frames (read, dequantise, decode: what a cold query waits for, less its requests).
The weights are random, which changes no speed. Beside them, in turn and in the same process: PyAV with all
threads on x264 at the same size, frames as decoded and as RGB. `of_peak` is the share of what a large matrix
product reaches with as many threads (the roofline of arithmetic).

Medians of the repeats after one that does not count; every side runs in each turn. `--clock processor` counts
the seconds that all threads computed (with OMP_NUM_THREADS=1, frames a second of a core): for machines where
others work.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from benchmarks.frames import read_frames
from benchmarks.machine import ROOT, write_result
from nvpstore.api.output import TextOutput, aligned
from nvpstore.codec.artifact import (
    decode_taps,
    load_decoder,
    load_latents,
    store_latents,
    store_weights,
)
from nvpstore.codec.build import Architecture, build_architecture, find_preset, stage_gflops
from nvpstore.codec.hnerv import Decoder
from nvpstore.storage.tables import decode_latents, decode_stages, encode_latents, encode_weights

SEED = 0
HEIGHT, WIDTH = 640, 1280  # of the source: presets code it at their own size
PEAK_SIDE = 1536  # of the matrices whose product stands for the machine's peak
FPS = 25
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def main(arguments: Sequence[str] | None = None) -> None:
    args = _arguments(arguments)
    torch.manual_seed(SEED)
    peak = peak_gflops(args.device, CLOCKS[args.clock])
    presets = [measured(name, args, peak) for name in args.preset]
    result = {
        "question": "how fast segments decode",
        "seed": SEED,
        "device": args.device,
        "clock": args.clock,
        "frames": args.frames,
        "repeats": args.repeats,
        "peak_gflops_a_second": peak,
        "presets": presets,
    }
    write_result(args.out, result)
    output = TextOutput()
    for preset in presets:
        output.text(f"{preset['preset']}, {preset['coded']}")
        for text in aligned(_HEADS, [_shown(row) for row in preset["sides"]]):
            output.text(text)


def measured(name: str, args: argparse.Namespace, peak: float) -> dict[str, Any]:
    """All sides of one preset, in turns."""
    preset = find_preset(name)
    arch = build_architecture(HEIGHT, WIDTH, args.frames, preset)
    stored = Stored(arch, args.frames)
    video = encoded(arch.content_height, arch.content_width, args)
    sides: dict[str, tuple[dict[str, Any], Callable[[], None]]] = {}
    for stage, gflops in zip(arch.stage_names, stage_gflops(arch), strict=True):
        for batch in args.batch:
            about = {"side": "warm", "stage": stage, "batch": batch, "gflops_a_frame": gflops}
            sides[f"warm {stage} {batch}"] = (about, stored.warm(stage, batch, args.device))
        about = {"side": "cold", "stage": stage, "batch": max(args.batch), "gflops_a_frame": gflops}
        about["bytes"] = stored.bytes_to(stage)
        sides[f"cold {stage}"] = (about, stored.cold(stage, max(args.batch), args.device))
    for pixels in (None, "rgb24"):
        about = {"side": "pyav", "stage": pixels or "as decoded", "batch": None, "bytes": len(video)}
        sides[f"pyav {pixels}"] = (about, lambda p=pixels: _decoded(video, p))
    clock = CLOCKS[args.clock]
    seconds = _in_turns({key: run for key, (_, run) in sides.items()}, args.repeats, clock)
    return {
        "preset": name,
        "coded": f"{arch.coded_height}x{arch.coded_width}",
        "sides": [_row(about, seconds[key], args.frames, peak) for key, (about, _) in sides.items()],
    }


class Stored:
    """A segment as its files hold it, in memory."""

    def __init__(self, arch: Architecture, frames: int) -> None:
        self.arch = arch
        stages = store_weights(Decoder(arch), segment=0)
        latents = store_latents(
            torch.randn(frames, *arch.latent_shape), segment=0, start_frame=0, pts=np.arange(frames)
        )
        self.weights, self.latents = encode_weights("weights", stages), encode_latents("latents", [latents])

    def bytes_to(self, stage: str) -> int:
        depth = self.arch.stage_names.index(stage) + 1
        return sum(part.size_bytes for part in self.weights.row_groups[:depth]) + len(self.latents.data)

    def warm(self, stage: str, batch: int, device: str) -> Callable[[], None]:
        decoder, latents = self._loaded(stage, device)

        def run() -> None:
            for _ in decode_taps(decoder, latents, (stage,), batch_frames=batch):
                pass
            _finish(device)

        return run

    def cold(self, stage: str, batch: int, device: str) -> Callable[[], None]:
        def run() -> None:
            decoder, latents = self._loaded(stage, device)
            for _ in decode_taps(decoder, latents, (stage,), batch_frames=batch):
                pass
            _finish(device)

        return run

    def _loaded(self, stage: str, device: str) -> tuple[Decoder, torch.Tensor]:
        depth = self.arch.stage_names.index(stage) + 1
        groups = self.weights.row_groups[:depth]
        end = groups[-1].offset + groups[-1].size_bytes
        data = self.weights.data[groups[0].offset : end]
        stages = decode_stages(data, groups[0].offset, self.weights.footer, groups)
        (part,) = self.latents.row_groups
        latents = decode_latents(
            self.latents.data[part.offset : part.offset + part.size_bytes],
            part.offset,
            self.latents.footer,
            part,
        )
        return load_decoder(self.arch, stages, device=device), load_latents(latents)


# ---------------------------------------------------------------- PyAV


def encoded(height: int, width: int, args: argparse.Namespace) -> bytes:
    """The clip's first frames as x264 at this size."""
    from benchmarks.footage import bunny_path

    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "23", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i, rgb in enumerate(read_frames(bunny_path(), limit=args.frames)):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(width, height)
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def _decoded(data: bytes, pixels: str | None) -> None:
    with av.open(io.BytesIO(data)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            if pixels is not None:
                frame.to_ndarray(format=pixels)


# ---------------------------------------------------------------- measuring


def peak_gflops(device: str, clock: Callable[[], float]) -> float:
    """GFLOPs a second of a large matrix product, the best of ten."""
    a, b = (torch.randn(PEAK_SIDE, PEAK_SIDE, device=device) for _ in range(2))
    seconds = []
    for _ in range(10):
        began = clock()
        a @ b
        _finish(device)
        seconds.append(clock() - began)
    return float(2 * PEAK_SIDE**3 / 1e9 / min(seconds))


def _in_turns(
    sides: dict[str, Callable[[], None]], repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each side's runs, all sides in each turn; the first turn does not count."""
    seconds: dict[str, list[float]] = {key: [] for key in sides}
    for key, took in _turns(sides, repeats + 1, clock):
        seconds[key].append(took)
    return {key: took[1:] for key, took in seconds.items()}


def _turns(
    sides: dict[str, Callable[[], None]], turns: int, clock: Callable[[], float]
) -> Iterator[tuple[str, float]]:
    for _ in range(turns):
        for key, run in sides.items():
            began = clock()
            run()
            yield key, clock() - began


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _row(about: dict[str, Any], seconds: Sequence[float], frames: int, peak: float) -> dict[str, Any]:
    median = statistics.median(seconds)
    fps = frames / median
    return {
        **about,
        "milliseconds": 1e3 * median,
        "milliseconds_spread": [1e3 * min(seconds), 1e3 * max(seconds)],
        "frames_a_second": fps,
        "of_peak": about["gflops_a_frame"] * fps / peak if "gflops_a_frame" in about else None,
    }


_HEADS = ("side", "to", "batch", "ms", "frames/s", "of peak")


def _shown(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["side"],
        row["stage"],
        str(row["batch"] or ""),
        f"{row['milliseconds']:.1f}",
        f"{row['frames_a_second']:.0f}",
        "" if row["of_peak"] is None else f"{100 * row['of_peak']:.0f} %",
    )


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--preset", nargs="+", default=["demo", "hnerv-1.5m"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/decode.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
