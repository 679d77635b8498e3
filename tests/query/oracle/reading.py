"""Constructs of one SELECT: conditions, joins, subqueries."""

# A query reads best as one line.
# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.query.oracle.making import CAMERAS, SECONDS, Maker
from tests.query.oracle.world import Case

Construct = Callable[[Maker], Case]


def where(m: Maker) -> Case:
    task = m.task()
    return _rows(
        f"SELECT {m.columns('c', task)} FROM {m.table(task)} AS c WHERE {m.where('c', task, parts=3)}"
    )


def time_sampling(m: Maker) -> Case:
    option = m.one(
        ["every := 0.1", "every := 0.7", "every := 0.04", "every := 0.333", "stride := 3", "stride := 40"]
    )
    task = m.one(["labels", "objects", "embed", "frames"])
    return _rows(f"SELECT {m.columns('c', task)} FROM @@{task}|{option}@@ AS c WHERE {m.where('c', task)}")


def join_of_tasks(m: Maker) -> Case:
    first, second = m.one(
        [
            *(("labels", "objects"), ("labels", "embed"), ("objects", "labels"), ("labels", "labels")),
            *(("actions", "labels"), ("objects", "actions")),
        ]
    )
    on = m.one(
        [
            "USING (video_id, frame)",
            "ON a.video_id = b.video_id AND a.frame = b.frame",
            "ON a.video_id = b.video_id AND b.frame = a.frame + 5",
            "ON a.video_id = b.video_id AND abs(a.ts - b.ts) < 0.101 AND a.segment = b.segment",
        ]
    )
    columns = "a.frame, b.frame, " + ("a.label" if first != "embed" else "a.embedding")
    text = f"SELECT {columns}, b.ts FROM {m.table(first)} AS a JOIN {m.table(second)} AS b {on}"
    return _rows(f"{text} WHERE {m.where('a', first)} AND {m.where('b', second)}")


def join_with_videos(m: Maker) -> Case:
    task = m.task()
    join = m.one(
        [
            "JOIN videos v USING (video_id)",
            "JOIN videos v ON v.video_id = c.video_id",
            ", videos v",
            "NATURAL JOIN (SELECT video_id, name, tags, duration FROM videos) v",
        ]
    )
    extra = "c.video_id = v.video_id AND " if join == ", videos v" else ""
    about = m.one(
        [
            *(f"v.tags['camera'] = '{m.one(CAMERAS)}'", "v.name LIKE '%.mp4'", "c.ts < v.duration / 3"),
            *("v.name = '7'", "v.duration > 1.5"),
        ]
    )
    text = f"SELECT v.name, c.frame, c.ts FROM {m.table(task)} AS c {join}"
    return _rows(f"{text} WHERE {extra}{about} AND {m.where('c', task)}")


def join_with_segments(m: Maker) -> Case:
    task = m.task()
    about = m.one(
        ["s.start_frame = 30", "s.frames < 31", "c.frame = s.start_frame", "s.end_ts > 2.005", "s.psnr > 3"]
    )
    text = f"SELECT s.start_frame, c.frame, s.segment FROM segments s JOIN {m.table(task)} AS c"
    return _rows(f"{text} USING (video_id, segment) WHERE {about} AND {m.where('c', task)}")


def left_join(m: Maker) -> Case:
    first, second = m.one(
        [("labels", "objects"), ("embed", "labels"), ("objects", "embed"), ("actions", "labels")]
    )
    on = f"a.video_id = b.video_id AND a.frame = b.frame AND {m.where('b', second)}"
    end = m.one(["", " AND b.frame IS NULL", f" AND (b.frame IS NULL OR {m.atom('b', second)})"])
    text = f"SELECT a.video_id, a.frame, b.frame, b.ts FROM {m.table(first)} AS a LEFT JOIN {m.table(second)} AS b"
    return _rows(f"{text} ON {on} WHERE {m.where('a', first)}{end}")


