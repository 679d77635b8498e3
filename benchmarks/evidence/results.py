"""Results as they lie in benchmarks/results: committed full runs, and what a subset gave just now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "results"
SUBSET = "subset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One JSON. `subset`: of a seeded part of the run, made for this report; else it is the committed run."""

    name: str
    path: str
    found: Mapping[str, Any]
    subset: bool

    @property
    def where(self) -> str:
        """Machine and commit in words."""
        machine = self.found.get("machine")
        if machine is None:
            return "computed from other results"
        parts = [
            machine["cpu"] or "unknown processor",
            f"{machine['cores']} cores",
            machine["gpu"] or "no GPU",
            f"torch {machine['torch']}",
            str(machine["measured_at"])[:16].replace("T", " ") + " UTC",
            _commit(machine),
        ]
        return ", ".join(part for part in parts if part)


def _commit(machine: Mapping[str, Any]) -> str:
    if not machine.get("commit"):
        return ""
    return f"commit {machine['commit'][:10]}" + (" with changes" if machine.get("modified") else "")


def read_results(folder: Path = FOLDER) -> dict[str, Result]:
    """The committed results, by name: `latency`, `gpu/fit`."""
    paths = [path for path in folder.rglob("*.json") if SUBSET not in path.relative_to(folder).parts]
    return {result.name: result for result in (_read(path, folder, subset=False) for path in sorted(paths))}


def read_subset(folder: Path = FOLDER) -> dict[str, Result]:
    """What `benchmarks.evidence.subset` left, by the name of the run that it is a part of."""
    paths = sorted((folder / SUBSET).glob("*.json"))
    return {result.name: result for result in (_read(path, folder / SUBSET, subset=True) for path in paths)}


def _read(path: Path, folder: Path, *, subset: bool) -> Result:
    shown = path.relative_to(FOLDER.parents[1]) if path.is_relative_to(FOLDER) else path.name
    return Result(
        name=path.relative_to(folder).with_suffix("").as_posix(),
        path=str(shown),
        found=json.loads(path.read_text(encoding="utf-8")),
        subset=subset,
    )
