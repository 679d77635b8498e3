"""Seeded parts of the cheap benchmarks, each in a process of its own, within a limit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.evidence.results import SUBSET

LIMIT_SECONDS = 600  # of each; together they stay below an hour
RUNS = {
    "latency": ("benchmarks.latency", "--archive", "demo/archive", "--repeats", "5"),
    "planning": ("benchmarks.planning", "--segments", "1000000", "--repeats", "2"),
    "sharing": ("benchmarks.sharing", "--repeats", "1"),
    "batch": ("benchmarks.batch", "--archive", "demo/archive", "--parts", "loader"),
}
OUT = {"latency": "--out", "planning": "--output", "sharing": "--out", "batch": "--out"}


def run_subset(folder: Path) -> list[str]:
    """Run those whose JSON is not there yet; the names of those that failed or took too long."""
    (folder / SUBSET).mkdir(exist_ok=True)
    failed = []
    for name, (module, *arguments) in RUNS.items():
        target = folder / SUBSET / f"{name}.json"
        if target.exists():
            continue
        sys.stderr.write(f"{name}\n")
        command = [sys.executable, "-m", module, *arguments, OUT[name], str(target)]
        try:
            subprocess.run(command, check=True, timeout=LIMIT_SECONDS)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            failed.append(name)
    return failed
