"""Conditions on `rank` that `top` makes impossible are told, and only these."""

from __future__ import annotations

import pytest

from nvpstore.query.parse import parse
from tests.query.archive_fixture import FixtureSnapshot, ask


def warnings(sql: str) -> tuple[str, ...]:
    return parse(sql, ("labels", "objects")).warnings


@pytest.mark.parametrize(
    ("where", "least"),
    [
        ("rank > 5", 6),
        ("rank >= 6", 6),
        ("rank = 7", 7),
        ("7 = rank", 7),
        ("5 < l.rank", 6),
        ("(rank > 9) AND ts < 1", 10),
        ("rank BETWEEN 6 AND 8", 6),
        ("rank IN (8, 6)", 6),
    ],
)
def test_ranks_beyond_top_are_told_with_the_remedy(where: str, least: int) -> None:
    (line,) = warnings(f"SELECT * FROM labels l WHERE {where}")
    assert line.startswith("line 1, column ")
    assert "never holds: labels has ranks 1 to 5 (top := 5)" in line
    assert line.endswith(f"ask for labels(top := {least})")


@pytest.mark.parametrize("where", ["rank < 1", "rank = 0", "rank <= 0"])
def test_ranks_start_at_one(where: str) -> None:
    (line,) = warnings(f"SELECT * FROM labels(top := 2) WHERE {where}")
    assert line.endswith("never holds: labels has ranks 1 to 2 (top := 2)")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM labels WHERE rank > 4",
        "SELECT * FROM labels(top := 8) WHERE rank = 8",
        "SELECT * FROM labels WHERE rank > 9 OR ts < 1",
        "SELECT * FROM labels WHERE rank > frame",
        "SELECT * FROM labels l JOIN other o USING (video_id) WHERE o.rank > 9",
        "SELECT * FROM labels l JOIN other AS o USING (video_id) WHERE rank > 9",
        "SELECT * FROM (SELECT rank + 9 AS rank FROM labels) WHERE rank > 9",
        "SELECT frame FROM labels QUALIFY row_number() OVER (ORDER BY ts) > 9",
    ],
)
def test_nothing_else_is_told(sql: str) -> None:
    assert parse(sql, ("labels", "objects"), tables=("other",)).warnings == ()


def test_a_join_condition_counts() -> None:
    sql = "SELECT * FROM videos v JOIN labels(top := 1) l ON l.video_id = v.video_id AND l.rank = 2"
    assert len(warnings(sql)) == 1


def test_a_result_carries_its_warnings(snapshot: FixtureSnapshot) -> None:
    result = ask(snapshot, "SELECT frame FROM labels WHERE rank > 5")
    assert len(result) == 0
    assert "never holds" in result.warnings[0]
    assert "never holds" in result._repr_html_()
