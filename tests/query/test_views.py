"""Views: read like tables, checked like queries."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from nvpstore.errors import QueryError
from nvpstore.query.parse import parse
from tests.query.archive_fixture import CountingOperators, FixtureSnapshot, ask

VIEWS = {
    "cats": "SELECT * FROM labels WHERE label = 'cat'",
    "early": "SELECT * FROM cats WHERE ts < 0.5",
    "loop": "SELECT * FROM pool",
    "pool": "SELECT * FROM Loop",
    "self": "SELECT * FROM self",
    "broken": "SELECT *\nFROM labls",
    "asks": "SELECT $1",
    "writes": "DROP VIEW videos",
    "leaks": "SELECT getenv('HOME')",
    "off": "SELECT * FROM labels(every := 0)",
}


def test_views_read_views(snapshot: FixtureSnapshot) -> None:
    sql = "SELECT count(*) FROM early JOIN videos USING (video_id)"
    plain = "SELECT count(*) FROM labels WHERE label = 'cat' AND ts < 0.5"
    assert ask(snapshot, sql, views=VIEWS).fetchall() == ask(snapshot, plain).fetchall()


def test_conditions_reach_through_a_view(snapshot: FixtureSnapshot) -> None:
    operators = CountingOperators()
    ask(snapshot, "SELECT frame FROM early WHERE video_id = repeat('a', 32)", operators, views=VIEWS)
    assert sum(operators.decoded.values()) == 13


def test_a_view_sees_no_common_table_of_the_query(snapshot: FixtureSnapshot) -> None:
    sql = "WITH labels AS (SELECT 1 AS one) SELECT count(*) FROM cats, labels"
    plain = "SELECT count(*) FROM labels WHERE label = 'cat'"
    assert ask(snapshot, sql, views=VIEWS).fetchall() == ask(snapshot, plain).fetchall()


def test_a_common_table_hides_a_view(snapshot: FixtureSnapshot) -> None:
    sql = "WITH cats AS (SELECT 1 AS one) SELECT * FROM cats"
    assert ask(snapshot, sql, views=VIEWS).fetchall() == [(1,)]


def test_a_view_that_is_not_read_is_not_looked_at(snapshot: FixtureSnapshot) -> None:
    assert ask(snapshot, "SELECT 1", views=VIEWS).fetchall() == [(1,)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("loop", "views read each other in a circle: loop → pool → loop"),
        ("self", "views read each other in a circle: self → self"),
        ("broken", 'view "broken", line 2, column 6: unknown table "labls"; did you mean "labels"?'),
        ("asks", "has the parameter $1: a view has none"),
        ("writes", 'view "writes": DROP statement given'),
        ("leaks", 'view "leaks": line 1, column 8: function getenv is not allowed'),
        ("off", 'view "off", line 1, column 22: every := 0: allowed is a number of seconds above 0'),
        ("cat", 'unknown table "cat"; did you mean "cats"?'),
    ],
)
def test_errors_say_in_which_view_and_where(name: str, message: str) -> None:
    with pytest.raises(QueryError) as error:
        parse(f"SELECT * FROM {name}", ("labels",), views=VIEWS)
    assert message in str(error.value)


def test_a_view_must_not_bear_the_name_of_something_else() -> None:
    with pytest.raises(QueryError, match='table name "labels" is taken'):
        parse("SELECT 1", ("labels",), views={"labels": "SELECT 1"})
    with pytest.raises(QueryError, match="given twice"):
        parse("SELECT 1", ("labels",), tables=("watch",), views={"Watch": "SELECT 1"})


class TestSaved:
    """Views of the archive beside the caller's own."""

    @pytest.fixture
    def saved(self, snapshot: FixtureSnapshot, tmp_path: Path) -> FixtureSnapshot:
        path = tmp_path / "saved.duckdb"
        shutil.copy(snapshot.path, path)
        texts = {name: text for name, text in VIEWS.items() if name in ("cats", "early")} | {
            "embed": "SELECT 1 AS one",  # a task of the archive
            "wrong": "SELECT nam FROM videos",
            "odd": "SELECT 1 + 'a'::BLOB AS sum",
        }
        with duckdb.connect(str(path)) as con:
            con.executemany("INSERT INTO store.views VALUES (?, ?, now())", list(texts.items()))
        return FixtureSnapshot(path)

    def test_they_are_read_like_tables(self, saved: FixtureSnapshot) -> None:
        operators = CountingOperators()
        sql = "SELECT count(*) FROM early JOIN videos v USING (video_id) WHERE v.video_id = repeat('a', 32)"
        plain = "SELECT count(*) FROM labels WHERE label = 'cat' AND ts < 0.5 AND video_id = repeat('a', 32)"
        assert ask(saved, sql, operators).fetchall() == ask(saved, plain).fetchall()
        assert sum(operators.decoded.values()) == 13  # conditions reach through both views

    def test_a_callers_view_hides_one_but_not_inside_another(self, saved: FixtureSnapshot) -> None:
        own = {"cats": "SELECT 5 AS five", "both": "SELECT five, (SELECT count(*) FROM early) AS n FROM cats"}
        ((expected,),) = ask(saved, "SELECT count(*) FROM early").fetchall()
        assert expected > 0
        assert ask(saved, "SELECT * FROM both", views=own).fetchall() == [(5, expected)]

    def test_a_callers_table_hides_one_but_not_inside_another(self, saved: FixtureSnapshot) -> None:
        sql = "SELECT five, (SELECT count(*) FROM early) AS n FROM Cats"
        ((expected,),) = ask(saved, "SELECT count(*) FROM early").fetchall()
        rows = ask(saved, sql, tables={"cats": pa.table({"five": [5]})}).fetchall()
        assert rows == [(5, expected)]

    def test_a_view_that_is_gone_is_not_the_callers_table(self) -> None:
        texts = {"early": VIEWS["early"]}
        with pytest.raises(QueryError, match='view "early", line 1, column 15: unknown table "cats"'):
            parse("SELECT * FROM early", ("labels",), tables=("cats",), saved=texts)
        with pytest.raises(QueryError, match='view "early", line 1, column 15: unknown table "cats"'):
            parse("SELECT * FROM early", ("labels",), views={"cats": "SELECT 1"}, saved=texts)

    def test_a_callers_view_may_read_the_saved_one_that_it_is_not(self) -> None:
        views = {"mine": "SELECT * FROM cats"}
        query = parse("SELECT * FROM mine", ("labels",), views=views, saved={"cats": VIEWS["cats"]})
        assert [table.task for table in query.tables] == ["labels"]

    def test_a_name_that_a_task_has_too_is_refused_until_it_is_clear(self, saved: FixtureSnapshot) -> None:
        message = 'line 1, column 22: "embed" is ambiguous: it is a task of this archive, and a saved view'
        with pytest.raises(QueryError, match=message):
            ask(saved, "SELECT count(*) FROM Embed")
        for clear in ("embed(stride := 50)", '"embed@e0"'):
            assert ask(saved, f"SELECT count(*) FROM {clear}").fetchall()[0][0] > 1
        assert ask(saved, "SELECT count(*) FROM videos").fetchall() == [(3,)]

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("wrong", 'view "wrong", line 1, column 8: Binder Error: Referenced column "nam" not found'),
            ("odd", 'view "odd": Binder Error: No function matches'),
        ],
    )
    def test_what_duckdb_refuses_names_the_view(
        self, saved: FixtureSnapshot, name: str, message: str
    ) -> None:
        with pytest.raises(QueryError) as error:
            ask(saved, f"SELECT c.frame, w.* FROM cats c, {name} w")
        assert str(error.value).startswith(message)

    def test_circles_are_told_with_plain_names(self) -> None:
        texts = {name: VIEWS[name] for name in ("loop", "pool")}
        with pytest.raises(QueryError, match="in a circle: loop → pool → loop"):
            parse("SELECT * FROM loop", ("labels",), saved=texts)
