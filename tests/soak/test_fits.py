"""A tenth of the soak run that kills ingests, as its command runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.machine import ROOT

SECONDS = 300


@pytest.mark.slow
def test_a_killed_ingest_goes_on_and_comes_to_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "fits", "--scale", "0.1", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
    result = json.loads((tmp_path / "soak-fits.json").read_text())
    assert result["broken"] == [], done.stderr
    assert result["seed"] == 0
    (each,) = result["rounds"]
    assert each["psnr"] == pytest.approx(result["undisturbed"]["psnr"], abs=0.2)
    first = each["done_when_gone_on"]  # None: it was killed behind its fit
    assert first is None or first >= each["done_when_killed"]
