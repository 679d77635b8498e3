"""A tenth of every soak run, as its command runs it: each in a process of its own, two side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import ROOT
from benchmarks.soak import load

pytestmark = pytest.mark.slow

# The longest first, so that none is left alone in the end. Scales are of the counts that a soak has.
SCALES = {
    "kill": 0.1, "media": 0.08, "flips": 0.1, "faults": 0.1, "race": 0.4, "rm": 0.07, "cli": 0.2, "gets": 0.1,
    "load": 0.05, "hostile": 1.0,
}  # fmt: skip
ON_S3 = {"faults", "gets"}
SECONDS = 600
AT_ONCE = 2

Run = Callable[[str], dict[str, Any]]


def parameters() -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.s3] if name in ON_S3 else []) for name in SCALES]


@pytest.fixture(scope="module")
def result_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The JSON of a run. All that this session asks for are begun at once, as many as there is room for."""
    out = tmp_path_factory.mktemp("soak")
    chosen = [
        item.callspec.params["name"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module and hasattr(item, "callspec")
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running: dict[str, Future[dict[str, Any]]] = {
            name: pool.submit(_run, name, out) for name in SCALES if name in chosen
        }
        yield lambda name: running[name].result()


@pytest.mark.parametrize("name", parameters())
def test_no_promise_is_broken(name: str, result_of: Run) -> None:
    result = result_of(name)
    assert result["broken"] == []
    assert result["seed"] == 0
    _CHECKS[name](result)


def _run(name: str, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.soak", name, "--scale", str(SCALES[name]), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
    # One promise broken exits with 1 too, but says so in the result.
    path = out / f"soak-{name}.json"
    assert path.exists(), f"{name} ended with {done.returncode}: {done.stderr}"
    return dict(json.loads(path.read_text()))


def _killed(result: dict[str, Any]) -> None:
    assert result["kills"] == 20
    phases = {
        (operation, phase)
        for place in result["places"].values()
        for operation, phases in place["killed_in"].items()
        for phase in phases
    }
    assert len(phases) >= 8


def _flipped(result: dict[str, Any]) -> None:
    assert result["flips"] == 100
    for stratum, count in result["strata"].items():
        assert count["verified"] == count["flips"], stratum
        assert count["changed_answers"] == 0, stratum
        if stratum != "index file":  # not each of its bytes is read by each question
            assert count["noticed"] == count["used"], stratum


def _raced(result: dict[str, Any]) -> None:
    (place,) = result["places"].values()
    assert place["committed"] == result["videos"]
    assert place["queries"] > 0


def _erased(result: dict[str, Any]) -> None:
    assert result["rounds"] >= 2


def _commanded(result: dict[str, Any]) -> None:
    assert result["answered"] == result["commands"] > 0
    assert result["queries_of_the_holding_process"] > 0


def _faulty(result: dict[str, Any]) -> None:
    assert sum(result["operations"].values()) == 50
    assert sum(result["faults"].values()) > 0


def _counted(result: dict[str, Any]) -> None:
    assert result["query"]["gets"] <= 3 + 2 * (result["segments"] - 1)
    assert result["segments"] > 1
    assert result["nothing_new_requests"] <= 2


def _damaged(result: dict[str, Any]) -> None:
    assert sum(result["ends"].values()) == result["files"] == 40
    assert result["ends"].keys() == {"done", "failed"}
    assert result["fitted"] > 0
    assert len(result["by_damage"]) > 8
    assert len(result["workers"]) == 2


def _loaded(result: dict[str, Any]) -> None:
    for mode in load.MODES:
        assert result[mode]["answered"] > 0
        assert result[mode]["others"] == 0


def _refused(result: dict[str, Any]) -> None:
    assert result["attempts"] == result["refused"] >= 60
    assert result["by_group"].keys() == {"keys", "scopes", "sql", "places", "bodies", "headers"}


_CHECKS = {
    "kill": _killed,
    "media": _damaged,
    "flips": _flipped,
    "faults": _faulty,
    "race": _raced,
    "rm": _erased,
    "cli": _commanded,
    "gets": _counted,
    "load": _loaded,
    "hostile": _refused,
}
