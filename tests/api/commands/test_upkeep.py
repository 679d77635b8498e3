"""tag, rm, gc, copy, verify, init and ingest of many: what they print, their JSON and their exit status."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import nvpstore
from nvpstore.api import cli
from nvpstore.archive import VideoSummary
from nvpstore.storage import keys
from nvpstore.storage.objects import open_store
from nvpstore.types import VideoMeta
from nvpstore.upkeep.copying import CopyReport
from nvpstore.upkeep.report import Damage, VerifyReport
from tests.api.conftest import FRAMES, write_clip

if TYPE_CHECKING:
    from tests.api.conftest import Nvp

pytestmark = pytest.mark.slow  # one fit


@dataclass(frozen=True, kw_only=True)
class Ended:
    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ended]


@pytest.fixture
def root(nvp: Nvp, tmp_path: Path) -> Path:
    """A copy of the small archive, to be changed."""
    return Path(shutil.copytree(nvp.archive, tmp_path / "archive"))


@pytest.fixture
def run(root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`nvp` in this process, on the copy."""
    monkeypatch.setenv("NVP_ARCHIVE", str(root))

    def run(*arguments: object) -> Ended:
        capfd.readouterr()
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse
            status = int(error.code or 0)
        out, err = capfd.readouterr()
        return Ended(status=status, out=out, err=err)

    return run


def fails(ended: Ended, status: int, says: str) -> None:
    """One line on stderr, and nothing on stdout."""
    assert (ended.status, ended.out) == (status, ""), ended
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith("nvp: ")
    assert says in ended.err


def damage(path: Path, at: int = 40) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.unlink()
    path.write_bytes(content)


def names_of(kind: type[object]) -> set[str]:
    return {field.name for field in fields(kind)}  # type: ignore[arg-type]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestTag:
    def test_says_what_is_said_now(self, run: Run) -> None:
        said = run("tag", "square", "day=2", "--recorded-at", "2026-05-01T12:30:00+02:00", "--name", "box")
        assert said.status == 0
        for text in ("box", "camera=gate", "day=2", "recorded 2026-05-01T10:30:00+00:00"):
            assert text in said.out

    def test_json_has_all_that_is_said(self, run: Run) -> None:
        run("tag", "square", "day=2", "--remove", "camera", "--recorded-at", "2026-05-01")
        document = run("tag", "square", "--json").document
        assert set(document) == names_of(VideoMeta)
        assert document["tags"] == {"day": "2"}
        assert document["recorded_at"] == "2026-05-01T00:00:00+00:00"
        assert run("sql", "SELECT tags FROM videos", "--json").document == [{"tags": {"day": "2"}}]

    def test_a_hold_forbids_rm_until_it_ends(self, run: Run) -> None:
        assert run("tag", "square", "--hold", "--json").document["hold"] is True
        fails(run("rm", "square", "--yes"), 2, "hold")
        assert run("tag", "square", "--no-hold", "--json").document["hold"] is False
        assert run("rm", "square", "--yes").status == 0

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("circle", "a=b"), "circle"),
            (("square", "--remove", "colour"), "colour"),
            (("square", "tag"), "KEY=VALUE"),
            (("square", "--recorded-at", "yesterday"), "ISO 8601"),
        ],
    )
    def test_wrong_words_are_one_line(self, run: Run, arguments: tuple[str, ...], says: str) -> None:
        fails(run("tag", *arguments), 2, says)


