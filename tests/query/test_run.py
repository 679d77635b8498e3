"""Every query gives the rows of the naive plan: all frames of all videos computed, then plain DuckDB."""

from __future__ import annotations

import pytest

from tests.query.archive_fixture import CountingOperators, FixtureSnapshot, ask, naive

QUERIES = [
    "SELECT * FROM labels",
    "SELECT * FROM frames",
    "SELECT * FROM objects",
    "SELECT video_id, frame, embedding FROM embed",
    "SELECT ts, label FROM labels WHERE rank = 1 AND ts < 1",
    "SELECT ts, label FROM labels WHERE rank = 1 AND ts BETWEEN 1 AND 1.52 AND score > 0.3",
    "SELECT frame FROM labels(top := 8) WHERE rank > 6 AND frame IN (3, 31, 95)",
    "SELECT v.name, c.ts, c.label, c.score FROM labels(every := 0.5) c JOIN videos v USING (video_id)"
    " WHERE v.tags['camera'] = 'gate' AND c.ts BETWEEN 1 AND 2 AND c.rank = 1 AND c.score > 0.1",
    "SELECT count(*) FROM labels l, videos v WHERE l.video_id = v.video_id AND v.name = 'yard.mp4'",
    "SELECT label, count(*) n FROM labels WHERE wall_ts < '2026-03-01 12:00:02+00' GROUP BY label",
    "SELECT l.frame FROM labels l JOIN segments s USING (video_id, segment) WHERE s.start_frame = 30",
    "SELECT f.image, l.label FROM frames f JOIN labels l USING (video_id, frame)"
    " WHERE l.label = 'cat' AND l.ts < 0.5",
    "WITH near AS (SELECT * FROM labels WHERE ts < 2) SELECT frame, label FROM near WHERE ts > 1.5",
    "SELECT * FROM (SELECT ts AS t, frame + 1 AS f, label FROM labels) WHERE t < 0.3 AND f > 2",
    "SELECT frame FROM labels WHERE video_id IN (SELECT video_id FROM videos WHERE name = 'gate.mp4')",
    "SELECT name FROM videos v SEMI JOIN labels l"
    " ON l.video_id = v.video_id AND l.ts < 1 AND l.label = 'dog'",
    "SELECT name FROM videos v WHERE EXISTS"
    " (SELECT 1 FROM labels l WHERE l.video_id = v.video_id AND l.label = 'dog' AND l.frame < 20)",
    "SELECT a.frame, b.frame FROM labels a"
    " JOIN labels b ON a.video_id = b.video_id AND b.frame = a.frame + 30"
    " WHERE a.rank = 1 AND b.rank = 1 AND a.label = b.label AND a.segment = 0",
    "SELECT frame FROM labels WHERE ts < 0.2 UNION ALL SELECT frame FROM frames WHERE segment = 1",
    "SELECT count(*), min(ts), max(ts) FROM labels(every := 0.3) WHERE segment >= 1",
    "SELECT count(*) FROM labels(stride := 7) WHERE frame > 12",
    "SELECT frame, route, fidelity FROM labels(route := 'pixel') WHERE ts < 0.2",
    "SELECT frame FROM labels WHERE (ts < 0.2 AND label = 'cat') OR (frame > 97 AND label = 'dog')",
    "FROM labels SELECT max(score) WHERE NOT ts < 1",
    "SELECT * FROM range(3) r(i) JOIN labels ON frame = i WHERE rank = 1",
    "SELECT frame FROM labels WHERE ts < (SELECT min(duration) FROM videos)",
    "SELECT frame FROM labels ORDER BY score DESC, video_id, frame, rank LIMIT 5",
    "SELECT frame, row_number() OVER (PARTITION BY video_id, rank ORDER BY frame) AS n FROM labels"
    " WHERE segment = 1 QUALIFY n <= 2",
    "SELECT 'labels@1f3a' AS v, label FROM \"labels@1f3a\" WHERE frame = 3 AND rank = 1",
    "SELECT count(*) FROM labels WHERE frame < 0",
    "SELECT frame FROM labels NATURAL JOIN videos WHERE name = 'gate.mp4' AND ts < 1",
    "SELECT l.frame, o.object FROM labels l LEFT JOIN objects o ON o.video_id = l.video_id"
    " AND o.frame = l.frame AND o.ts < 0.1 WHERE l.ts < 0.3 AND l.rank = 1",
    # What brackets hold is cut before it is filtered.
    "SELECT * FROM ((SELECT DISTINCT frame FROM labels ORDER BY frame) LIMIT 3) t WHERE frame > 10",
    "SELECT count(*) FROM labels a JOIN ((SELECT video_id, frame FROM labels ORDER BY frame) LIMIT 3) b"
    " USING (video_id, frame) WHERE a.frame > 10",
    "SELECT * FROM (SELECT frame FROM labels WHERE segment = 9 UNION ALL"
    " ((SELECT frame FROM labels ORDER BY frame) LIMIT 3)) t WHERE frame > 10",
    # A star leaves out what every star leaves out, and what is not read elsewhere.
    "SELECT * EXCLUDE (embedding) REPLACE (embedding[1] AS fidelity) FROM embed WHERE frame < 1",
    "SELECT * EXCLUDE (embedding), c.* EXCLUDE (video_id) FROM embed c WHERE frame < 2",
    # Equal is not identical where types differ.
    "SELECT count(*) FROM labels l JOIN (SELECT 3.0::DOUBLE AS frame) g ON l.frame = g.frame"
    " WHERE g.frame::VARCHAR = '3.0'",
    "SELECT * FROM (SELECT frame FROM labels UNION ALL SELECT '5') t WHERE frame < '5'",
    "SELECT DISTINCT width, height FROM frames(upscale := 2) WHERE frame = 0",
]


def assert_as_naive(snapshot: FixtureSnapshot, sql: str) -> CountingOperators:
    operators = CountingOperators()
    found = ask(snapshot, sql, operators).fetchall()
    expected = naive(snapshot, sql)
    assert sorted(map(repr, found)) == sorted(map(repr, expected))
    return operators


@pytest.mark.parametrize("sql", QUERIES)
def test_rows_are_those_of_the_naive_plan(snapshot: FixtureSnapshot, sql: str) -> None:
    assert_as_naive(snapshot, sql)
