"""The commands against a real archive, each in a process of its own."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import av
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from nvpstore import archive
from nvpstore.api.commands import intake

if TYPE_CHECKING:
    from tests.api.conftest import Nvp

FRAMES = 12

pytestmark = pytest.mark.slow  # one fit, and a process a command


def assert_one_line(done: subprocess.CompletedProcess[str], *, status: int, says: str) -> None:
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("nvp: ")
    assert says in done.stderr


class TestInit:
    def test_a_second_init_fails_in_one_line(self, nvp: Nvp) -> None:
        assert_one_line(nvp.run("init"), status=1, says=str(nvp.archive))

    def test_a_folder_that_is_no_archive_is_said(self, nvp: Nvp, tmp_path: Path) -> None:
        assert_one_line(nvp.run("ls", "--archive", str(tmp_path)), status=1, says="archive")


class TestIngest:
    def test_the_same_bytes_again_are_no_work(self, nvp: Nvp, clip: Path) -> None:
        video = nvp.json("ls")[0]
        again = nvp.json("ingest", str(clip), "--preset", "micro")
        assert again["video_id"] == video["video_id"]
        assert again["already_stored"] is True

    @pytest.mark.parametrize(
        ("content", "name"), [(None, "missing.mp4"), (b"", "empty.mp4"), (b"not a video" * 99, "words.mp4")]
    )
    def test_bad_files_are_one_line(self, nvp: Nvp, tmp_path: Path, content: bytes | None, name: str) -> None:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        assert_one_line(nvp.run("ingest", str(path), "--preset", "micro"), status=1, says=name)

    def test_an_unknown_preset_names_the_known_ones(self, nvp: Nvp, clip: Path) -> None:
        assert_one_line(nvp.run("ingest", str(clip), "--preset", "vast"), status=2, says="micro")

    def test_an_unknown_task_names_the_known_ones(self, nvp: Nvp, clip: Path) -> None:
        assert_one_line(nvp.run("ingest", str(clip), "--task", "lables"), status=1, says="labels")

    def test_ctrl_c_is_one_line_and_a_rerun_finishes(self, empty_nvp: Nvp, clip: Path) -> None:
        running = empty_nvp.start("ingest", str(clip), "--preset", "micro")
        assert running.stderr is not None
        running.stderr.readline()  # the estimate
        running.stderr.readline()  # the first progress
        running.send_signal(signal.SIGINT)
        out, err = running.communicate()
        assert running.returncode == 130, err
        assert out == ""
        assert err.splitlines()[-1].startswith("nvp: interrupted")
        assert empty_nvp.json("ls") == []
        assert empty_nvp.json("ingest", str(clip), "--preset", "micro")["already_stored"] is False


class TestLooking:
    def test_ls_lists_what_was_ingested(self, nvp: Nvp) -> None:
        (video,) = nvp.json("ls")
        assert (video["name"], video["frames"], video["tags"]) == ("square", FRAMES, {"camera": "gate"})
        assert "square" in nvp.run("ls").stdout

    def test_show_takes_a_name_or_the_beginning_of_an_id(self, nvp: Nvp) -> None:
        (video,) = nvp.json("ls")
        assert nvp.json("show", "square")["video_id"] == video["video_id"]
        assert nvp.json("show", video["video_id"][:8])["name"] == "square"

    def test_an_unknown_video_is_one_line(self, nvp: Nvp) -> None:
        assert_one_line(nvp.run("show", "circle"), status=2, says="circle")

    def test_tasks_are_listed_and_shown(self, nvp: Nvp) -> None:
        listed = {task["name"]: task for task in nvp.json("tasks", "list")}
        assert listed["labels"]["kind"] == "classification"
        assert listed["labels"]["cuts"] > 0
        assert "labels" in {task["name"] for task in nvp.json("tasks", "list", "--available")}
        shown = nvp.json("tasks", "show", "labels")
        assert len(shown["labels"]) == 1000


class TestSql:
    QUERY = "SELECT frame, label, score FROM labels WHERE rank = 1 AND ts < 0.5 ORDER BY frame"

    def test_formats_hold_the_same_rows(self, nvp: Nvp, tmp_path: Path) -> None:
        rows = nvp.json("sql", self.QUERY)
        assert [row["frame"] for row in rows] == [0, 1, 2, 3, 4]
        for name in ("arrow", "parquet"):
            path = tmp_path / f"rows.{name}"
            assert nvp.run("sql", self.QUERY, "--format", name, "-o", str(path)).returncode == 0
            content = io.BytesIO(path.read_bytes())
            table = (
                pa.ipc.open_stream(content).read_all() if name == "arrow" else pa.parquet.read_table(content)
            )
            assert table.column("label").to_pylist() == [row["label"] for row in rows]

    def test_explain_is_text(self, nvp: Nvp) -> None:
        shown = nvp.run("sql", f"EXPLAIN {self.QUERY}").stdout
        assert "labels" in shown
        assert "-----" not in shown

    @pytest.mark.parametrize(
        ("query", "says"),
        [
            ("SELECT * FROM lables", "lables"),
            ("SELECT colour FROM labels", "colour"),
            ("SELECT * FROM labels(every := 'x')", "every"),
            ("SELECT 1; SELECT 2", "exactly one"),
            ("DROP TABLE videos", "SELECT"),
            ("SELEC 1", "syntax error"),
        ],
    )
    def test_wrong_queries_are_one_line(self, nvp: Nvp, query: str, says: str) -> None:
        assert_one_line(nvp.run("sql", query), status=1, says=says)

    def test_a_failed_query_leaves_the_old_file(self, nvp: Nvp, tmp_path: Path) -> None:
        path = tmp_path / "rows.csv"
        path.write_text("before")
        assert nvp.run("sql", "SELECT * FROM lables", "--format", "csv", "-o", str(path)).returncode == 1
        assert [p.name for p in tmp_path.iterdir() if p.suffix] == ["rows.csv"]
        assert path.read_text() == "before"

    def test_a_query_of_the_index_loads_no_torch(self, nvp: Nvp) -> None:
        code = (
            "import sys\nfrom nvpstore.api import cli\n"
            f"cli.main(['sql', 'SELECT name FROM videos', '--json', '--archive', {str(nvp.archive)!r}])\n"
            "sys.exit('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [{"name": "square"}]


class TestExport:
    def test_a_part_has_its_frames_and_size(self, nvp: Nvp, tmp_path: Path) -> None:
        out = tmp_path / "part.mp4"
        summary = nvp.json("export", "square", str(out), "--start", "0.2", "--end", "0.6")
        with av.open(str(out)) as container:
            frames = list(container.decode(video=0))
        assert len(frames) == summary["frames"] == 4
        assert (frames[0].width, frames[0].height) == (96, 64)

    def test_original_is_the_source_s_own_bytes(self, nvp: Nvp, clip: Path, tmp_path: Path) -> None:
        assert nvp.run("export", "square", str(tmp_path / "o.mp4"), "--original").returncode == 0
        assert (tmp_path / "o.mp4").read_bytes() == clip.read_bytes()


class TestUpkeep:
    def test_a_rebuilt_index_gives_the_same_rows(self, nvp: Nvp) -> None:
        query = "SELECT * FROM segments"
        before = nvp.json("sql", query)
        shutil.rmtree(nvp.cache, ignore_errors=True)
        assert nvp.json("catalog", "rebuild") == {"videos": 1}
        assert nvp.json("sql", query) == before

    @pytest.mark.parametrize("deep", [[], ["--deep"]])
    def test_a_whole_archive_verifies(self, nvp: Nvp, deep: list[str]) -> None:
        report = nvp.json("verify", *deep)
        assert report["objects"] > 0
        assert report["damages"] == []

    def test_a_flipped_byte_is_found_by_a_deep_look(self, nvp: Nvp, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(nvp.archive, copy)
        weights = next(copy.glob("videos/*/*/weights-*.parquet"))
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.chmod(0o644)
        weights.write_bytes(content)
        done = nvp.run("verify", "--deep", "--archive", str(copy))
        assert done.returncode == 1
        assert weights.name in done.stdout


def test_the_defaults_of_help_are_the_archive_s() -> None:
    assert (intake.DEFAULT_PRESET, intake.DEFAULT_TASKS) == (archive.DEFAULT_PRESET, archive.DEFAULT_TASKS)
