"""Batches: the rows of the plain query, written once, whatever is killed; what came since, and only that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

import nvpstore
from nvpstore.api.cli import main
from nvpstore.archive import Archive
from nvpstore.batches.driver import BatchProgress
from nvpstore.batches.output import Output
from nvpstore.config import load_settings
from nvpstore.errors import QueryError, StoreError, UsageError
from nvpstore.storage.objects import open_store
from tests.ingest.test_pipeline import clip

SQL = "SELECT video_id, frame, label, score FROM labels WHERE rank = 1"
FRAMES = (4, 5, 6)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Three added videos: their originals answer."""
    settings = load_settings({"NVP_CACHE": str(tmp_path / "cache"), "NVP_THREADS": "2"})
    archive = nvpstore.open(tmp_path / "archive", create=True, settings=settings)
    for frames in FRAMES:
        archive.add(clip(tmp_path, frames=frames, name=f"{frames}.mp4"))
    return archive


def rows_of(out: Path) -> list[dict[str, Any]]:
    """What a reader of the files finds, in the query's order."""
    table = ds.dataset(out, format="parquet", partitioning="hive", exclude_invalid_files=True).to_table()
    return ordered(table.select(["video_id", "frame", "label", "score"]))


def ordered(table: pa.Table) -> list[dict[str, Any]]:
    return list(table.sort_by([("video_id", "ascending"), ("frame", "ascending")]).to_pylist())


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [{**row, "score": None} for row in found] == [{**row, "score": None} for row in expected]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-5)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_has_the_rows_of_its_query(archive: Archive, tmp_path: Path, workers: int) -> None:
    seen: list[BatchProgress] = []
    out = tmp_path / "out"
    report = archive.batch(SQL, out, workers=workers, progress=seen.append)
    assert (report.rows, report.decoded_frames, report.touched_videos) == (sum(FRAMES), sum(FRAMES), 3)
    assert seen[-1].frames_done == seen[-1].frames_total == sum(FRAMES)
    same(rows_of(out), ordered(archive.sql(SQL).arrow()))
    # All answers are stored now: nothing is decoded again.
    measured = archive.sql(SQL).measured
    result = archive.sql(SQL)
    result.arrow()
    assert measured is None or measured.frames == 0
    assert result.measured is not None
    assert result.measured.frames == 0


def test_equal_threads_give_equal_bits_wherever_it_runs(archive: Archive, tmp_path: Path) -> None:
    archive.batch(SQL, tmp_path / "here")
    archive.drop_results()
    archive.batch(SQL, tmp_path / "there", engine="processes", workers=1)
    assert rows_of(tmp_path / "there") == rows_of(tmp_path / "here")


