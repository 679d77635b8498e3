"""What a query may say: options and their errors, and statements that reach for more than reading."""

from __future__ import annotations

from datetime import datetime
from fractions import Fraction

import pytest

from nvpstore.errors import QueryError
from nvpstore.query.columns import read_columns
from nvpstore.query.options import TableOptions
from nvpstore.query.parse import Query, parse
from nvpstore.query.relation import relation_schema
from tests.query.archive_fixture import FixtureSnapshot, ask

TASKS = ("labels", "embed", "objects")


def one(sql: str) -> Query:
    return parse(sql, TASKS)


def test_options_are_read_exactly() -> None:
    sql = (
        "SELECT * FROM labels(every := 0.1, top := 3, min_fidelity := 0.9, on_error := 'skip',"
        " route := 'pixel', stabilize := false) c"
    )
    (table,) = one(sql).tables
    assert table.options == TableOptions(
        every=Fraction(1, 10), top=3, min_fidelity=0.9, on_error="skip", route="pixel"
    )
    assert (table.task, table.alias, table.version) == ("labels", "c", "")


@pytest.mark.parametrize("sql", ['FROM "labels@1F3A"', 'FROM "Labels@1f3a"(top := 5)'])
def test_a_version_is_pinned_by_its_beginning(sql: str) -> None:
    (table,) = one(sql).tables
    assert (table.task, table.version) == ("labels", "1f3a")


def test_duckdb_never_sees_the_option_list() -> None:
    query = one("SELECT c.ts FROM labels(every := 1) c JOIN frames USING (video_id)")
    assert query.sql == 'SELECT c.ts FROM __nvp_0 AS c JOIN __nvp_1 AS "frames" USING (video_id)'


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT *\nFROM labels(evry := 2)", 'line 2, column 13: unknown option "evry" of labels; did'),
        ("FROM labels(every := 0)", "line 1, column 13: every := 0: allowed is a number of seconds above 0"),
        ("FROM labels(every := 'x')", "every := 'x': allowed is a number of seconds above 0"),
        ("FROM labels(stride := 1.5)", "stride := 1.5: allowed is a whole number from 1"),
        ("FROM labels(top := 0)", "top := 0: allowed is a whole number from 1"),
        ("FROM labels(min_fidelity := 2)", "min_fidelity := 2: allowed is a number from 0 to 1"),
        ("FROM labels(on_error := 'stop')", "on_error := 'stop': allowed is one of 'error', 'skip'"),
        ("FROM labels(route := 'fast')", "route := 'fast': allowed is one of 'adapter', 'pixel', 'source'"),
        ("FROM labels(every := 1, stride := 2)", "every and stride of labels exclude each other"),
        ("FROM labels(top := 1, top := 2)", "option top of labels is given twice"),
        ("FROM labels(3)", "labels(…) takes options as name := value, found 3"),
        ("FROM labels(stabilize := 1)", "stabilize := 1: allowed is true or false"),
        ("FROM labels(format := 'png')", 'unknown option "format" of labels'),
        ("FROM frames(upscale := true)", "upscale := TRUE: allowed is 2 or 4"),
        ("FROM labels(upscale := 2)", 'unknown option "upscale" of labels'),
        ("FROM frames(upscale := 3)", "upscale := 3: allowed is 2 or 4"),
        ("FROM frames(format := 'gif')", "format := 'gif': allowed is one of 'png', 'jpg', 'webp'"),
        ("FROM frames(top := 3)", 'unknown option "top" of frames'),
        ("SELECT * FROM labls", 'line 1, column 15: unknown table "labls"; did you mean "labels"?'),
        ("SELECT * FROM nothing", 'unknown table "nothing"; known: embed, frames, labels, objects, routes'),
        ("SELECT * FROM lables(top := 1)", 'refused table function "lables"; did you mean "labels"?'),
        ("SELECT * FROM __nvp_0", 'unknown table "__nvp_0"'),
        ('SELECT * FROM "frames@1f"', 'unknown table "frames@1f"; did you mean "frames"?'),
        ("FROM labels(every := 1e-300)", "seconds above 0, from 0.000001 to 1000000000"),
        ("FROM labels(every := 1e-999999999)", "allowed is a number of seconds above 0"),
        ("FROM labels(stride := 99999999999999999999)", "allowed is a whole number from 1 to 1000000000"),
        ("SELECT 1 +", "syntax error"),
        ("SELECT 1 FROM labels WHERE", 'column 26: syntax error at "WHERE": WHERE is not complete'),
        ("SELECT 1 FROM labels ORDER frame", 'syntax error at "frame": not expected here'),
        ("", "0 statements given: a query is exactly one read-only SELECT"),
        ("SELECT 1; SELECT 2", "2 statements given"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong_where_and_what_is_allowed(sql: str, message: str) -> None:
    with pytest.raises(QueryError) as error:
        one(sql)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT\n  labl FROM labels", 'line 2, column 3: Binder Error: Referenced column "labl" not found'),
        ("SELECT l.labl FROM labels l", "line 1, column 10: "),
        (
            "SELECT lenght(label) FROM labels",
            "column 8: Catalog Error: Scalar Function with name lenght",
        ),
        ("SELECT ts + label FROM labels", "Binder Error"),
        ("SELECT lables.ts FROM labels", "Candidate tables: labels"),
        ("SELECT * FROM labels(top := 9)", "top := 9: labels has 8 labels"),
        ('SELECT * FROM "labels@77"', 'line 1, column 15: unknown table "labels@77"'),
    ],
)
def test_names_that_only_duckdb_knows_are_checked_before_any_work(
    snapshot: FixtureSnapshot, sql: str, message: str
) -> None:
    with pytest.raises(QueryError) as error:
        ask(snapshot, sql, operators=object())
    assert message.replace('"', "") in str(error.value).replace('"', "")
    assert "\n" not in str(error.value)
    assert "__nvp" not in str(error.value)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT count(*) FROM range(3)", 3),
        ("SELECT sum(i) FROM generate_series(1, 3) t(i)", 6),
        ("SELECT sum(x) FROM unnest([1, 2]) u(x)", 3),
        ("WITH videos AS (SELECT 5 AS n) SELECT n FROM videos", 5),
        ("SELECT list_sum(list_transform([1, 2], lambda x: x + 1))", 5),
        ("(SELECT 1)", 1),
        ("SELECT count(*) FROM tasks", 4),
    ],
)
def test_plain_sql_is_duckdbs_business(snapshot: FixtureSnapshot, sql: str, expected: int) -> None:
    assert ask(snapshot, sql, operators=object()).fetchall() == [(expected,)]