class TestRm:
    def test_nobody_is_asked_where_there_is_no_terminal(self, run: Run) -> None:
        fails(run("rm", "square"), 2, "--yes")
        assert len(run("ls", "--json").document) == 1

    @pytest.mark.parametrize(("answer", "left"), [("n\n", 1), ("", 1), ("y\n", 0)])
    def test_a_person_is_asked(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, answer: str, left: int
    ) -> None:
        with monkeypatch.context() as terminal:
            terminal.setattr("sys.stdin", Terminal(answer))
            terminal.setattr("sys.stderr", Terminal())
            assert run("rm", "square").status == left
        assert len(run("ls", "--json").document) == left

    def test_only_the_id_remains(self, run: Run, root: Path) -> None:
        (video,) = run("ls", "--json").document
        erased = run("rm", "square", "--yes", "--json").document
        assert erased["video_id"] == video["video_id"]
        assert erased["objects"] > 3
        assert run("ls", "--json").document == []
        files = [path for path in root.rglob("*") if path.is_file()]
        assert not [path for path in files if video["video_id"] in str(path.relative_to(root))]
        assert not [path for path in files if b"square" in path.read_bytes()]
        assert run("rm", video["video_id"], "--yes").status == 0  # what is erased can be swept again
        assert run("verify").status == 0

    def test_an_unknown_one_does_not_spare_the_others(self, run: Run) -> None:
        ended = run("rm", "circle", "square", "--yes")
        assert ended.status == 2
        assert "erased" in ended.out
        assert "circle" in ended.err
        assert run("ls", "--json").document == []


class TestGc:
    def orphan(self, root: Path) -> Path:
        """What a writer left two days ago."""
        attempt = keys.first_attempt_at(datetime.now(UTC) - timedelta(days=2))
        path = root / keys.weights_key("f" * 32, attempt, 0)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"never committed")
        return path

    def test_a_dry_run_only_tells(self, run: Run, root: Path) -> None:
        path = self.orphan(root)
        told = run("gc", "--dry-run")
        assert "1 orphans" in told.out
        assert path.name in told.out
        assert path.exists()

    def test_old_garbage_goes_and_the_rest_stays(self, run: Run, root: Path) -> None:
        path = self.orphan(root)
        document = run("gc", "--json").document
        assert document == {
            "dry_run": False,
            "superseded": [],
            "orphans": [path.relative_to(root).as_posix()],
            "unknown": [],
        }
        assert not path.exists()
        assert run("verify").status == 0

    def test_a_longer_grace_spares_more_and_a_shorter_one_is_refused(self, run: Run, root: Path) -> None:
        path = self.orphan(root)
        assert run("gc", "--grace", "72", "--json").document["orphans"] == []
        assert path.exists()
        fails(run("gc", "--grace", "1"), 2, "grace")
        fails(run("gc", "--grace", "soon"), 2, "hours")

    def test_init_sets_an_archive_s_grace(self, run: Run, tmp_path: Path) -> None:
        assert run("init", tmp_path / "short", "--grace", "0.5").status == 0
        assert nvpstore.open(tmp_path / "short").log.grace_seconds == 1800
        fails(run("init", tmp_path / "none", "--grace", "0"), 2, "hours")


class TestCopy:
    def test_a_copy_answers_as_the_first(self, run: Run, root: Path, tmp_path: Path) -> None:
        report = run("copy", root, tmp_path / "b", "--json").document
        assert set(report) == names_of(CopyReport)
        assert (report["videos"], report["skipped"], report["failures"]) == (1, 0, [])
        query = "SELECT video_id, frame, label, score FROM labels WHERE rank = 1 AND frame < 3 ORDER BY frame"
        there = run("sql", query, "--archive", tmp_path / "b", "--json").document
        assert there == run("sql", query, "--json").document
        again = run("copy", root, tmp_path / "b")
        assert "1 were there already" in again.out

    def test_a_predicate_chooses(self, run: Run, root: Path, tmp_path: Path) -> None:
        where = ("--where", "tags['camera'] = 'yard'")
        assert run("copy", root, tmp_path / "b", *where, "--json").document["videos"] == 0
        fails(run("copy", root, tmp_path / "b", "--where", "colour = 1"), 1, "colour")

    def test_a_video_that_fails_is_named(self, run: Run, root: Path, tmp_path: Path) -> None:
        (path,) = root.glob("videos/*/*/weights-*")
        damage(path)
        ended = run("copy", root, tmp_path / "b", "--json")
        assert ended.status == 1
        assert "square" in ended.err
        (failure,) = ended.document["failures"]
        assert path.name in failure["error"]

    def test_into_itself_is_wrong_usage(self, run: Run, root: Path) -> None:
        fails(run("copy", root, root), 2, "itself")


