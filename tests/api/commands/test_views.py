"""`nvp views add`, `ls` and `rm`: what they print, their JSON and their exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nvpstore.api import cli
from nvpstore.storage.objects import open_store
from tests.catalog.conftest import SmallArchive

Run = Callable[..., tuple[int, str, str]]
SQL = "SELECT name, frames\nFROM videos"


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`nvp` in this process, on an archive with one video."""
    SmallArchive(open_store(str(tmp_path / "archive"))).add_video("gate")
    monkeypatch.setenv("NVP_ARCHIVE", str(tmp_path / "archive"))

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            status = cli.main(arguments)
        except SystemExit as error:  # argparse
            status = int(error.code or 0)
        return status, *capfd.readouterr()

    return run


def test_a_view_is_added_listed_asked_and_removed(run: Run) -> None:
    assert run("views", "add", "sizes", SQL) == (0, "sizes is saved: queries can name it like a table\n", "")
    assert run("sql", "SELECT * FROM sizes", "--format", "json")[0] == 0
    heading, _, row = run("views", "ls")[1].splitlines()
    assert heading.split() == ["name", "saved_at", "sql"]
    assert row.split()[0] == "sizes"
    assert row.endswith("SELECT name, frames FROM videos")
    assert run("views", "rm", "sizes") == (0, "dropped the view sizes\n", "")
    assert json.loads(run("views", "ls", "--json")[1]) == []


def test_json_has_every_field(run: Run) -> None:
    view = json.loads(run("views", "add", "sizes", SQL, "--json")[1])
    assert list(view) == ["name", "sql", "saved_at"]
    assert view["sql"] == SQL
    assert json.loads(run("views", "ls", "--json")[1]) == [view]
    assert json.loads(run("views", "rm", "sizes", "--json")[1]) == view


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("add", "Sizes", SQL), 2, "must be a lowercase letter"),
        (("add", "labels", SQL), 2, "it is a task that the archive may get"),
        (("add", "sizes", "SELECT nam FROM videos"), 1, 'view "sizes", line 1, column 8'),
        (("add", "sizes", "DELETE FROM videos"), 1, "DELETE statement given"),
        (("rm", "sizes"), 2, "no view 'sizes' in this archive: it has none"),
        ((), 2, "arguments are required: ACTION"),
    ],
)
def test_what_is_wrong_is_said(run: Run, arguments: tuple[str, ...], status: int, says: str) -> None:
    ended, out, error = run("views", *arguments)
    assert (ended, out) == (status, "")
    assert says in error
