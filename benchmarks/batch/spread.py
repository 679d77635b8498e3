"""One batch by one and by two workers, and its time against its frames: the whole backbone on originals."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np

import nvpstore
from benchmarks.footage import bikes_path
from nvpstore.archive import Archive
from nvpstore.config import load_settings

SQL = "SELECT video_id, frame, label, score FROM labels{} WHERE rank = 1"
REPEATS = 5
VIDEOS, MANY_VIDEOS, FRAMES = 12, 32, 40  # of real footage, each another part of it
STRIDES = (16, 8, 4, 2, 1)


def made_archive(folder: Path, *, threads: int, videos: int) -> Archive:
    """Added videos: their originals answer."""
    settings = load_settings({"NVP_CACHE": str(folder / "cache"), "NVP_THREADS": str(threads)})
    archive = nvpstore.open(folder / "archive", create=True, settings=settings)
    for number in range(videos):
        archive.add(_clip(folder, number), tags={"number": str(number)})
    return archive


def workers(folder: Path) -> dict[str, Any]:
    """Processes of one thread each, in turn; start-up and commit are in the time, as everybody meets them."""
    archive = made_archive(folder, threads=1, videos=MANY_VIDEOS)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    rows = {}
    for turn in range(REPEATS):
        for count in seconds:
            archive.drop_results()
            out = folder / f"out-{turn}-{count}"
            began = time.perf_counter()
            # One thread a worker: the share of two workers of two threads, of one of one.
            own = Archive(archive.store, replace(archive.settings, threads=count))
            report = own.batch(SQL.format(""), out, engine="processes", workers=count)
            seconds[count].append(time.perf_counter() - began)
            rows[count] = (report.rows, report.decoded_frames)
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    return {
        "sql": SQL.format(""),
        "videos": MANY_VIDEOS,
        "frames": MANY_VIDEOS * FRAMES,
        "rows_equal": rows[1] == rows[2],
        "one_worker_seconds": _spread(seconds[1]),
        "two_workers_seconds": _spread(seconds[2]),
        "sooner": _spread(ratios),
    }


def linear(folder: Path) -> dict[str, Any]:
    """Seconds of CPU against frames, in this process, warm: a least-squares line and what it leaves."""
    archive = made_archive(folder, threads=1, videos=VIDEOS)
    frames, seconds, clock = [], [], []
    archive.batch(SQL.format("(stride := 16)"), folder / "warm")
    for stride in STRIDES:
        runs, waits = [], []
        for turn in range(3):
            archive.drop_results()
            began, worked = time.perf_counter(), time.process_time()
            report = archive.batch(SQL.format(f"(stride := {stride})"), folder / f"out-{stride}-{turn}")
            runs.append(time.process_time() - worked)
            waits.append(time.perf_counter() - began)
        frames.append(report.decoded_frames)
        seconds.append(statistics.median(runs))
        clock.append(statistics.median(waits))
    slope, fixed = np.polyfit(frames, seconds, 1)
    residuals = np.array(seconds) - (fixed + slope * np.array(frames))
    return {
        "sql": SQL.format("(stride := n)"),
        "frames": frames,
        "seconds": seconds,
        "clock_seconds": clock,
        "fixed_seconds": float(fixed),
        "seconds_a_frame": float(slope),
        "residual_seconds": residuals.tolist(),
        "largest_residual_share": float(np.abs(residuals / np.array(seconds)).max()),
        "r2": float(1 - (residuals**2).sum() / ((np.array(seconds) - np.mean(seconds)) ** 2).sum()),
    }


def _spread(values: list[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "runs": values,
    }


def _clip(folder: Path, number: int) -> Path:
    """FRAMES frames of bikes from another place each, encoded again: files of bytes of their own."""
    path, first = folder / f"{number}.mp4", (number * 17) % 200
    with av.open(str(bikes_path())) as source, av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=25, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = 640, 272, "yuv420p"
        for frame in islice(source.decode(video=0), first, first + FRAMES):
            again = av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")
            target.mux(stream.encode(again))
        target.mux(stream.encode())
    return path