def right_and_full_join(m: Maker) -> Case:
    task, kind = m.task(), m.one(["RIGHT", "FULL", "FULL OUTER", "RIGHT OUTER"])
    on = f"c.video_id = s.video_id AND c.frame = s.start_frame AND {m.atom('c', task)}"
    end = m.one(
        [
            "",
            " WHERE c.frame IS NULL",
            f" WHERE c.frame IS NULL OR {m.atom('c', task)}",
            " WHERE s.segment = 1",
        ]
    )
    text = f"SELECT s.video_id, s.segment, c.frame, c.ts FROM {m.table(task)} AS c {kind} JOIN segments s ON {on}"
    return _rows(text + end)


def semi_and_anti_join(m: Maker) -> Case:
    first, second, kind = m.task(), m.task(), m.one(["SEMI", "ANTI"])
    on = f"a.video_id = b.video_id AND a.frame = b.frame + {m.number(0, 3)} AND {m.where('b', second)}"
    text = f"SELECT {m.columns('a', first)} FROM {m.table(first)} AS a {kind} JOIN {m.table(second)} AS b ON {on}"
    return _rows(f"{text} WHERE {m.where('a', first)}")


def exists(m: Maker) -> Case:
    task, word = m.task(), m.one(["EXISTS", "NOT EXISTS"])
    outer = m.one(
        [
            ("SELECT o.name FROM videos o WHERE", "c.video_id = o.video_id"),
            (
                f"SELECT o.frame FROM {m.table('frames')} AS o WHERE o.frame < 40 AND",
                "c.video_id = o.video_id AND c.frame = o.frame",
            ),
            (
                "SELECT o.video_id, o.segment FROM segments o WHERE",
                "c.video_id = o.video_id AND c.segment = o.segment",
            ),
        ]
    )
    return _rows(
        f"{outer[0]} {word} (SELECT 1 FROM {m.table(task)} AS c WHERE {outer[1]} AND {m.where('c', task)})"
    )


def in_subquery(m: Maker) -> Case:
    task, other = m.task(), m.labelled()
    word = m.one(["IN", "NOT IN"])
    inner = m.one(
        [
            f"SELECT x.frame FROM {m.table(other)} AS x WHERE {m.where('x', other)}",
            f"SELECT max(x.frame) FROM {m.table(other)} AS x WHERE {m.where('x', other)} GROUP BY x.video_id",
            "SELECT start_frame FROM segments",
            f"SELECT x.frame FROM {m.table('frames')} AS x WHERE x.ts < {m.one(SECONDS)}",
        ]
    )
    return _rows(
        f"SELECT {m.columns('c', task)} FROM {m.table(task)} AS c WHERE {m.where('c', task)} AND c.frame {word} ({inner})"
    )


def scalar_subquery(m: Maker) -> Case:
    task = m.task()
    inner = m.one(
        [
            f"(SELECT count(*) FROM {m.table('labels')} AS x WHERE x.video_id = c.video_id AND x.frame = c.frame AND {m.atom('x', 'labels')})",
            f"(SELECT max(x.ts) FROM {m.table('objects')} AS x WHERE x.video_id = c.video_id AND x.frame < c.frame)",
            "(SELECT v.name FROM videos v WHERE v.video_id = c.video_id)",
            f"(SELECT count(*) FROM {m.table('objects')} AS x WHERE {m.where('x', 'objects')})",
        ]
    )
    where_too = m.one(
        ["", f" AND c.ts < (SELECT max(y.ts) / 2 FROM {m.table('embed')} AS y WHERE {m.atom('y', 'embed')})"]
    )
    return _rows(
        f"SELECT {m.key('c', task)}, {inner} AS q FROM {m.table(task)} AS c WHERE {m.where('c', task)}{where_too}"
    )


