"""The direction of imports, and what planning may cost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TORCH_FREE_ROOMS = ("api", "catalog", "storage", "video", "query")
RUNS_TENSORS = {"nvpstore.query.operators"}


def planning_modules() -> list[str]:
    """Every module that planning a query, or the command line, may load."""
    names = ["nvpstore", "nvpstore.archive", "nvpstore.types", "nvpstore.errors", "nvpstore.config"]
    for room in TORCH_FREE_ROOMS:
        folder = ROOT / "nvpstore" / room
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            names.append(".".join(["nvpstore", room, *(p for p in parts if p != "__init__")]))
    return [
        name
        for name in names
        if name not in RUNS_TENSORS and not name.startswith("nvpstore.query.operators.")
    ]


def test_planning_loads_no_torch() -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {planning_modules()!r}:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules: sys.exit(name + ' loads torch')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_rooms_import_only_rooms_below() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(lint), "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