def test_a_finished_batch_again_is_no_work(archive: Archive, tmp_path: Path) -> None:
    first = archive.batch(SQL, tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    again = archive.batch(SQL, tmp_path / "out")
    assert again.already_there
    assert (again.rows, again.run) == (first.rows, first.run)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


def test_incremental_touches_only_what_came_since(archive: Archive, tmp_path: Path) -> None:
    out = tmp_path / "out"
    archive.batch(SQL, out)
    archive.add(clip(tmp_path, frames=7, name="7.mp4"))
    with pytest.raises(UsageError, match="holds this batch as of 3 videos, 1 came since: --incremental"):
        archive.batch(SQL, out)
    more = archive.batch(SQL, out, incremental=True)
    assert (more.run, more.rows, more.touched_videos, more.decoded_frames) == (1, 7, 1, 7)
    same(rows_of(out), ordered(archive.sql(SQL).arrow()))
    assert archive.batch(SQL, out, incremental=True).already_there


def test_incremental_needs_to_know_whose_rows_they_are(archive: Archive, tmp_path: Path) -> None:
    counts = "SELECT label, count(*) FROM labels GROUP BY label"
    archive.batch(counts, tmp_path / "out")
    archive.add(clip(tmp_path, frames=7, name="7.mp4"))
    with pytest.raises(QueryError, match="video_id"):
        archive.batch(counts, tmp_path / "out", incremental=True)


def test_another_statement_is_refused(archive: Archive, tmp_path: Path) -> None:
    archive.batch(SQL, tmp_path / "out")
    with pytest.raises(UsageError, match="the result of another statement"):
        archive.batch(SQL + " AND score > 0.5", tmp_path / "out")


def test_a_video_that_was_fitted_anew_is_said(archive: Archive, tmp_path: Path) -> None:
    archive.batch(SQL, tmp_path / "out")
    (video, *_) = archive.videos()
    archive.fit(video["video_id"], preset="micro", tasks=(), device="cpu")
    with pytest.raises(UsageError, match=f"before they were fitted anew, such as {video['video_id']}"):
        archive.batch(SQL, tmp_path / "out", incremental=True)


class Killed(BaseException):
    """As kill -9 would: nothing of ours runs any more."""


def test_a_driver_killed_before_its_commit_leaves_nothing_that_counts(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Output, "commit", killed)
        with pytest.raises(Killed):
            archive.batch(SQL, out)
    assert not Output(open_store(str(out))).manifests()
    assert list(out.glob("part-*.parquet"))
    report = archive.batch(SQL, out)
    assert report.decoded_frames == 0  # the first run's answers were stored
    same(rows_of(out), ordered(archive.sql(SQL).arrow()))


def test_a_driver_killed_while_it_computes_goes_on(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = []

    def second_is_killed(own: Archive, query: str, part: Any) -> Any:
        parts.append(part)
        if len(parts) == 2:
            raise Killed
        return answer_part(own, query, part)

    answer_part = Archive.answer_part
    with monkeypatch.context() as patch:
        patch.setattr(Archive, "answer_part", second_is_killed)
        with pytest.raises(Killed):
            archive.batch(SQL, tmp_path / "out")
    report = archive.batch(SQL, tmp_path / "out")
    assert 0 < report.decoded_frames < sum(FRAMES)
    assert report.answered_frames == sum(FRAMES) - report.decoded_frames
    same(rows_of(tmp_path / "out"), ordered(archive.sql(SQL).arrow()))


def test_a_video_that_comes_while_it_computes_is_there_once(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = clip(tmp_path, frames=7, name="7.mp4")
    write = Output.write

    def meanwhile(*arguments: Any, **named: Any) -> Any:
        archive.add(late)
        return write(*arguments, **named)

    answer_part = Archive.answer_part

    def before_rows(own: Archive, query: str, part: Any) -> Any:
        own.add(late)
        return answer_part(own, query, part)

    for patched, what in ((Output, "write"), (Archive, "answer_part")):
        with monkeypatch.context() as patch:
            patch.setattr(patched, what, meanwhile if what == "write" else before_rows)
            archive.batch(SQL, tmp_path / what)
        archive.batch(SQL, tmp_path / what, incremental=True)
        same(rows_of(tmp_path / what), ordered(archive.sql(SQL).arrow()))
        archive.erase("7.mp4")
        archive.drop_results()


def test_two_at_once_do_not_write_the_same_place(archive: Archive, tmp_path: Path) -> None:
    with (
        Output(open_store(str(tmp_path / "out"))).alone(),
        pytest.raises(StoreError, match="is writing there"),
    ):
        archive.batch(SQL, tmp_path / "out")


def test_columns_make_folders(archive: Archive, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = archive.batch(SQL, out, partition_by=["video_id"])
    assert report.files == 3
    assert {path.name for path in out.iterdir() if path.is_dir()} == {
        f"video_id={video['video_id']}" for video in archive.videos()
    }
    same(rows_of(out), ordered(archive.sql(SQL).arrow()))
    with pytest.raises(UsageError, match="partition by place: the columns are video_id, frame, label, score"):
        archive.batch(SQL, tmp_path / "other", partition_by=["place"])


def test_no_rows_are_an_answer_with_columns(archive: Archive, tmp_path: Path) -> None:
    report = archive.batch(f"{SQL} AND score > 2", tmp_path / "out")
    assert (report.rows, report.files) == (0, 1)
    assert rows_of(tmp_path / "out") == []


def test_a_dry_run_says_what_the_run_then_takes(archive: Archive, tmp_path: Path) -> None:
    before = archive.estimate_batch(SQL, workers=2, frames_a_second=5, price_an_hour=3.6)
    assert (before.videos, before.segments, before.frames, before.answered_frames) == (3, 3, sum(FRAMES), 0)
    assert before.seconds == pytest.approx(sum(FRAMES) / 10)
    assert before.money == pytest.approx(sum(FRAMES) / 5 / 3600 * 3.6)
    assert not list((tmp_path / "archive").glob("results/**/*"))
    archive.batch(SQL, tmp_path / "out")
    after = archive.estimate_batch(SQL)
    assert (after.videos, after.frames, after.answered_frames, after.parts) == (0, 0, sum(FRAMES), 0)


def test_pictures_are_made_at_the_end(archive: Archive, tmp_path: Path) -> None:
    sql = (
        "SELECT l.video_id, l.label, f.image FROM labels l JOIN frames f USING (video_id, frame)"
        " WHERE rank = 1"
    )
    assert archive.estimate_batch(sql).frames == sum(FRAMES)
    report = archive.batch(sql, tmp_path / "out")
    assert report.rows == sum(FRAMES)
    table = ds.dataset(tmp_path / "out", exclude_invalid_files=True).to_table()
    assert all(image[:4] == b"\x89PNG" for image in table["image"].to_pylist())


def test_an_archive_that_keeps_no_answers_cannot(archive: Archive, tmp_path: Path) -> None:
    without = Archive(archive.store, replace(archive.settings, answers="off"))
    with pytest.raises(UsageError, match="NVP_ANSWERS must be on"):
        without.batch(SQL, tmp_path / "out")


def test_the_command(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NVP_ANSWERS", "on")
    statement = tmp_path / "ask.sql"
    statement.write_text(SQL + ";\n")
    base = ["--archive", archive.store.root, "--json", "batch", str(statement)]
    assert main([*base, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == sum(FRAMES)
    assert main([*base, "-o", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == sum(FRAMES)
    assert main(base) == 2
    assert "say where the rows go" in capsys.readouterr().err
    assert main([*base[:-1], str(tmp_path / "none.sql"), "--dry-run"]) == 2


@pytest.mark.slow  # starts Ray
def test_ray_gives_the_rows_that_this_machine_gives(archive: Archive, tmp_path: Path) -> None:
    here = archive.batch(SQL, tmp_path / "here")
    for workers in (1, 2):
        archive.drop_results()
        there = archive.batch(SQL, tmp_path / f"ray{workers}", engine="ray", workers=workers)
        assert (there.rows, there.decoded_frames) == (here.rows, here.decoded_frames)
        same(rows_of(tmp_path / f"ray{workers}"), rows_of(tmp_path / "here"))
