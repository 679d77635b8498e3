"""Conditions are pushed to the frames where that is right, and nowhere else."""

from __future__ import annotations

import duckdb
import pytest

from nvpstore.query.index import load_whole
from nvpstore.query.parse import parse
from nvpstore.query.plan import Plan, build_plan
from nvpstore.query.safety import UNSTABLE_FUNCTIONS
from tests.query.archive_fixture import CLIPS, CountingOperators, FixtureSnapshot, ask, naive

ALL_FRAMES = sum(len(clip.pts) for clip in CLIPS)


def plan_of(snapshot: FixtureSnapshot, sql: str) -> Plan:
    con = snapshot.connect()
    index = load_whole(con)
    query = parse(sql, {task.name for task in index.tasks})
    return build_plan(query, con=con, index=index, snapshot_number=7)


def frames_of(snapshot: FixtureSnapshot, sql: str) -> list[int]:
    """How many frames each task table of `sql` was narrowed to, in the order of the text."""
    scans = sorted(plan_of(snapshot, sql).scans, key=lambda scan: scan.relations)
    return [scan.work.num_rows for scan in scans]


def check(snapshot: FixtureSnapshot, sql: str, *frames: int) -> None:
    assert frames_of(snapshot, sql) == list(frames)
    found = ask(snapshot, sql, CountingOperators()).fetchall()
    assert sorted(map(repr, found)) == sorted(map(repr, naive(snapshot, sql)))


# ---------------------------------------------------------------- pushed


@pytest.mark.parametrize(
    ("where", "frames"),
    [
        ("l.frame < 5", 15),
        ("5 > l.frame", 15),
        ("l.ts < 0.1 AND l.segment = 0 AND l.label = 'cat'", 3 + 1 + 3),
        ("l.video_id = repeat('a', 32)", 100),
        ("l.frame IN (1, 35, 99)", 3 + 3 + 1),
        ("l.frame BETWEEN 3 AND 4", 6),
        ("l.frame IN (" + ", ".join(str(n) for n in range(30, 60)) + ")", 30 + 20 + 10),
        (" OR ".join(f"l.frame = {n}" for n in range(0, 1200, 3)), 34 + 17 + 14),
        ("(l.frame = 1 AND l.label = 'cat') OR (l.frame = 99 AND l.label = 'dog')", 3 + 1),
        ("l.frame = 1 OR l.label = 'dog'", ALL_FRAMES),
        ("l.wall_ts >= TIMESTAMPTZ '2026-03-01 12:00:10+00'", 40),
        ("l.frame % 10 = 3", 10 + 5 + 4),
        ("NOT l.frame >= 5", 15),
        ("random() < 2 AND l.frame < 5", 15),
        ("l.video_id IN (SELECT video_id FROM videos WHERE name = 'yard.mp4')", 50),
        ("l.frame < (SELECT max(segment) FROM segments)", 9),
        ("l.segment = 3 AND l.score > 0", 10),
    ],
)
def test_conditions_of_where_narrow_the_frames(snapshot: FixtureSnapshot, where: str, frames: int) -> None:
    check(snapshot, f"SELECT l.frame, l.label FROM labels l WHERE {where}", frames)


THROUGH = """
50  SELECT label FROM labels JOIN videos v USING (video_id) WHERE v.name = 'yard.mp4'
140 SELECT label FROM labels l, videos v WHERE l.video_id = v.video_id AND v.tags['camera'] = 'gate'
30  SELECT label FROM labels l JOIN segments s USING (video_id, segment) WHERE s.start_frame = 30
40  SELECT label FROM labels l SEMI JOIN videos v ON l.video_id = v.video_id AND v.name = '7'
95  SELECT v.name FROM videos v JOIN labels l ON v.video_id = l.video_id AND l.ts < v.duration / 2
40  SELECT name FROM videos SEMI JOIN labels l USING (video_id) WHERE name = '7'
40  WITH g AS (SELECT video_id FROM videos WHERE name = '7') SELECT label FROM labels JOIN g USING (video_id)
3   WITH l AS (SELECT * FROM labels) SELECT label FROM l WHERE frame = 2
15  SELECT x FROM (SELECT label AS x, frame - 1 AS f FROM labels) WHERE f < 4
40  SELECT l.label FROM (SELECT * FROM labels) l JOIN videos v USING (video_id) WHERE v.name = '7'
3   SELECT label FROM (SELECT label, frame FROM labels UNION ALL SELECT 'x', 3) WHERE frame = 3
3   SELECT l.label FROM labels l LEFT JOIN videos v USING (video_id) WHERE l.frame = 3
3   SELECT name FROM videos v LEFT JOIN (SELECT * FROM labels WHERE frame = 3) l USING (video_id)
3   SELECT l.label FROM labels l ANTI JOIN videos v ON l.video_id = v.video_id WHERE l.frame = 3
"""


