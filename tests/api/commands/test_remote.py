"""The command line on a server's archive."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import Nvp, write_clip
from tests.serving import Serving


@pytest.fixture(scope="module")
def serving(nvp: Nvp, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(nvp.archive, folder / "archive")
    with Serving(folder / "archive", folder, workers=1) as server:
        yield server


class Remote:
    """Runs `nvp` on the server's address."""

    def __init__(self, nvp: Nvp, url: str) -> None:
        self._nvp, self._url = nvp, url

    def run(self, *arguments: str) -> Any:
        return self._nvp.run("--archive", self._url, *arguments)

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def remote(nvp: Nvp, serving: Serving) -> Remote:
    return Remote(nvp, serving.url)


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "square"),
        ("tasks", "list", "--available"),
        ("tasks", "show", "labels"),
        ("sql", "SELECT frame, label, score FROM labels ORDER BY ALL"),
        ("sql", "EXPLAIN SELECT label FROM labels"),
    ],
)
def test_reading_commands_show_the_same(nvp: Nvp, remote: Remote, arguments: tuple[str, ...]) -> None:
    far, near = remote.json(*arguments), nvp.json(*arguments)
    if arguments[0] == "show":  # the server says more of it
        far = {name: far[name] for name in near}
    assert far == near
    assert remote.run(*arguments[:2]).returncode == nvp.run(*arguments[:2]).returncode


def test_a_table_looks_the_same(nvp: Nvp, remote: Remote) -> None:
    query = "SELECT name, frames FROM videos WHERE name = 'square'"
    assert remote.run("sql", query).stdout == nvp.run("sql", query).stdout
    assert remote.run("sql", f"EXPLAIN {query}").stdout == nvp.run("sql", f"EXPLAIN {query}").stdout


def test_videos_go_in_and_out(remote: Remote, tmp_path: Path) -> None:
    clip = tmp_path / "new.mp4"
    write_clip(clip, frames=9)
    done = remote.run("add", str(clip), "--tag", "camera=hall", "--name", "hall")
    assert done.returncode == 0, done.stderr
    assert "upload" in done.stderr
    assert "hall: added, 9 frames" in done.stdout
    assert [row["name"] for row in remote.json("ls")] == ["hall", "square"]
    fitted = remote.json("fit", "--videos", "name = 'hall'", "--preset", "micro")
    assert [(row["name"], row["frames"]) for row in fitted] == [("hall", 9)]
    again = remote.json("ingest", str(clip), "--preset", "micro", "--name", "hall")
    assert again["already_stored"] is True
    assert remote.json("tag", "hall", "site=north")["tags"] == {"camera": "hall", "site": "north"}
    assert remote.json("export", "hall", str(tmp_path / "out.mp4"))["frames"] == 9
    assert remote.json("rm", "hall", "--yes")["objects"] > 0
    assert [row["name"] for row in remote.json("ls")] == ["square"]


def test_a_folder_is_sent_file_by_file(remote: Remote, tmp_path: Path) -> None:
    for number in (10, 11):
        write_clip(tmp_path / f"{number}.mp4", frames=number)
    (tmp_path / "12.mp4").write_bytes(b"no video")
    done = remote.run("add", str(tmp_path), "--json")
    assert done.returncode == 1
    assert [row["frames"] for row in json.loads(done.stdout)] == [10, 11]
    assert "1 of 3 files failed" in done.stderr
    for row in json.loads(done.stdout):
        remote.json("rm", row["video_id"], "--yes")


@pytest.mark.parametrize(
    "arguments",
    [
        ("init",),
        ("verify",),
        ("gc",),
        ("catalog", "rebuild"),
        ("results", "ls"),
        ("views", "ls"),
        ("keys", "ls"),
        ("serve",),
    ],
)
def test_other_commands_say_that_they_need_the_archive_itself(
    remote: Remote, serving: Serving, arguments: tuple[str, ...]
) -> None:
    done = remote.run(*arguments)
    assert done.returncode == 2
    assert f"nvp {arguments[0]} needs the archive itself" in done.stderr
    assert serving.url in done.stderr


def test_copies_are_not_made_through_servers(nvp: Nvp, serving: Serving, tmp_path: Path) -> None:
    for pair in ((serving.url, str(tmp_path)), (str(nvp.archive), serving.url)):
        done = nvp.run("copy", *pair)
        assert (done.returncode, "needs the archive itself" in done.stderr) == (2, True)


def test_errors_keep_their_exit_status(remote: Remote) -> None:
    assert remote.run("show", "nothing").returncode == 2
    wrong = remote.run("sql", "SELECT nothing FROM videos")
    assert (wrong.returncode, "nothing" in wrong.stderr) == (1, True)
    assert remote.run("ingest", __file__, "--device", "cuda").returncode == 2
    assert len(wrong.stderr.splitlines()) == 1


def test_a_server_that_is_not_there_is_one_line(nvp: Nvp) -> None:
    done = nvp.run("--archive", "http://127.0.0.1:1", "ls")
    assert done.returncode == 1
    assert done.stderr.startswith("nvp: http://127.0.0.1:1 cannot be reached")
    assert len(done.stderr.splitlines()) == 1
