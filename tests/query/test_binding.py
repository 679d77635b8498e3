"""Parameters become literals of the right type, or a clear error."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from nvpstore.errors import QueryError
from nvpstore.query.parse import parse
from tests.query.archive_fixture import FixtureSnapshot, ask

VALUES = [
    (7, "INTEGER", 7),
    (2**70, "HUGEINT", 2**70),
    (True, "BOOLEAN", True),
    (0.1, "DOUBLE", 0.1),
    (float("inf"), "DOUBLE", float("inf")),
    (Decimal("1.50"), "DECIMAL(3,2)", Decimal("1.50")),
    ("it's -- /* $1 ?", "VARCHAR", "it's -- /* $1 ?"),
    (b"\x00'\xff", "BLOB", b"\x00'\xff"),
    (date(2026, 1, 2), "DATE", date(2026, 1, 2)),
    (datetime(2026, 1, 2, 3, 4, 5, 6), "TIMESTAMP", datetime(2026, 1, 2, 3, 4, 5, 6)),
    (time(3, 4, 5), "TIME", time(3, 4, 5)),
    (UUID(int=5), "UUID", UUID(int=5)),
    ([1, 2], "INTEGER[]", [1, 2]),
    ({"a": 1, "b c": "x"}, 'STRUCT(a INTEGER, "b c" VARCHAR)', {"a": 1, "b c": "x"}),
    (np.float32(0.5), "DOUBLE", 0.5),
    (np.arange(2), "INTEGER[]", [0, 1]),
    (None, '"NULL"', None),
]


@pytest.mark.parametrize(("value", "kind", "expected"), VALUES, ids=[kind for _, kind, _ in VALUES])
def test_values_keep_their_type(snapshot: FixtureSnapshot, value: Any, kind: str, expected: Any) -> None:
    ((shown,),) = ask(snapshot, "SELECT typeof($x)", params={"x": value}).fetchall()
    ((found,),) = ask(snapshot, "SELECT $x AS x", params={"x": value}).fetchall()
    assert shown == kind
    if kind == "UUID":
        found = UUID(str(found)) if not isinstance(found, bytes) else UUID(bytes=found)
    assert found == expected


def test_an_instant_and_a_span(snapshot: FixtureSnapshot) -> None:
    sql = "SELECT epoch_us(?) = ?, ? + ? = ?"
    instant, span = datetime(2026, 1, 2, tzinfo=UTC), timedelta(seconds=1.5)
    params = [instant, int(instant.timestamp() * 1e6), instant, span, instant + span]
    assert ask(snapshot, sql, params=params).fetchall() == [(True, True)]


@pytest.mark.parametrize(
    ("sql", "params", "message"),
    [
        ("SELECT ?", None, "line 1, column 8: no value given for parameter $1"),
        ("SELECT ?, ?", [1], "no value given for parameter $2: 1 given"),
        ("SELECT ?", [1, 2], "2 values given for 1 parameters"),
        ("SELECT 1", [1], "1 values given for 0 parameters"),
        ("SELECT $nam", {"name": 1}, 'no value given for parameter $nam; did you mean "name"?'),
        ("SELECT $a", {"a": 1, "b": 2}, "the query has no parameter $b"),
        ("SELECT ?, $2", [1, 2], "line 1, column 8: ? beside $ parameters: use one of the two"),
        ("SELECT $x", {"x": object()}, "parameter of type object: allowed are numbers, text"),
        ("SELECT $x", {"x": "a\0b"}, "parameter holds a NUL character"),
        ("SELECT $x", {"x": list(range(10_001))}, "10001 items: at most 10000 are allowed; give them as a"),
    ],
)
def test_values_that_do_not_fit_are_told(sql: str, params: Any, message: str) -> None:
    with pytest.raises(QueryError) as error:
        parse(sql, (), params=params)
    assert message in str(error.value)


def test_question_marks_in_text_and_comments_are_no_parameters(snapshot: FixtureSnapshot) -> None:
    sql = "SELECT '?' AS a, ? AS b /* ? */ -- ?"
    assert ask(snapshot, sql, params=[5]).fetchall() == [("?", 5)]
