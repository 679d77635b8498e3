"""Seeds, thread counts, marks and the skip policy of the whole suite."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Generator
from pathlib import Path

# Before anything loads a BLAS. Two threads everywhere keep float sums, and so rows, alike.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "2")

import hypothesis
import numpy as np
import pytest

FORBID_SKIPS = os.environ.get("NVP_FORBID_SKIPS") == "1"

hypothesis.settings.register_profile("quick", max_examples=50, deadline=None, derandomize=True)
hypothesis.settings.register_profile("soak", max_examples=2000, deadline=None, derandomize=False)
hypothesis.settings.load_profile("quick")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    # Planning tests never load torch; do not load it for them.
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the user's archive, or shares a cache with another test."""
    for variable in ("NVP_ARCHIVE", "NVP_DEBUG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NVP_CACHE", str(tmp_path / "nvp-cache"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not _has_cuda():
        pytest.skip("no CUDA device")


def _has_cuda() -> bool:
    import torch  # only where a test is marked gpu

    return bool(torch.cuda.is_available())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # An expected failure is reported as skipped too, but it ran.
    if FORBID_SKIPS and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped under NVP_FORBID_SKIPS=1: {_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if FORBID_SKIPS and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped under NVP_FORBID_SKIPS=1: {_reason(report)}"
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