@pytest.mark.parametrize(
    ("frames", "sql"), [(int(line[:4]), line[4:]) for line in THROUGH.strip().splitlines()]
)
def test_conditions_come_through_joins_and_subqueries(
    snapshot: FixtureSnapshot, frames: int, sql: str
) -> None:
    check(snapshot, sql, frames)


def test_equal_frames_of_two_tables_share_their_conditions(snapshot: FixtureSnapshot) -> None:
    sql = "SELECT f.image FROM frames f JOIN labels l USING (video_id, frame) WHERE l.ts < 0.1"
    check(snapshot, sql, 7, 7)


def test_equal_columns_are_no_condition(snapshot: FixtureSnapshot) -> None:
    sql = "SELECT f.image, l.label FROM frames f JOIN labels l USING (video_id, segment, frame, ts)"
    plan = plan_of(snapshot, sql)
    assert all((scan.scoped.mask_at < 0).all() for scan in plan.scans)
    check(snapshot, sql, ALL_FRAMES, ALL_FRAMES)


def test_equal_wall_times_exclude_videos_without(snapshot: FixtureSnapshot) -> None:
    sql = "SELECT a.frame FROM labels a JOIN labels b USING (video_id, frame, wall_ts) WHERE a.rank = 1"
    check(snapshot, sql, 140, 140)


@pytest.mark.parametrize(
    ("where", "enumerated"),
    [("ts > 1", 3), ("ts >= 0", 3), ("frame < 50", 2), ("ts BETWEEN 0.5 AND 3", 4), ("frame % 2 = 0", 7)],
)
def test_frames_are_looked_at_only_where_bounds_do_not_decide(
    snapshot: FixtureSnapshot, where: str, enumerated: int
) -> None:
    (scan,) = plan_of(snapshot, f"SELECT label FROM labels WHERE {where}").scans
    assert int((scan.scoped.mask_at >= 0).sum()) <= enumerated
    check(snapshot, f"SELECT frame, label FROM labels WHERE {where}", scan.frames)


def test_a_condition_on_one_table_stays_there(snapshot: FixtureSnapshot) -> None:
    sql = "SELECT a.label FROM labels a JOIN labels b ON a.label = b.label WHERE a.frame = 1 AND b.frame = 2"
    check(snapshot, sql, 3, 3)


# ---------------------------------------------------------------- pushing would be wrong


def test_not_into_the_null_side_of_a_left_join(snapshot: FixtureSnapshot) -> None:
    sql = (
        "SELECT v.name, l.frame FROM videos v LEFT JOIN labels l ON l.video_id = v.video_id AND l.rank = 1"
        " AND l.frame < 3 WHERE l.frame IS NULL OR l.frame = 1"
    )
    check(snapshot, sql, ALL_FRAMES)


def test_not_into_the_null_side_of_a_right_join(snapshot: FixtureSnapshot) -> None:
    sql = (
        "SELECT v.name, l.frame FROM labels l RIGHT JOIN videos v ON l.frame = v.height WHERE l.frame IS NULL"
    )
    check(snapshot, sql, ALL_FRAMES)


def test_not_through_a_full_join(snapshot: FixtureSnapshot) -> None:
    sql = (
        "SELECT l.frame, s.segment FROM labels l FULL JOIN segments s ON l.frame = s.start_frame"
        " WHERE l.frame IS NULL OR l.frame < 3"
    )
    check(snapshot, sql, ALL_FRAMES)