class TestVerify:
    @pytest.mark.parametrize("deep", [(), ("--deep",)])
    def test_a_whole_archive(self, run: Run, deep: tuple[str, ...]) -> None:
        assert "all whole" in run("verify", *deep).out
        document = run("verify", *deep, "--json").document
        assert set(document) == names_of(VerifyReport)
        assert document["damages"] == []
        assert (document["deep"] or {}).get("frames") == (FRAMES if deep else None)

    def test_damage_is_said_and_fails(self, run: Run, root: Path) -> None:
        (path,) = root.glob("videos/*/*/weights-*")
        damage(path)
        ended = run("verify", "--json")
        assert ended.status == 1
        (found,) = ended.document["damages"]
        assert set(found) == names_of(Damage)
        assert (found["name"], found["segment"], found["stage"]) == ("square", 0, "0")
        assert found["object"].endswith(path.name)
        assert "video " in run("verify").out

    def test_a_damaged_cache_is_dropped_and_is_no_failure(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("NVP_CACHE", str(tmp_path / "own"))
        run("ls")
        (index,) = (tmp_path / "own").rglob("*.duckdb")
        content = bytearray(index.read_bytes())
        content[12288::512] = bytes(len(content[12288::512]))  # past the headers
        index.write_bytes(content)
        ended = run("verify", "--json")
        assert (ended.status, ended.document["damaged_caches"]) == (0, [str(index)])
        assert len(run("ls", "--json").document) == 1


class TestIngestOfMany:
    @pytest.fixture
    def folder(self, clip: Path, tmp_path: Path) -> Path:
        """The stored clip, deep in a folder, and a file that is no video before it."""
        folder = tmp_path / "clips"
        (folder / "deep").mkdir(parents=True)
        shutil.copy(clip, folder / "deep" / "clip.mp4")
        (folder / "bad.mp4").write_bytes(b"no video " * 50)
        return folder

    def test_one_bad_file_does_not_stop_the_others(self, run: Run, folder: Path) -> None:
        ended = run("ingest", folder, "--json")
        assert ended.status == 1
        assert "1 of 2 files failed" in ended.err
        assert "bad.mp4" in ended.err
        (summary,) = ended.document
        assert set(summary) == names_of(VideoSummary)
        assert summary["already_stored"] is True

    def test_unless_that_is_asked_for(self, run: Run, folder: Path) -> None:
        fails(run("ingest", folder, "--fail-fast"), 1, "bad.mp4")

    def test_a_folder_gives_a_list_and_a_file_an_object(self, run: Run, folder: Path) -> None:
        assert len(run("ingest", folder / "deep", "--json").document) == 1
        assert len(run("ingest", f"{folder}/**/clip.*", "--json").document) == 1
        assert run("ingest", folder / "deep" / "clip.mp4", "--json").document["already_stored"] is True

    def test_nothing_found_is_wrong_usage(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        fails(run("ingest", tmp_path / "empty"), 2, ".mp4 .mkv")

    def test_when_it_was_recorded_is_kept(self, run: Run, folder: Path) -> None:
        run("ingest", folder / "deep", "--recorded-at", "2026-05-01T12:00:00Z")
        assert run("tag", "square", "--json").document["recorded_at"] == "2026-05-01T12:00:00+00:00"

    def test_a_remote_video_is_referenced_where_it_is(self, run: Run, root: Path, tmp_path: Path) -> None:
        write_clip(tmp_path / "remote.mp4", frames=3)
        bucket = f"memory://{keys.new_attempt()}/day"
        open_store(bucket).put_file("remote.mp4", tmp_path / "remote.mp4")
        (summary,) = run("ingest", f"{bucket}/*.mp4", "--preset", "micro", "--json").document
        assert (summary["name"], summary["already_stored"]) == ("remote.mp4", False)
        archive = nvpstore.open(root)
        video = archive.catalog.snapshot().video(summary["video_id"])
        assert video.source_uri == f"{bucket}/remote.mp4"
        assert not list(archive.catalog.folder.glob("incoming/*/*"))

    def test_a_bad_remote_file_is_named_by_its_uri(self, run: Run) -> None:
        bucket = f"memory://{keys.new_attempt()}/day"
        open_store(bucket).put("bad.mp4", b"no video " * 50)
        fails(run("ingest", f"{bucket}/bad.mp4", "--preset", "micro"), 1, f"{bucket}/bad.mp4")
