"""Dry runs over an index of a million segments, and their division among workers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.planning import FRAMES, MEMORY, THREADS, open_index, resident_bytes, write_index

SEGMENTS = 1_000_000
WORKERS = 64
STATEMENTS = {
    "everything": "SELECT video_id, frame, label, score FROM labels WHERE rank = 1",
    "a frame a second": "SELECT video_id, frame, label, score FROM labels(every := 1) WHERE rank = 1",
    "with pictures": "SELECT l.video_id, l.frame, l.label, f.image"
    " FROM labels l JOIN frames f USING (video_id, frame) WHERE rank = 1",
}
REPEATS = 3


def measure_all(folder: Path) -> dict[str, Any]:
    """Each statement in a process of its own, on one index; the median run by seconds."""
    path = folder / "index.duckdb"
    write_index(path, SEGMENTS)
    found = {}
    for name, sql in STATEMENTS.items():
        runs = [_in_process(path, sql) for _ in range(REPEATS)]
        found[name] = {"sql": sql, **sorted(runs, key=lambda run: run["seconds"])[REPEATS // 2]}
        found[name]["seconds_spread"] = [min(r["seconds"] for r in runs), max(r["seconds"] for r in runs)]
    return {
        "segments": SEGMENTS,
        "frames": SEGMENTS * FRAMES,
        "workers": WORKERS,
        "index_bytes": path.stat().st_size,
        "duckdb_threads": THREADS,
        "duckdb_memory": MEMORY,
        "statements": found,
    }


def _in_process(path: Path, sql: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.batch.planned", str(path), sql]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def measure(path: Path, sql: str) -> dict[str, Any]:
    """From an open index to the parts: a cold process, with what it imports apart."""
    from nvpstore.batches.driver import estimate_batch
    from nvpstore.batches.work import divide
    from nvpstore.catalog import Snapshot
    from nvpstore.config import load_settings
    from nvpstore.query.keeping import KeptAnswers
    from nvpstore.query.part import work_left
    from nvpstore.query.request import Request
    from nvpstore.storage.objects import open_store
    from nvpstore.storage.ranges import RangeReader

    snapshot = Snapshot(open_index(path))
    store: Any = open_store(str(path.parent))
    no_log: Any = None  # nothing is stored by a dry run
    kept = KeptAnswers(no_log, lambda: snapshot, RangeReader(store))
    settings = load_settings({"NVP_THREADS": str(THREADS), "NVP_CACHE": str(path.parent / "cache")})
    request = Request(
        sql=sql, snapshot=snapshot, operators_factory=_none, settings=settings, answers=kept.at(snapshot)
    )
    opened = resident_bytes("VmRSS")
    began, worked = time.perf_counter(), time.process_time()
    left = work_left(request)
    planned_at = time.perf_counter()
    estimated = estimate_batch(left, workers=WORKERS, frames_a_second=200.0, price_an_hour=1.0)
    estimated_at = time.perf_counter()
    parts = divide(left.work, workers=WORKERS)
    ended = time.perf_counter()
    return {
        "seconds": ended - began,
        "cpu_seconds": time.process_time() - worked,
        "plan_seconds": planned_at - began,
        "dry_run_seconds": estimated_at - planned_at,
        "divide_seconds": ended - estimated_at,
        "segments": estimated.segments,
        "frames": estimated.frames,
        "bytes": estimated.bytes,
        "parts": len(parts),
        "largest_part_frames": max(part.frames for part in parts),
        "resident_bytes": {"opened": opened, "peak": resident_bytes("VmHWM")},
    }


def _none() -> Any:
    raise AssertionError("a dry run decodes nothing")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(Path(sys.argv[1]), sys.argv[2])))
