"""What a query costs against the frames that it touches: a straight line, if nothing else grows."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.drawn import SEED, Shape, draw_archive
from benchmarks.query.counting import Session, settings_in
from benchmarks.query.outcome import Line, shown, spread

SEGMENTS = (1, 2, 4, 8, 16)
FRAMES = 32  # a segment
FPS = 25
SQL = "SELECT ts, label, score FROM labels WHERE ts < {} AND rank = 1"


def measure(repeats: int) -> dict[str, Any]:
    """Seconds from the text to the last row, weights fetched anew each time, sizes in drawn order."""
    shape = Shape(
        preset="demo",
        height=272,
        width=640,
        segments=max(SEGMENTS),
        frames=FRAMES,
        tasks={"labels": ("1", "blocks.11")},
        one_decoder=True,
    )
    order = random.Random(SEED)
    seconds: dict[int, list[float]] = {segments: [] for segments in SEGMENTS}
    frames: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "archive"
        draw_archive(str(root), shape)
        session = Session(root, settings_in(Path(folder) / "cache"))
        session.ask(query(SEGMENTS[-1]))  # loads the backbone and warms every allocation
        for _ in range(repeats):
            for segments in order.sample(SEGMENTS, len(SEGMENTS)):
                counted = session.renewed()
                seconds[segments].append(session.ask(query(segments)).seconds)
                frames[segments] = counted.decodes
    touched = [frames[n] for n in SEGMENTS]
    spreads = [spread(seconds[n]) for n in SEGMENTS]
    return {
        "sizes": [
            {"segments": n, "frames": frames[n], "seconds": found}
            for n, found in zip(SEGMENTS, spreads, strict=True)
        ],
        "line": fit_line(touched, [found["median"] for found in spreads]),
        # Other programs on the machine only ever add.
        "line_of_least": fit_line(touched, [found["least"] for found in spreads]),
    }


def query(segments: int) -> str:
    return SQL.format(segments * FRAMES / FPS)


def fit_line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Least squares y = fixed + each · x with R² and the largest residual as a share of its y.

    Raises ValueError for fewer than three points.
    """
    if len(x) < 3:
        raise ValueError(f"{len(x)} points: at least 3 say whether they lie on a line")
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    each, fixed = np.polyfit(xs, ys, 1)
    residuals = ys - (fixed + each * xs)
    total = float(((ys - ys.mean()) ** 2).sum())
    return {
        "fixed_seconds": float(fixed),
        "seconds_a_frame": float(each),
        "r2": 1.0 if total == 0 else 1 - float((residuals**2).sum()) / total,
        "largest_residual": float(np.abs(residuals / ys).max()),
    }


def lines(result: Mapping[str, Any]) -> list[Line]:
    line, last = result["line"], result["sizes"][-1]
    found = (
        f"{line['fixed_seconds'] * 1e3:.0f} ms + {line['seconds_a_frame'] * 1e3:.2f} ms a frame, R²"
        f" {line['r2']:.4f}, largest residual {line['largest_residual']:.1%}"
    )
    return [
        Line(part="linear", what="least squares", found=found),
        Line(part="linear", what=f"{last['frames']} frames", found=shown(last["seconds"], " s")),
    ]
