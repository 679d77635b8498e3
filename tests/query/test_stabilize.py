"""`stabilize := true` in a plan: memory from each segment's first sampled frame, whatever is asked of it."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from nvpstore.errors import QueryError
from tests.query.archive_fixture import CountingOperators, FixtureSnapshot, ask, build_index

ALL = "SELECT video_id, frame, rank, label, score FROM labels(stabilize := true{more}) c"


def rows(
    snapshot: FixtureSnapshot, sql: str, operators: CountingOperators | None = None, **more: int
) -> set[object]:
    return set(ask(snapshot, sql, operators, **more).fetchall())


@pytest.mark.parametrize("more", ["", ", every := 0.3", ", stride := 4"])
@pytest.mark.parametrize(
    "where",
    [
        "c.ts BETWEEN 1 AND 1.5",
        "c.frame = 47",
        "c.ts > 2.9 OR c.frame % 11 = 5",
        "c.segment = 1 AND c.ts < 2",
    ],
)
def test_rows_under_a_condition_are_those_without(snapshot: FixtureSnapshot, more: str, where: str) -> None:
    sql = ALL.format(more=more)
    con = duckdb.connect()
    con.register("c", ask(snapshot, sql.replace("rank,", "segment, ts, rank,")).arrow())
    expected = con.sql(f"SELECT video_id, frame, rank, label, score FROM c WHERE {where}").fetchall()
    assert rows(snapshot, f"{sql} WHERE {where}") == set(expected)
    assert rows(snapshot, sql) != rows(snapshot, sql.replace("stabilize := true", "stabilize := false"))


def test_any_batching_gives_the_same_rows(snapshot: FixtureSnapshot) -> None:
    sql = ALL.format(more="")
    assert rows(snapshot, sql, batch_frames=1) == rows(snapshot, sql, batch_frames=32)
    assert rows(snapshot, sql, batch_frames=7) == rows(snapshot, sql, batch_frames=32)


def test_only_what_came_before_is_computed(snapshot: FixtureSnapshot) -> None:
    operators = CountingOperators()
    rows(snapshot, ALL.format(more="") + f" WHERE c.video_id = '{'a' * 32}' AND c.frame = 35", operators)
    assert sorted(operators.decoded) == [("a" * 32, frame) for frame in range(30, 36)]
    assert operators.steadied == 6
    assert operators.tails == 0


def test_plain_and_stabilized_answers_may_stand_in_one_query(snapshot: FixtureSnapshot) -> None:
    sql = (
        "SELECT a.frame, a.label, b.label FROM labels a JOIN labels(stabilize := true) b"
        " USING (video_id, frame, rank) WHERE a.ts BETWEEN 0.5 AND 1.5 AND a.rank = 1"
    )
    joined = rows(snapshot, sql)
    plain = rows(snapshot, "SELECT frame, label FROM labels c WHERE rank = 1 AND ts BETWEEN 0.5 AND 1.5")
    steady = rows(
        snapshot,
        "SELECT frame, label FROM labels(stabilize := true) c WHERE rank = 1 AND ts BETWEEN 0.5 AND 1.5",
    )
    assert {row[:2] for row in joined} == plain  # type: ignore[index]
    assert {(row[0], row[2]) for row in joined} == steady  # type: ignore[index]


def test_a_plan_says_so(snapshot: FixtureSnapshot) -> None:
    text = "\n".join(row[0] for row in ask(snapshot, "EXPLAIN " + ALL.format(more="")).fetchall())
    assert "stabilized" in text
    assert "Steady  from each segment's first frame on" in text
    pictures = "EXPLAIN SELECT image FROM frames(stabilize := true)"
    lines = [row[0] for row in ask(snapshot, pictures).fetchall()]
    steady, encode = (
        next(i for i, line in enumerate(lines) if word in line) for word in ("Steady", "Encode")
    )
    assert steady < encode


def test_without_one_it_is_said_how_to_come_by_one(tmp_path: Path) -> None:
    snapshot = build_index(tmp_path / "index.duckdb")
    with duckdb.connect(str(snapshot.path)) as con:
        con.execute("DELETE FROM store.objects WHERE key LIKE 'stabilizers/%'")
    with pytest.raises(
        QueryError, match=r"line 1, column \d+: stabilize := true: .* nvp tasks stabilize labels"
    ):
        ask(snapshot, ALL.format(more=""))
    with pytest.raises(QueryError, match="nvp tasks stabilize frames"):
        ask(snapshot, "SELECT image FROM frames(stabilize := true)")