def test_not_into_an_anti_join(snapshot: FixtureSnapshot) -> None:
    sql = "SELECT name FROM videos v ANTI JOIN labels l ON l.video_id = v.video_id AND l.frame > 60"
    check(snapshot, sql, ALL_FRAMES)


def test_not_from_the_condition_of_an_anti_join_on_its_left(snapshot: FixtureSnapshot) -> None:
    sql = "SELECT l.frame FROM labels l ANTI JOIN videos v ON l.video_id = v.video_id AND l.frame > 3"
    check(snapshot, sql, ALL_FRAMES)


def test_not_from_the_condition_of_a_left_join_on_its_left(snapshot: FixtureSnapshot) -> None:
    sql = "SELECT l.frame, v.name FROM labels l LEFT JOIN videos v ON l.video_id = v.video_id AND l.frame < 3"
    check(snapshot, sql, ALL_FRAMES)


def test_not_from_a_catalog_table_that_may_be_null(snapshot: FixtureSnapshot) -> None:
    sql = (
        "SELECT l.frame FROM labels l LEFT JOIN videos v ON l.video_id = v.video_id AND v.name = '7'"
        " WHERE v.name IS NULL"
    )
    check(snapshot, sql, ALL_FRAMES)


def test_not_through_an_asof_join(snapshot: FixtureSnapshot) -> None:
    sql = (
        "SELECT s.segment, l.frame FROM segments s ASOF JOIN labels l"
        " ON s.video_id = l.video_id AND s.end_ts >= l.ts WHERE l.frame < 40"
    )
    assert frames_of(snapshot, sql) == [ALL_FRAMES]


def test_not_into_a_correlated_subquery(snapshot: FixtureSnapshot) -> None:
    sql = (
        "SELECT v.name, (SELECT count(*) FROM labels l WHERE l.video_id = v.video_id) AS n FROM videos v"
        " WHERE v.name = '7'"
    )
    check(snapshot, sql, ALL_FRAMES)


def test_not_the_outer_condition_into_not_exists(snapshot: FixtureSnapshot) -> None:
    sql = (
        "SELECT a.frame FROM labels a WHERE a.frame < 9 AND NOT EXISTS"
        " (SELECT 1 FROM labels b WHERE b.video_id = a.video_id AND b.frame = a.frame + 20 AND b.rank = 1)"
    )
    check(snapshot, sql, 27, ALL_FRAMES)


def test_not_below_a_window(snapshot: FixtureSnapshot) -> None:
    sql = (
        "SELECT * FROM (SELECT frame, rank, lag(frame) OVER (PARTITION BY video_id, rank ORDER BY frame) AS p"
        " FROM labels) WHERE frame = 5"
    )
    check(snapshot, sql, ALL_FRAMES)


def test_not_below_a_limit(snapshot: FixtureSnapshot) -> None:
    cut = "SELECT frame FROM labels ORDER BY video_id, frame, rank LIMIT 10"
    sql = f"SELECT count(*) FROM ({cut}) WHERE frame < 1"
    check(snapshot, sql, ALL_FRAMES)


def test_not_below_an_aggregate(snapshot: FixtureSnapshot) -> None:
    sql = "SELECT * FROM (SELECT max(frame) AS frame FROM labels GROUP BY video_id) WHERE frame > 60"
    check(snapshot, sql, ALL_FRAMES)


def test_not_below_having(snapshot: FixtureSnapshot) -> None:
    sql = "SELECT video_id, count(*) FROM labels GROUP BY video_id HAVING max(frame) < 60"
    check(snapshot, sql, ALL_FRAMES)


def test_not_below_distinct_on(snapshot: FixtureSnapshot) -> None:
    sql = (
        "SELECT * FROM (SELECT DISTINCT ON (video_id) video_id, frame FROM labels ORDER BY video_id, frame)"
        " WHERE frame > 3"
    )
    check(snapshot, sql, ALL_FRAMES)


