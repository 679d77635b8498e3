"""`nvp results ls` and `nvp results drop`: what they print, their JSON and their exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvpstore.api import cli
from nvpstore.storage.objects import open_store
from tests.catalog.conftest import SmallArchive

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`nvp` in this process, on two videos with answers of two tasks: 8 frames, 3 rows each."""
    archive = SmallArchive(open_store(str(tmp_path / "archive")))
    tasks = [archive.add_task("labels"), archive.add_task("depth")]
    for name in ("gate", "yard"):
        video = archive.add_video(name)
        for task in tasks:
            archive.add_answers(video, task)
    monkeypatch.setenv("NVP_ARCHIVE", str(tmp_path / "archive"))

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            status = cli.main(arguments)
        except SystemExit as error:  # argparse
            status = int(error.code or 0)
        return status, *capfd.readouterr()

    return run


def document(ended: tuple[int, str, str]) -> Any:
    assert ended[0] == 0, ended[2]
    return json.loads(ended[1])


def listed(run: Run, *arguments: str) -> list[tuple[str, str]]:
    return [(row["task"], row["name"]) for row in document(run("results", "ls", *arguments, "--json"))]


def test_ls_says_what_is_stored(run: Run) -> None:
    rows = document(run("results", "ls", "--json"))
    assert [(row["task"], row["name"]) for row in rows] == [
        ("labels", "gate.mp4"), ("depth", "gate.mp4"), ("labels", "yard.mp4"), ("depth", "yard.mp4"),
    ]  # fmt: skip
    assert {(row["frames"], row["rows"]) for row in rows} == {(8, 3)}
    assert list(rows[0]) == [
        "task", "version", "video_id", "name", "result", "frames", "rows", "bytes", "stored_at", "key",
    ]  # fmt: skip
    heading, _, first, *_ = run("results", "ls")[1].splitlines()
    assert heading.split()[:5] == ["task", "name", "frames", "rows", "bytes"]
    assert first.split()[:4] == ["labels", "gate.mp4", "8", "3"]


def test_ls_of_a_task_or_a_video(run: Run) -> None:
    assert listed(run, "--task", "labels") == [("labels", "gate.mp4"), ("labels", "yard.mp4")]
    (version,) = {row["version"] for row in document(run("results", "ls", "--task", "depth", "--json"))}
    assert listed(run, "--task", f"depth@{version[:6]}", "--video", "yard.mp4") == [("depth", "yard.mp4")]


def test_drop_forgets_what_is_named(run: Run) -> None:
    done = document(run("results", "drop", "--task", "labels", "--video", "gate.mp4", "--json"))
    assert done == {"objects": 1, "bytes": done["bytes"], "frames": 8}
    assert ("labels", "gate.mp4") not in listed(run)
    assert len(listed(run)) == 3
    status, out, _ = run("results", "drop", "--all")
    assert (status, out.startswith("dropped answers on 24 frames: 3 objects")) == (0, True)
    assert listed(run) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "say what to drop"),
        (("--all", "--task", "labels"), "say what to drop"),
        (("--video", "nowhere"), "no video 'nowhere'"),
    ],
)
def test_drop_wants_to_know_what(run: Run, arguments: tuple[str, ...], says: str) -> None:
    status, out, error = run("results", "drop", *arguments)
    assert (status, out) == (2, "")
    assert says in error
    assert len(listed(run)) == 4