def nested(m: Maker) -> Case:
    task = m.task()
    inner = f"SELECT video_id AS v, frame + {m.number(0, 3)} AS f, ts AS t, segment FROM {m.table(task)} AS x"
    if m.number(0, 1):
        inner += f" WHERE {m.atom('x', task)}"
    middle = m.one(
        [
            "SELECT * FROM ({})",
            "SELECT v, f, t * 2 AS t, segment FROM ({})",
            "SELECT DISTINCT v, f, t, segment FROM ({})",
        ]
    )
    outer = m.one(
        [
            "f < 40 AND t > 0.305",
            "v < 'b'",
            "t BETWEEN 0.305 AND 1.105",
            "f % 5 = 2 OR t < 0.105",
            "segment = 1",
        ]
    )
    return _rows(f"SELECT v, f, t FROM ({middle.format(inner)}) AS z WHERE {outer}")


def common_table(m: Maker) -> Case:
    task = m.task()
    source = f"SELECT * FROM {m.table(task)} AS x" + m.one(["", f" WHERE {m.atom('x', task)}"])
    kind = m.one(["", "MATERIALIZED ", "NOT MATERIALIZED "])
    second = m.one(
        ["SELECT * FROM p", "SELECT q.*, 1 AS one FROM p AS q", "SELECT * FROM p WHERE ts > 0.215"]
    )
    return _rows(
        f"WITH p AS {kind}({source}), r AS ({second}) SELECT {m.columns('r', task)} FROM r WHERE {m.where('r', task)}"
    )


def common_table_read_twice(m: Maker) -> Case:
    task = m.task()
    source = f"SELECT * FROM {m.table(task)} AS x WHERE {m.where('x', task)}"
    text = m.one(
        [
            f"SELECT a.video_id, a.frame, b.frame FROM p AS a JOIN p AS b ON a.video_id = b.video_id AND b.frame = a.frame + 1 WHERE {m.atom('a', task)}",
            f"SELECT frame FROM p AS a WHERE {m.atom('a', task)} UNION ALL SELECT frame FROM p AS b WHERE {m.atom('b', task)}",
            f"SELECT a.frame, (SELECT count(*) FROM p) AS n FROM p AS a WHERE {m.atom('a', task)}",
            f"SELECT frame FROM p AS a WHERE a.frame IN (SELECT max(frame) FROM p AS b WHERE {m.atom('b', task)} GROUP BY b.video_id)",
        ]
    )
    return _rows(f"WITH p AS ({source}) {text}")


def recursive(m: Maker) -> Case:
    step, task = m.number(1, 4), m.labelled()
    start = m.number(0, 10)
    inner = f"SELECT r.frame + {step} FROM r JOIN {m.table(task)} AS c ON c.frame = r.frame + {step} WHERE {m.where('c', task)} AND r.frame < 90"
    return _rows(
        f"WITH RECURSIVE r(frame) AS (SELECT {start} UNION {inner}) SELECT count(*), min(frame), max(frame) FROM r WHERE frame > {start - 1}"
    )


def asof_join(m: Maker) -> Case:
    task, kind = m.task(), m.one(["ASOF JOIN", "ASOF LEFT JOIN"])
    first = " AND rank = 1"
    unique = {"labels": first, "actions": first, "objects": " AND object = 0"}.get(task, "")
    right = f"(SELECT * FROM {m.table(task)} AS x WHERE {m.where('x', task)}{unique})"
    text = f"SELECT s.video_id, s.segment, c.frame, c.ts FROM segments s {kind} {right} AS c"
    return _rows(
        f"{text} ON s.video_id = c.video_id AND s.end_ts >= c.ts"
        + m.one(["", " WHERE s.segment >= 1", " WHERE c.frame < 40"])
    )


def _rows(text: str) -> Case:
    return Case(construct="", text=text)


READING: Mapping[str, Construct] = {
    "where": where,
    "every and stride": time_sampling,
    "join of tasks": join_of_tasks,
    "join with videos": join_with_videos,
    "join with segments": join_with_segments,
    "left join": left_join,
    "right and full join": right_and_full_join,
    "semi and anti join": semi_and_anti_join,
    "exists": exists,
    "in subquery": in_subquery,
    "scalar subquery": scalar_subquery,
    "nested subqueries": nested,
    "common table": common_table,
    "common table read twice": common_table_read_twice,
    "recursive common table": recursive,
    "asof join": asof_join,
}