def test_not_below_qualify(snapshot: FixtureSnapshot) -> None:
    sql = (
        "SELECT * FROM (SELECT video_id, frame, rank FROM labels"
        " QUALIFY row_number() OVER (PARTITION BY video_id, rank ORDER BY frame) = 1) WHERE frame > 0"
    )
    check(snapshot, sql, ALL_FRAMES)


def test_not_a_volatile_condition(snapshot: FixtureSnapshot) -> None:
    assert frames_of(snapshot, "SELECT 1 FROM labels WHERE frame < random() * 100") == [ALL_FRAMES]
    assert frames_of(snapshot, "SELECT 1 FROM labels WHERE uuid() > video_id") == [ALL_FRAMES]


def test_not_through_a_volatile_output(snapshot: FixtureSnapshot) -> None:
    sql = "SELECT 1 FROM (SELECT frame + random() AS f FROM labels) WHERE f < 3"
    assert frames_of(snapshot, sql) == [ALL_FRAMES]


def test_not_into_a_cte_read_twice(snapshot: FixtureSnapshot) -> None:
    sql = (
        "WITH l AS (SELECT * FROM labels WHERE rank = 1) SELECT a.frame, (SELECT count(*) FROM l) FROM l a"
        " WHERE a.frame < 3"
    )
    check(snapshot, sql, ALL_FRAMES)


def test_not_into_a_cte_read_twice_with_different_conditions(snapshot: FixtureSnapshot) -> None:
    sql = (
        "WITH l AS (SELECT video_id, frame, rank, label FROM labels)"
        " SELECT a.frame, b.frame FROM l a JOIN l b ON a.video_id = b.video_id AND a.label = b.label"
        " AND a.rank = b.rank"
        " WHERE a.frame < 3 AND b.frame BETWEEN 40 AND 42"
    )
    check(snapshot, sql, ALL_FRAMES)


def test_not_from_one_reader_of_a_cte_to_another_that_has_none(snapshot: FixtureSnapshot) -> None:
    sql = (
        "WITH l AS (SELECT frame FROM labels WHERE rank = 1) SELECT count(*) FROM l WHERE frame < 3"
        " UNION ALL SELECT count(*) FROM l"
    )
    check(snapshot, sql, ALL_FRAMES)


def test_not_the_outer_condition_into_an_exists_of_other_frames(snapshot: FixtureSnapshot) -> None:
    sql = (
        "SELECT a.frame FROM labels a WHERE a.segment = 1 AND a.rank = 1 AND EXISTS (SELECT 1 FROM labels b"
        " WHERE b.video_id = a.video_id AND b.label = a.label AND b.rank = 1 AND b.segment <> a.segment)"
    )
    check(snapshot, sql, 59, ALL_FRAMES)


def test_not_the_condition_of_not_in(snapshot: FixtureSnapshot) -> None:
    sql = (
        "SELECT frame FROM labels WHERE frame < 3 AND frame NOT IN"
        " (SELECT frame - 50 FROM labels WHERE label = 'cat')"
    )
    check(snapshot, sql, 9, ALL_FRAMES)


def test_not_below_qualify_of_the_same_select(snapshot: FixtureSnapshot) -> None:
    sql = (
        "SELECT video_id, frame, rank, lag(frame) OVER w AS before FROM labels"
        " WINDOW w AS (PARTITION BY video_id, rank ORDER BY frame) QUALIFY before = 3"
    )
    check(snapshot, sql, ALL_FRAMES)


def test_not_through_an_offset(snapshot: FixtureSnapshot) -> None:
    later = "SELECT frame FROM labels ORDER BY video_id, frame, rank OFFSET 20"
    check(snapshot, f"SELECT frame FROM ({later}) WHERE frame < 6", ALL_FRAMES)


def test_not_into_a_lateral_join(snapshot: FixtureSnapshot) -> None:
    sql = (
        "SELECT v.name, n.n FROM videos v, LATERAL (SELECT count(*) AS n FROM labels l"
        " WHERE l.video_id = v.video_id) n WHERE v.name = '7'"
    )
    check(snapshot, sql, ALL_FRAMES)


