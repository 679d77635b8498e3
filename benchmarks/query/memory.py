"""The most memory that a query takes under NVP_MEMORY_LIMIT=64MiB, above what its process needs anyway.

Each query runs in a process of its own, which has imported everything, opened the archive and loaded the
backbone. `strict` counts from there; `warm` from after a first query of one frame, which also sets up
torch's and DuckDB's own threads and buffers. The same query under 2 GiB says what it would take otherwise.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.drawn import Shape, draw_archive
from benchmarks.query.child import Orders, ask_in_process
from benchmarks.query.counting import settings_in
from benchmarks.query.outcome import Line, shown, spread
from nvpstore.archive import open as open_archive
from nvpstore.codec.build import Architecture, build_architecture, find_preset

BUDGET_BYTES, WIDE_BYTES = 64 << 20, 2 << 30
LEAST_FEATURES = 20  # times the budget
MOST_RATIO = 1.25
FRAMES = 128  # a segment
STAGE, CUT = "3", "blocks.9"
IMAGE_FRAMES = 1024
TASK_SQL = "SELECT label, count(*), avg(score) FROM labels WHERE ts < {} AND rank = 1 GROUP BY label"
IMAGES_SQL = "SELECT count(*), sum(octet_length(image)) FROM frames WHERE ts < {}"
STREAM_SQL = "SELECT frame, image FROM frames WHERE ts < {}"
FPS = 25


def measure(repeats: int) -> dict[str, Any]:
    """`features`: aggregated task rows; `images`: aggregated image rows; `streamed_images`: the rows."""
    arch = build_architecture(272, 640, FRAMES, find_preset("demo"))
    segments = segments_for(arch)
    shape = Shape(
        preset="demo",
        height=272,
        width=640,
        segments=segments,
        frames=FRAMES,
        tasks={"labels": (STAGE, CUT)},
        one_decoder=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "archive"
        draw_archive(str(root), shape)
        everything = math.ceil(segments * FRAMES / FPS)
        pictures = IMAGE_FRAMES / FPS
        features = segments * FRAMES * frame_bytes(arch)
        return {
            "budget_bytes": BUDGET_BYTES,
            "features": {
                "frames": segments * FRAMES,
                "amount_bytes": features,
                "amount_in_budgets": features / BUDGET_BYTES,
                **peaks(root, TASK_SQL, everything, repeats),
            },
            "images": {
                "frames": IMAGE_FRAMES,
                "pixel_bytes": IMAGE_FRAMES * 3 * 272 * 640,
                **peaks(root, IMAGES_SQL, pictures, repeats),
            },
            "streamed_images": {
                "frames": IMAGE_FRAMES,
                **peaks(root, STREAM_SQL, pictures, repeats, streamed=True),
            },
        }


def frame_bytes(arch: Architecture) -> int:
    """Of one frame's features, float32, at the stage that is read."""
    return 4 * math.prod(arch.stage_shape(STAGE))


def segments_for(arch: Architecture) -> int:
    """So many that their features are at least `LEAST_FEATURES` budgets."""
    return math.ceil(LEAST_FEATURES * BUDGET_BYTES / (FRAMES * frame_bytes(arch)))


def peaks(root: Path, sql: str, seconds: float, repeats: int, *, streamed: bool = False) -> dict[str, Any]:
    """Peaks of `sql` up to `seconds`, over the budget, with nothing stored; one wide run beside them."""
    # The first query asks about one frame.
    orders = Orders(
        root=str(root), queries=(sql.format(0.01), sql.format(seconds)), loaded=("labels",), streamed=streamed
    )
    narrow = [_peak(orders, root, BUDGET_BYTES) for _ in range(repeats)]
    wide = _peak(orders, root, WIDE_BYTES)
    return {
        "sql": sql.format(seconds),
        "strict_ratio": spread([strict / BUDGET_BYTES for strict, _, _ in narrow]),
        "warm_ratio": spread([warm / BUDGET_BYTES for _, warm, _ in narrow]),
        "seconds": spread([took for _, _, took in narrow]),
        "wide": {
            "memory_bytes": WIDE_BYTES,
            "strict_bytes": wide[0],
            "warm_bytes": wide[1],
            "seconds": wide[2],
        },
    }


def _peak(orders: Orders, root: Path, budget_bytes: int) -> tuple[int, int, float]:
    """Bytes above the loaded process, bytes above the warm one, seconds."""
    with tempfile.TemporaryDirectory() as cache:
        # Stored answers would spare later runs the work; keeping them is a part of it, reading them is not.
        open_archive(root, settings=settings_in(Path(cache))).drop_results()
        report = ask_in_process(orders, NVP_CACHE=cache, NVP_MEMORY_LIMIT=str(budget_bytes))
    first, query = report.took
    peak = max(first.peak_bytes, query.peak_bytes)
    return peak - first.resident_bytes, query.peak_bytes - query.resident_bytes, query.seconds


def lines(result: Mapping[str, Any]) -> list[Line]:
    features = result["features"]
    what = {
        "features": f"features of {features['amount_in_budgets']:.0f} budgets",
        "images": f"{IMAGE_FRAMES} images, aggregated",
        "streamed_images": f"{IMAGE_FRAMES} images, streamed",
    }
    return [
        Line(
            part="memory",
            what=text,
            found=f"{shown(result[name]['strict_ratio'])} of 64 MiB;"
            f" warm {shown(result[name]['warm_ratio'])};"
            f" under 2 GiB {result[name]['wide']['strict_bytes'] / BUDGET_BYTES:.2f}",
            target=f"at most {MOST_RATIO}",
            met=result[name]["strict_ratio"]["median"] <= MOST_RATIO,
        )
        for name, text in what.items()
    ]
