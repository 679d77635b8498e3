"""python -m benchmarks.joint [--preset demo] [--out FILE]: what tasks in a fit cost the picture.

The demo's clips, each fitted for reconstruction alone and jointly with `labels`: the same
network, as many steps, the same encoding. PSNR at source size over all frames of what is stored; bytes of the
network and its latents, without adapters and routes. Beside it what the joint fit buys: agreement of first
labels on frames that no adapter and no term was trained on. Of joint fits there are three a clip, each with
another third of the frames unseen, so that every frame is unseen by one of them.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import nvpstore
from benchmarks.demo import FRAMES, WRITERS
from benchmarks.figures import Agreements, agree
from benchmarks.machine import ROOT, write_result
from nvpstore.api.output import TextOutput, aligned
from nvpstore.archive import Archive
from nvpstore.codec.build import PRESETS
from nvpstore.config import load_settings
from nvpstore.ingest import units
from nvpstore.ingest.units import MEASURED_EVERY
from nvpstore.tasks.heads import CONFIDENT

TASK = "labels"
ADDED_SHARE = 2 / 3  # of the frames, where adapters come after the fit: as many as a joint fit's terms see


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="demo")
    parser.add_argument("--frames", type=int, default=None, help="of each clip (default: the demo's)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/joint.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for clip, write in WRITERS.items():
            path = write(Path(name) / f"{clip}.mp4", args.frames or FRAMES[clip])
            rows.append(measured(clip, path, Path(name), preset=args.preset, fold=None))
            for fold in range(MEASURED_EVERY):
                with patch.object(units, "MEASURED_AT", fold):
                    rows.append(measured(clip, path, Path(name), preset=args.preset, fold=fold))
    write_result(args.out, {"question": "joint", "preset": args.preset, "seed": 0, "rows": rows})
    output = TextOutput()
    for text in aligned(("clip", "fit", "PSNR", "network bytes", "fidelity"), [shown(row) for row in rows]):
        output.text(text)


def measured(clip: str, path: Path, folder: Path, *, preset: str, fold: int | None) -> dict[str, Any]:
    """Fitted alone, or jointly with every third frame from `fold` on unseen."""
    side, joint = "alone" if fold is None else f"joint-{fold}", fold is not None
    settings = load_settings({"NVP_CACHE": str(folder / f"{clip}-{side}-cache"), "NVP_THREADS": "1"})
    archive = nvpstore.open(folder / f"{clip}-{side}", create=True, settings=settings)
    video = archive.ingest(path, preset=preset, tasks=[TASK] if joint else [], device="cpu")
    assert video.psnr is not None, "it was fitted"
    segments = archive.catalog.snapshot().segments(video.video_id)
    sys.stderr.write(f"{clip} {side}: {video.psnr:.2f} dB\n")
    if not joint:
        archive.train_task(TASK, share=ADDED_SHARE)
    return {
        "clip": clip,
        "joint": joint,
        "fold": fold,
        "frames": video.frames,
        "psnr": video.psnr,
        "network_bytes": sum(record.stored_bytes for record in segments),
        "stored_bytes": video.stored_bytes,
        "fit_seconds": video.fit_seconds,
        "fidelity": fidelity(archive),
        **(asdict(agreements(archive)) if joint else {}),
    }


def fidelity(archive: Archive) -> float:
    """The best adapter route's, on unseen frames, weighted by segments' frames."""
    sql = f"SELECT avg(fidelity) FROM {TASK}(route := 'adapter') WHERE rank = 1"
    ((found,),) = archive.sql(sql).fetchall()
    return math.nan if found is None else float(found)


def agreements(archive: Archive) -> Agreements:
    """Of what a query gets that names no route."""

    def first(table: str) -> tuple[list[str], list[float]]:
        rows = archive.sql(f"SELECT label, score FROM {table} WHERE rank = 1 ORDER BY frame").fetchall()
        return [label for label, _ in rows], [score for _, score in rows]

    source, scores = first(f"{TASK}(route := 'source')")
    return agree(first(TASK)[0], source, [score >= CONFIDENT for score in scores])


def shown(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["clip"],
        "joint" if row["joint"] else "reconstruction alone",
        f"{row['psnr']:.2f}",
        str(row["network_bytes"]),
        f"{row['fidelity']:.3f}",
    )


if __name__ == "__main__":
    main()