def test_not_into_a_grouping_set(snapshot: FixtureSnapshot) -> None:
    sql = (
        "SELECT * FROM (SELECT segment, count(*) AS n FROM labels GROUP BY ROLLUP (segment))"
        " WHERE segment = 1 OR segment IS NULL"
    )
    check(snapshot, sql, ALL_FRAMES)


def test_not_into_a_recursive_cte(snapshot: FixtureSnapshot) -> None:
    sql = (
        "WITH RECURSIVE r AS (SELECT 0 AS frame UNION ALL SELECT r.frame + 1 FROM r JOIN labels l"
        " ON l.frame = r.frame + 1 AND l.rank = 1 AND l.segment = 0 AND l.video_id = repeat('a', 32))"
        " SELECT max(frame) FROM r WHERE frame > 20"
    )
    check(snapshot, sql, 30)


def test_not_through_a_renamed_table(snapshot: FixtureSnapshot) -> None:
    sql = "SELECT segment FROM labels AS l(video_id, frame, segment) WHERE l.frame = 0 AND l.rank = 1"
    check(snapshot, sql, ALL_FRAMES)


def test_not_an_alias_taken_for_a_column(snapshot: FixtureSnapshot) -> None:
    check(snapshot, "SELECT frame + 50 AS ts FROM labels WHERE ts < 0.1", 7)
    check(snapshot, "SELECT frame + 50 AS later FROM labels WHERE later < 53", ALL_FRAMES)


def test_not_into_except(snapshot: FixtureSnapshot) -> None:
    sql = (
        "SELECT * FROM (SELECT frame FROM frames EXCEPT SELECT frame FROM labels WHERE frame > 5)"
        " WHERE frame < 9"
    )
    frames = frames_of(snapshot, sql)
    assert frames == [ALL_FRAMES, ALL_FRAMES - 18]
    check(snapshot, sql, *frames)


def test_not_into_a_sample(snapshot: FixtureSnapshot) -> None:
    assert frames_of(snapshot, "SELECT 1 FROM labels TABLESAMPLE 10 ROWS WHERE frame < 3") == [ALL_FRAMES]


def test_not_below_a_sample_of_everything_joined(snapshot: FixtureSnapshot) -> None:
    assert frames_of(snapshot, "SELECT 1 FROM labels WHERE frame < 3 USING SAMPLE 10") == [ALL_FRAMES]


def test_a_symmetric_between_is_read_both_ways(snapshot: FixtureSnapshot) -> None:
    check(snapshot, "SELECT label FROM labels WHERE frame BETWEEN SYMMETRIC 45 AND 40", 6 + 6)


def test_not_a_column_of_the_outer_query_taken_for_the_catalogs(snapshot: FixtureSnapshot) -> None:
    sql = (
        "SELECT l.frame FROM labels l JOIN videos v USING (video_id) WHERE l.rank = 1 AND l.segment IN"
        " (SELECT s.segment FROM segments s WHERE s.video_id = v.video_id AND s.frames > 29)"
    )
    check(snapshot, sql, ALL_FRAMES)


def test_not_a_query_whose_answer_may_vary(snapshot: FixtureSnapshot) -> None:
    sql = "SELECT 1 FROM labels WHERE video_id IN (SELECT video_id FROM videos LIMIT 1)"
    assert frames_of(snapshot, sql) == [ALL_FRAMES]


def test_a_condition_that_fails_on_other_rows_does_not_fail_the_query(snapshot: FixtureSnapshot) -> None:
    sql = (
        "SELECT l.label FROM labels l JOIN videos v USING (video_id)"
        " WHERE CASE WHEN v.name = '7' THEN v.name::INTEGER ELSE 0 END = 7 AND l.frame = 1"
    )
    check(snapshot, sql, 1)


def test_every_volatile_function_of_duckdb_is_known() -> None:
    found = (
        duckdb.connect()
        .execute(
            "SELECT DISTINCT function_name FROM duckdb_functions()"
            " WHERE stability IN ('VOLATILE', 'CONSISTENT_WITHIN_QUERY')"
        )
        .fetchall()
    )
    assert {name for (name,) in found} <= UNSTABLE_FUNCTIONS
