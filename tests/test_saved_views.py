"""Views saved in an archive: what may be saved, who sees it, and what becomes of it."""

from __future__ import annotations

import importlib.util
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import pytest

import nvpstore
from nvpstore.archive import Archive
from nvpstore.config import load_settings
from nvpstore.errors import IntegrityError, QueryError, UsageError
from nvpstore.query.views import MAX_VIEWS
from nvpstore.storage.gc import collect
from nvpstore.storage.log import LogDraft, LogEntry
from nvpstore.storage.objects import open_store
from nvpstore.upkeep import views as saving
from tests.catalog.conftest import SmallArchive

NIGHT = "SELECT video_id, name FROM videos WHERE tags['time'] = 'night'"


@pytest.fixture
def small(tmp_path: Path) -> SmallArchive:
    """Two videos, one of them recorded at night, and the task `depth`."""
    small = SmallArchive(open_store(str(tmp_path / "archive")))
    small.add_task("depth")
    gate, _ = small.add_video("gate"), small.add_video("yard")
    small.add_meta(gate.video_id, name="gate.mp4", tags={"time": "night"})
    return small


@pytest.fixture
def archive(small: SmallArchive, tmp_path: Path) -> Archive:
    return nvpstore.open(tmp_path / "archive")


def texts(archive: Archive) -> dict[str, str]:
    return {view.name: view.sql for view in archive.views()}


def entries(archive: Archive) -> list[LogEntry]:
    return list(archive.log.entries())