@pytest.mark.parametrize(
    ("sql", "params", "expected"),
    [
        ("SELECT ? - ?", [3, 1], 2),
        ("SELECT $2 - $1", [1, 2], 1),
        ("WITH a AS (SELECT ? AS x) SELECT x - y FROM a, (SELECT ? AS y) LIMIT ?", [5, 3, 1], 2),
        ("SELECT $name", {"name": "a'b; DROP"}, "a'b; DROP"),
        ("SELECT $x = 0.1::DOUBLE", {"x": 0.1}, True),
        ("SELECT $x IS NULL", {"x": None}, True),
        ("SELECT 2 IN (SELECT unnest($x))", {"x": [1, 2]}, True),
        ("SELECT year($x)", {"x": datetime(2026, 1, 2)}, 2026),
        ("SELECT count(*) FROM frames(every := $s) WHERE video_id = $v", {"s": 1, "v": "a" * 32}, 4),
    ],
)
def test_parameters_are_values_never_text(
    snapshot: FixtureSnapshot, sql: str, params: object, expected: object
) -> None:
    assert ask(snapshot, sql, params=params).fetchall() == [(expected,)]


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(QueryError, match=r"no value given for parameter \$x"):
        one("SELECT $x")


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        ("SELECT ts, label FROM labels", "ts label"),
        ("SELECT c.ts FROM labels c JOIN videos USING (video_id) WHERE rank = 1", "video_id ts rank"),
        (
            "SELECT * EXCLUDE (image) FROM frames",
            "video_id segment frame ts wall_ts route fidelity width height",
        ),
        ("SELECT * EXCLUDE (image) FROM frames WHERE image IS NULL", None),
        ("SELECT count(*) FROM frames", ""),
        ("SELECT * FROM frames", None),
        ("FROM frames", None),
        ("SELECT v.* FROM frames f JOIN videos v USING (video_id)", "video_id"),
        ("SELECT * FROM (SELECT frame FROM frames)", "frame"),
        ("SELECT f FROM frames f", None),
        ("SELECT COLUMNS('i.*') FROM frames", None),
        ("SELECT 1 FROM frames NATURAL JOIN videos", None),
    ],
)
def test_only_columns_that_may_be_read_count(sql: str, columns: str | None) -> None:
    (table,) = one(sql).tables
    names = relation_schema("frames" if table.task == "frames" else "classification").names
    expected = names if columns is None else columns.split()
    assert list(read_columns(table.columns, names)) == expected
