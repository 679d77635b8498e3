"""Saved views: read like tables, checked like queries."""

from __future__ import annotations

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