class TestSaving:
    def test_every_query_of_the_archive_can_name_it(self, archive: Archive, tmp_path: Path) -> None:
        before = datetime.now(UTC)
        view = archive.save_view("night", NIGHT)
        assert (view.name, view.sql) == ("night", NIGHT)
        assert before <= view.saved_at <= datetime.now(UTC)
        other = nvpstore.open(tmp_path / "archive")
        assert other.views() == [view]
        sql = "SELECT name, count(*) FROM night JOIN segments USING (video_id) GROUP BY ALL"
        assert other.sql(sql).fetchall() == [("gate.mp4", 2)]
        assert [batch.num_rows for batch in other.stream("SELECT * FROM Night")] == [1]
        assert len(other.videos_where("video_id IN (SELECT video_id FROM night)")) == 1

    def test_a_view_may_read_views_and_tasks(self, archive: Archive) -> None:
        archive.save_view("night", NIGHT)
        archive.save_view("deep", "SELECT d.* FROM depth(every := 1, top := 2) d JOIN night USING (video_id)")
        assert list(texts(archive)) == ["deep", "night"]
        plan = archive.sql("EXPLAIN SELECT label FROM deep").fetchall()
        assert "depth" in str(plan)

    def test_the_last_text_wins_and_the_same_text_does_no_work(self, archive: Archive) -> None:
        archive.save_view("night", NIGHT)
        view = archive.save_view("night", "SELECT 1 AS one")
        count = len(entries(archive))
        assert archive.save_view("night", "SELECT 1 AS one") == view
        assert len(entries(archive)) == count
        assert archive.sql("SELECT * FROM night").fetchall() == [(1,)]

    def test_a_dropped_view_is_unknown_and_can_be_saved_again(self, archive: Archive) -> None:
        view = archive.save_view("night", NIGHT)
        archive.save_view("late", "SELECT * FROM night")
        assert archive.drop_view("night") == view
        with pytest.raises(QueryError, match='view "late", line 1, column 15: unknown table "night"'):
            archive.sql("SELECT * FROM late")
        with pytest.raises(UsageError, match="no view 'night' in this archive: it has late"):
            archive.drop_view("night")
        archive.save_view("night", NIGHT)
        assert archive.sql("SELECT count(*) FROM late").fetchall() == [(1,)]

    @pytest.mark.parametrize(
        "name", ["", "Night", "1st", "a-b", "x" * 64, "night\n", "../x", "views.night", "__view_x"]
    )
    def test_a_malformed_name_is_refused(self, archive: Archive, name: str) -> None:
        with pytest.raises(UsageError, match="must be a lowercase letter, then up to 62 of a-z 0-9 _"):
            archive.save_view(name, NIGHT)

    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("videos", "a view of the catalog"),
            ("frames", "a table of every archive"),
            ("depth", "a task of this archive"),
            ("labels", "a task that the archive may get"),
            ("select", "a word or a table function of SQL"),
            ("values", "a word or a table function of SQL"),
            ("left", "a word or a table function of SQL"),
            ("range", "a word or a table function of SQL"),
            ("glob", "a word or a table function of SQL"),
            ("duckdb_tables", "names that begin so are kept"),
        ],
    )
    def test_a_name_that_means_something_is_refused(self, archive: Archive, name: str, why: str) -> None:
        with pytest.raises(UsageError, match=f"no view can be called '{name}': .*{why}.*Allowed is a lower"):
            archive.save_view(name, NIGHT)
        assert archive.views() == []

    @pytest.mark.parametrize("name", ["day", "type", "final", "x" * 63])
    def test_other_words_are_names(self, archive: Archive, name: str) -> None:
        archive.save_view(name, "SELECT 1 AS one")
        assert archive.sql(f"SELECT one FROM {name}").fetchall() == [(1,)]

    @pytest.mark.parametrize(
        ("sql", "message"),
        [
            ("", "0 statements given"),
            ("SELECT 1; SELECT 2", "2 statements given"),
            ("EXPLAIN SELECT 1", "EXPLAIN statement given"),
            ("DROP VIEW videos", "DROP statement given"),
            ("SELECT * FROM read_csv('/etc/passwd')", "function read_csv is not allowed"),
            ("SELECT * FROM nothing", 'view "night", line 1, column 15: unknown table "nothing"'),
            ("SELECT nam FROM videos", 'view "night", line 1, column 8: Binder Error: .*"nam" not found'),
            ("SELECT 1 + 'a'::BLOB", 'view "night": Binder Error: No function matches'),
            ("SELECT * FROM depth(top := 0)", "top := 0: allowed is a whole number from 1"),
            ("SELECT $1", "a view has none"),
            ("SELECT * FROM night", "views read each other in a circle: night → night"),
            ("SELECT * FROM late", "views read each other in a circle: night → late → night"),
        ],
    )
    def test_a_text_that_is_no_query_is_refused(self, archive: Archive, sql: str, message: str) -> None:
        archive.save_view("night", NIGHT)
        archive.save_view("late", "SELECT * FROM night")
        with pytest.raises(QueryError, match=message):
            archive.save_view("night", sql)
        assert texts(archive)["night"] == NIGHT

    def test_an_archive_has_so_many_views(self, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        assert MAX_VIEWS == 256
        monkeypatch.setattr(saving, "MAX_VIEWS", 1)
        archive.save_view("night", NIGHT)
        archive.save_view("night", "SELECT 1")
        with pytest.raises(UsageError, match="at most 1 views"):
            archive.save_view("day", NIGHT)


class TestAtTheSameTime:
    def test_two_writers_cannot_make_a_circle(
        self, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        archive.save_view("night", NIGHT)
        archive.save_view("late", NIGHT)
        other = nvpstore.open(tmp_path / "archive")
        checked = saving._check

        def check(*arguments: object, **options: object) -> None:
            checked(*arguments, **options)  # type: ignore[arg-type]
            monkeypatch.setattr(saving, "_check", checked)
            other.save_view("late", "SELECT * FROM night")  # after the check, before the commit

        monkeypatch.setattr(saving, "_check", check)
        with pytest.raises(QueryError, match="in a circle: night → late → night"):
            archive.save_view("night", "SELECT * FROM late")
        assert texts(archive) == {"night": NIGHT, "late": "SELECT * FROM night"}
        assert len(archive.store.list("views/")) == 3  # the loser left nothing

    def test_a_task_of_its_name_makes_queries_ask_for_clarity(
        self, archive: Archive, small: SmallArchive
    ) -> None:
        archive.save_view("night", NIGHT)
        archive.save_view("late", "SELECT * FROM night")
        small.add_task("night")
        for sql, where in (("SELECT * FROM night", "line 1"), ("SELECT * FROM late", 'view "late", line 1')):
            with pytest.raises(QueryError, match=f'^{where}, column 15: "night" is ambiguous: it is a task'):
                archive.sql(sql)
        assert archive.sql("SELECT count(*) FROM videos").fetchall() == [(2,)]
        with pytest.raises(UsageError, match="it is a task of this archive"):
            archive.save_view("night", NIGHT)
        archive.drop_view("night")
        assert "night" in str(archive.sql("EXPLAIN SELECT label FROM night").fetchall())


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    path = Path(__file__).parents[1] / "docs" / "read_without_nvpstore.py"
    spec = importlib.util.spec_from_file_location("read_without_nvpstore", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestKept:
    def test_verify_reads_them_and_gc_takes_the_replaced(self, tmp_path: Path) -> None:
        archive = Archive.create(tmp_path / "a", settings=load_settings())
        archive.save_view("night", "SELECT 1 AS one")
        archive.save_view("night", "SELECT 2 AS two")
        archive.save_view("day", "SELECT 1 AS one")
        archive.drop_view("day")
        report = archive.verify()
        assert (report.damages, report.objects, report.superseded) == ((), 3, 2)
        (kept,) = [obj.key for obj in archive.catalog.snapshot().objects()]
        later = datetime.now(UTC) + timedelta(days=3)
        assert len(collect(archive.log, archive.catalog.snapshot, now=later).superseded) == 2
        assert archive.store.list("views/") == [kept]
        assert archive.verify().damages == ()
        assert texts(archive) == {"night": "SELECT 2 AS two"}

    def test_a_damaged_one_is_told(self, archive: Archive) -> None:
        archive.save_view("night", NIGHT)
        (key,) = archive.store.list("views/")
        data = archive.store.get(key)
        archive.store.delete(key)
        archive.store.put(key, data.replace(b"night", b"nicht"))
        assert [damage.object for damage in archive.verify().damages] == [key]
        with pytest.raises(IntegrityError, match=key):
            archive.rebuild_catalog()

    def test_erasing_a_video_leaves_them(self, archive: Archive) -> None:
        text = "SELECT frames FROM videos WHERE name = 'yard.mp4'"
        archive.save_view("yard", text)
        assert archive.sql("SELECT * FROM yard").fetchall() == [(8,)]
        archive.erase("yard.mp4")
        assert texts(archive) == {"yard": text}
        assert archive.sql("SELECT * FROM yard").fetchall() == []

    def test_a_copy_has_none(self, archive: Archive, tmp_path: Path) -> None:
        archive.save_view("night", NIGHT)
        target = Archive.create(tmp_path / "copy", settings=load_settings())
        archive.copy_to(target)
        assert len(target.videos()) == 2
        assert target.views() == []

    def test_the_reader_without_nvpstore_folds_them(self, archive: Archive, reader: ModuleType) -> None:
        archive.save_view("night", NIGHT)
        archive.save_view("night", "SELECT 1 AS one")
        archive.save_view("day", NIGHT)
        archive.drop_view("day")
        root = Path(archive.store.root.removeprefix("file://"))
        held = {obj.key for obj in archive.catalog.snapshot().objects()}
        assert set(reader.objects_in_force(root)) == held
        assert [key.split("/")[1] for key in held if key.startswith("views/")] == ["night"]

    def test_entries_of_a_view_need_not_be_about_one_that_exists(self, archive: Archive) -> None:
        attempt = entries(archive)[-1].attempt
        archive.log.append(LogDraft(kind="view", attempt=attempt, subject="never"))
        assert archive.views() == []
        assert archive.verify().damages == ()
