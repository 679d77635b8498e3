"""python -m benchmarks.resting [--frames 160] [--out FILE]: a camera that rests, stored once for frames that
show the same, and once as if all differed.

A photograph with a sensor's noise, through x264 (crf 23); for a fifth of the time something passes. Both
sides are the demo's preset with the task `labels`. Seconds are the processor's, of one thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import nvpstore
from benchmarks.footage import FPS, SCIKIT_IMAGE, SCIKIT_LEARN, package_folder, read_image
from benchmarks.machine import ROOT, write_result
from nvpstore.api.output import TextOutput, aligned
from nvpstore.config import load_settings
from nvpstore.ingest import segment

HEIGHT, WIDTH = 272, 640
NOISE = 1.5  # 8-bit levels
PASSING = (0.4, 0.6)  # of the time
SIDE = 64  # pixels, of what passes
SQL = "SELECT count(*), avg(score) FROM labels(route := 'adapter') WHERE rank = 1"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=160)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/resting.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        clip = write_clip(Path(folder) / "resting.mp4", args.frames)
        rows = [measured(clip, Path(folder), args.frames, alike=alike) for alike in (True, False)]
    write_result(args.out, {"question": "resting", "frames": args.frames, "seed": 0, "rows": rows})
    output = TextOutput()
    heads = ("", "learned from", "fit s", "stored bytes", "PSNR", "worst 5 %", "fidelity", "query s")
    for text in aligned(heads, [_shown(row) for row in rows]):
        output.text(text)


def write_clip(path: Path, frames: int) -> Path:
    chance = np.random.default_rng(0)
    still = read_image(package_folder(*SCIKIT_LEARN) / "china.jpg")[60 : 60 + HEIGHT, :WIDTH]
    other = read_image(package_folder(*SCIKIT_IMAGE) / "astronaut.png")[20 : 20 + 4 * SIDE : 4, 130:386:4]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "23", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(frames):
            rgb = _with(still, other, (i / frames - PASSING[0]) / (PASSING[1] - PASSING[0]))
            noisy = rgb + NOISE * chance.standard_normal((HEIGHT, WIDTH, 1))
            frame = av.VideoFrame.from_ndarray(noisy.round().clip(0, 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _with(still: NDArray[np.uint8], other: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """`other` on its way from the left edge to the right one."""
    if not 0 <= share < 1:
        return still
    rgb, left, top = still.copy(), round(share * (WIDTH - SIDE)), HEIGHT // 2
    rgb[top : top + SIDE, left : left + SIDE] = other
    return rgb


def measured(clip: Path, folder: Path, frames: int, *, alike: bool) -> dict[str, Any]:
    name = "alike" if alike else "apart"
    settings = load_settings(
        {"NVP_CACHE": str(folder / f"{name}-cache"), "NVP_ANSWERS": "off", "NVP_THREADS": "1"}
    )
    archive = nvpstore.open(folder / name, create=True, settings=settings)
    runs: list[int] = []
    with _counted(runs, alike=alike), _clock() as fitting:
        video = archive.ingest(clip, preset="demo", device="cpu")
    assert video.frames == frames
    archive.sql(SQL).fetchall()  # loads the backbone
    again = nvpstore.open(folder / name, settings=settings)
    with _clock() as asking:
        again.sql(SQL).fetchall()
    shown = archive.show(video.video_id)
    fidelity = archive.sql("SELECT avg(fidelity) FROM labels(route := 'adapter') WHERE rank = 1").fetchall()
    sys.stderr.write(f"{name}: {fitting['cpu_seconds']:.0f} s\n")
    return {
        "frames_alike_are_one": alike,
        "learned_from": sum(runs),
        "fit": fitting,
        "query": asking,
        "stored_bytes": video.stored_bytes,
        "psnr": video.psnr,
        "psnr_p5": shown["psnr_p5"],
        "fidelity": fidelity[0][0],
    }


@contextmanager
def _counted(runs: list[int], *, alike: bool) -> Iterator[None]:
    find = segment.alike_runs

    def found(frames: Tensor, rms: float) -> Tensor:
        lengths = find(frames, rms) if alike else torch.ones(len(frames), dtype=torch.int64)
        runs.append(len(lengths))
        return lengths

    with patch.object(segment, "alike_runs", found):
        yield


@contextmanager
def _clock() -> Iterator[dict[str, float]]:
    found: dict[str, float] = {}
    cpu, clock = time.process_time(), time.perf_counter()
    yield found
    found["cpu_seconds"] = time.process_time() - cpu
    found["seconds"] = time.perf_counter() - clock


def _shown(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        "as one" if row["frames_alike_are_one"] else "apart",
        str(row["learned_from"]),
        f"{row['fit']['cpu_seconds']:.0f}",
        str(row["stored_bytes"]),
        f"{row['psnr']:.2f}",
        f"{row['psnr_p5']:.2f}",
        "" if row["fidelity"] is None else f"{row['fidelity']:.3f}",
        f"{row['query']['cpu_seconds']:.2f}",
    )


if __name__ == "__main__":
    main()
