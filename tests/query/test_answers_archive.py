"""Stored answers of a real archive: the same query in a new process decodes nothing and loads no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nvpstore
from nvpstore.archive import Archive
from nvpstore.config import load_settings
from tests.conftest import Micro

pytestmark = pytest.mark.slow  # one fit

SQL = "SELECT frame, rank, label, score, route, fidelity FROM labels WHERE rank <= 2 ORDER BY ALL"
SCRIPT = """
import json, sys
import nvpstore
from nvpstore.config import load_settings
archive = nvpstore.open(sys.argv[1], settings=load_settings({"NVP_CACHE": sys.argv[2]}))
result = archive.sql(sys.argv[3])
rows = result.fetchall()
torch = "torch" in sys.modules
print(json.dumps({"rows": rows, "torch": torch, "frames": result.measured.frames}))
"""


def opened(root: Path | str, cache: Path, **environment: str) -> Archive:
    return nvpstore.open(root, settings=load_settings({"NVP_CACHE": str(cache), **environment}))


def in_new_process(root: Path, cache: Path, sql: str) -> Any:
    command = [sys.executable, "-c", SCRIPT, str(root), str(cache), sql]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.fixture
def root(micro: Micro, tmp_path: Path) -> Path:
    return Path(shutil.copytree(micro.root, tmp_path / "archive"))


def test_a_new_process_needs_no_torch(root: Path, tmp_path: Path) -> None:
    expected = opened(root, tmp_path / "plain", NVP_ANSWERS="off").sql(SQL)
    first = opened(root, tmp_path / "one").sql(SQL)
    assert first.measured is not None
    assert first.measured.frames > 0
    rows = [list(row) for row in first.fetchall()]
    assert rows == [list(row) for row in expected.fetchall()]
    there = in_new_process(root, tmp_path / "two", SQL)
    assert there == {"rows": rows, "torch": False, "frames": 0}
    fewer = in_new_process(
        root, tmp_path / "two", "SELECT count(*) FROM labels WHERE score > 0.2 AND rank = 1"
    )
    assert (fewer["torch"], fewer["frames"]) == (False, 0)


def test_results_are_verified_collected_and_erased(root: Path, tmp_path: Path) -> None:
    archive = opened(root, tmp_path / "one")
    archive.sql("SELECT * FROM labels WHERE frame < 5").fetchall()
    archive.sql("SELECT * FROM labels").fetchall()
    assert [result.frames for result in archive.results()] == [5, 35]
    assert archive.verify().damages == ()
    assert len(archive.drop_results(task="labels")) == 2
    assert archive.results() == []
    again = archive.sql("SELECT * FROM labels")
    assert again.measured is not None
    assert again.measured.frames == 40
    (video,) = archive.videos()
    archive.erase(video["video_id"])
    assert archive.store.list("results/") == []


def test_a_copy_leaves_answers_behind(root: Path, tmp_path: Path) -> None:
    archive = opened(root, tmp_path / "one")
    rows = archive.sql(SQL).fetchall()
    target = nvpstore.open(
        tmp_path / "copy", create=True, settings=load_settings({"NVP_CACHE": str(tmp_path)})
    )
    report = archive.copy_to(target)
    assert (report.videos, report.failures) == (1, ())
    assert target.results() == []
    assert target.sql(SQL).fetchall() == rows


def test_modes(root: Path, tmp_path: Path) -> None:
    off = opened(root, tmp_path / "off", NVP_ANSWERS="off")
    off.sql(SQL).fetchall()
    read = opened(root, tmp_path / "read", NVP_ANSWERS="read")
    read.sql(SQL).fetchall()
    assert read.results() == []
    opened(root, tmp_path / "on").sql(SQL).fetchall()
    spared = read.sql(SQL).measured
    asked = off.sql(SQL).measured
    assert spared is not None
    assert asked is not None
    assert (spared.frames, asked.frames > 0) == (0, True)
