"""Constructs that shape rows: groups, windows, set operations, limits, and what a caller brings along."""

# A query reads best as one line.
# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from tests.query.archive_fixture import LABELS
from tests.query.oracle.making import SCORES, SECONDS, Maker
from tests.query.oracle.reading import Construct
from tests.query.oracle.world import Case


def group_by(m: Maker) -> Case:
    task = m.task()
    groups = m.grouping("c", task)
    return _rows(
        f"SELECT {groups}, {m.aggregates('c', task)} FROM {m.table(task)} AS c WHERE {m.where('c', task)} GROUP BY {m.one([groups, 'ALL'])}"
    )


def having(m: Maker) -> Case:
    task = m.task()
    groups, end = (
        m.grouping("c", task),
        m.one(["count(*) > 20", "max(c.ts) > 1.505", "min(c.frame) < 10", "sum(c.frame) % 2 = 0"]),
    )
    return _rows(
        f"SELECT {groups}, count(*) FROM {m.table(task)} AS c WHERE {m.where('c', task)} GROUP BY {groups} HAVING {end}"
    )


def grouping_sets(m: Maker) -> Case:
    task = m.labelled()
    sets = m.one(
        [
            "ROLLUP (c.video_id, c.label)",
            "CUBE (c.video_id, c.label)",
            "GROUPING SETS ((c.video_id), (c.label), ())",
        ]
    )
    return _rows(
        f"SELECT c.video_id, c.label, count(*), grouping(c.label) FROM {m.table(task)} AS c WHERE {m.where('c', task)} GROUP BY {sets}"
    )


def window(m: Maker) -> Case:
    task = m.task()
    over = f"(PARTITION BY c.video_id{m.one(['', ', c.segment'])} ORDER BY {m.key('c', task)}"
    function = m.one(
        [
            *(f"row_number() OVER {over})", f"lag(c.ts) OVER {over})", f"lead(c.frame, 2, -1) OVER {over})"),
            *(
                f"sum(c.frame) OVER {over} ROWS BETWEEN 2 PRECEDING AND CURRENT ROW)",
                f"ntile(3) OVER {over})",
            ),
            *(f"first_value(c.ts) OVER {over})", "count(*) OVER (PARTITION BY c.route)"),
            "avg(c.ts) OVER (PARTITION BY c.video_id ORDER BY c.ts RANGE BETWEEN 0.205 PRECEDING AND 0.205 FOLLOWING)",
            "rank() OVER (ORDER BY c.ts)",
        ]
    )
    inner = f"SELECT {m.key('c', task)}, c.ts, {function} AS w FROM {m.table(task)} AS c WHERE {m.where('c', task)}"
    return _rows(
        m.one(
            [
                inner,
                f"SELECT * FROM ({inner}) WHERE ts < {m.one(SECONDS)}",
                f"SELECT * FROM ({inner}) WHERE frame < 30 AND w > 1.0037",
            ]
        )
    )


def qualify(m: Maker) -> Case:
    task = m.task()
    over = f"OVER (PARTITION BY c.video_id{m.one(['', ', c.segment'])} ORDER BY {m.key('c', task)}{m.one(['', ' DESC'])})"
    end = m.one(
        [f"row_number() {over} <= {m.number(1, 3)}", f"count(*) {over} = 2", f"lag(c.frame) {over} IS NULL"]
    )
    text = (
        f"SELECT {m.key('c', task)}, c.ts FROM {m.table(task)} AS c WHERE {m.where('c', task)} QUALIFY {end}"
    )
    return _rows(m.one([text, f"SELECT * FROM ({text}) WHERE frame > 20"]))


def distinct(m: Maker) -> Case:
    task = m.labelled()
    text = m.one(
        [
            f"SELECT DISTINCT c.label, c.segment FROM {m.table(task)} AS c WHERE {m.where('c', task)}",
            f"SELECT DISTINCT ON (c.video_id, c.label) c.video_id, c.label, c.frame FROM {m.table(task)} AS c WHERE {m.where('c', task)} ORDER BY {m.key('c', task)}",
            f"SELECT count(DISTINCT c.label), count(DISTINCT c.video_id) FROM {m.table(task)} AS c WHERE {m.where('c', task)}",
            f"SELECT * FROM (SELECT DISTINCT frame, label FROM {m.table(task)}) AS c WHERE c.frame < {m.number(10, 50)} AND label > 'c'",
        ]
    )
    return _rows(text)


def union(m: Maker) -> Case:
    first, second, word = (
        m.task(),
        m.task(),
        m.one(["UNION", "UNION ALL", "UNION ALL BY NAME", "UNION BY NAME"]),
    )
    both = f"SELECT video_id, frame, ts FROM {m.table(first)} AS a WHERE {m.where('a', first)} {word} SELECT video_id, frame, ts FROM {m.table(second)} AS b WHERE {m.where('b', second)}"
    return _rows(
        m.one(
            [
                both,
                f"SELECT * FROM ({both}) WHERE ts < {m.one(SECONDS)}",
                f"SELECT count(*), max(frame) FROM ({both}) AS u WHERE u.frame % 3 = 1",
            ]
        )
    )


def intersect_and_except(m: Maker) -> Case:
    first, second, word = m.task(), m.task(), m.one(["INTERSECT", "EXCEPT", "INTERSECT ALL", "EXCEPT ALL"])
    both = f"SELECT video_id, frame FROM {m.table(first)} AS a WHERE {m.where('a', first)} {word} SELECT video_id, frame FROM {m.table(second)} AS b WHERE {m.where('b', second)}"
    return _rows(m.one([both, f"SELECT * FROM ({both}) WHERE frame < {m.number(10, 60)}"]))


def order_and_limit(m: Maker) -> Case:
    task = m.task()
    first = m.one(["c.ts DESC, ", "c.segment, ", "c.route DESC, c.ts, ", ""])
    end = m.one(
        [
            f"LIMIT {m.number(1, 20)}",
            f"LIMIT {m.number(1, 9)} OFFSET {m.number(1, 9)}",
            "",
            "LIMIT (SELECT 3)",
        ]
    )
    text = f"SELECT {m.columns('c', task)} FROM {m.table(task)} AS c WHERE {m.where('c', task)} ORDER BY {first}{m.key('c', task)} {end}"
    if m.number(0, 3) == 0:
        return _rows(
            f"SELECT count(*), min(frame) FROM (SELECT c.frame FROM {m.table(task)} AS c ORDER BY {m.key('c', task)} LIMIT 30) AS c WHERE c.frame > 3"
        )
    return Case(construct="", text=text, check="ordered")


def limit(m: Maker) -> Case:
    task = m.task()
    full = f"SELECT {m.columns('c', task)} FROM {m.table(task)} AS c" + m.one(
        ["", f" WHERE {m.where('c', task)}"]
    )
    return Case(construct="", text=f"{full} LIMIT {m.one([0, 1, 3, 7, 20, 10000])}", full=full, check="some")


def sample(m: Maker) -> Case:
    task = m.task()
    full = f"SELECT {m.columns('c', task)} FROM {m.table(task)} AS c"
    rows = m.number(1, 12)
    text = m.one(
        [
            f"{full} USING SAMPLE {rows} ROWS",
            f"{full} USING SAMPLE reservoir({rows} ROWS) REPEATABLE ({m.number(1, 99)})",
            f"{full} TABLESAMPLE reservoir({rows} ROWS)",
        ]
    )
    return Case(construct="", text=text, full=full, check="some")


def pivot(m: Maker) -> Case:
    task = m.labelled()
    two = ", ".join(f"'{label}'" for label in m.random.sample(LABELS, 2))
    source = f"(SELECT video_id, segment, label, frame FROM {m.table(task)} AS c WHERE {m.where('c', task)})"
    text = m.one(
        [
            f"PIVOT {source} ON label IN ({two}) USING count(*) GROUP BY video_id",
            f"FROM {source} PIVOT (max(frame) FOR label IN ({two}) GROUP BY segment)",
            f"SELECT * FROM (PIVOT {source} ON label IN ({two}) USING min(frame) GROUP BY video_id) WHERE video_id < 'c'",
            f"UNPIVOT (SELECT video_id, frame, segment::BIGINT AS s, label FROM {m.table(task)} AS c WHERE {m.where('c', task)}) ON frame, s INTO NAME what VALUE n",
        ]
    )
    return _rows(text)


def lateral(m: Maker) -> Case:
    task = m.task()
    extra = m.one(
        [
            ", LATERAL (SELECT c.frame * 2 AS n) AS x",
            ", unnest([1, 2, c.frame]) AS x(n)",
            " CROSS JOIN LATERAL (SELECT count(*) AS n FROM segments s WHERE s.video_id = c.video_id) AS x",
            f" JOIN LATERAL (SELECT y.frame AS n FROM {m.table('embed')} AS y WHERE y.video_id = c.video_id AND y.frame = c.frame + 1) AS x ON true",
            " JOIN range(40) AS x(n) ON x.n = c.frame",
        ]
    )
    return _rows(
        f"SELECT {m.key('c', task)}, x.n FROM {m.table(task)} AS c{extra} WHERE {m.where('c', task)}"
    )


def values(m: Maker) -> Case:
    task = m.labelled()
    rows = ", ".join(f"({m.number(0, 90)}, '{m.one(LABELS)}')" for _ in range(m.number(2, 6)))
    text = m.one(
        [
            f"SELECT x.name, c.frame FROM (VALUES {rows}) AS x(n, name) JOIN {m.table(task)} AS c ON c.frame = x.n AND c.label <> x.name WHERE {m.where('c', task)}",
            f"WITH x(n, name) AS (VALUES {rows}) SELECT c.frame, c.label FROM {m.table(task)} AS c WHERE c.label IN (SELECT name FROM x) AND {m.where('c', task)}",
            f"SELECT c.frame FROM {m.table(task)} AS c WHERE (c.frame, c.label) IN (VALUES {rows}) OR {m.atom('c', task)}",
            f"VALUES {rows}",
        ]
    )
    return _rows(text)


def stars(m: Maker) -> Case:
    task = m.task()
    text = m.one(
        [
            "SELECT * FROM {} AS c",
            "SELECT c.* EXCLUDE (ts, wall_ts) FROM {} AS c",
            "SELECT * REPLACE (frame + 1 AS frame) FROM {} AS c",
            "SELECT COLUMNS('.*(frame|ts)$') FROM {} AS c",
            "FROM {} AS c",
            "SELECT max(COLUMNS(['frame', 'segment'])) FROM {} AS c",
            "SELECT * RENAME (frame AS f) FROM {} AS c",
        ]
    )
    return _rows(f"{text.format(m.table(task))} WHERE {m.where('c', task)}")


def expressions(m: Maker) -> Case:
    task = m.labelled()
    item = m.one(
        [
            *(
                "CASE WHEN c.label = 'cat' THEN 'yes' ELSE upper(c.label) END",
                "list_transform([c.frame], lambda x: x + 1)",
            ),
            *(
                "{'f': c.frame, 'l': c.label}",
                "c.label[1:2]",
                "regexp_replace(c.label, 'a', 'o')",
                "c.ts::DECIMAL(9, 4)::VARCHAR",
            ),
            *(
                "coalesce(c.wall_ts::VARCHAR, 'none')",
                "[x FOR x IN range(3) IF x > c.frame % 3]",
                "printf('%s-%d', c.label, c.frame)",
            ),
            *(
                "c.label.upper()",
                "try_cast(c.label AS INTEGER)",
                "to_milliseconds(c.frame * 10)::VARCHAR",
                "hash(c.label)",
            ),
            "MAP {c.label: c.frame}[c.label]",
        ]
    )
    return _rows(
        f"SELECT {m.key('c', task)}, {item} AS e FROM {m.table(task)} AS c WHERE {m.where('c', task)}"
    )


def parameters(m: Maker) -> Case:
    task, params = m.labelled(), {}
    kind = m.number(0, 2)
    table = m.table(task)
    if kind == 0:
        text = f"SELECT c.frame, c.label, ? AS given FROM {table} AS c WHERE c.ts < ? AND c.label <> ? AND {m.atom('c', task)}"
        return Case(construct="", text=text, params=[m.number(1, 9), m.one(SECONDS), m.one(LABELS)])
    if kind == 1:
        text = f"SELECT c.frame, $2 - $1 FROM {table} AS c WHERE c.frame BETWEEN $1 AND $2 AND {m.atom('c', task)}"
        low = m.number(0, 40)
        return Case(construct="", text=text, params=[low, low + m.number(1, 30)])
    params = {"labels": m.random.sample(LABELS, 3), "least": m.one(SCORES)}
    text = f"SELECT c.video_id, c.frame FROM {table} AS c WHERE c.label IN (SELECT unnest($labels)) AND c.score > $least AND {m.atom('c', task)}"
    return Case(construct="", text=text, params=params)


def given_tables(m: Maker) -> Case:
    task = m.labelled()
    rows = m.number(1, 12)
    watch = pa.table(
        {
            "video_id": [m.one("abc") * 32 for _ in range(rows)],
            "frame": [m.number(0, 60) for _ in range(rows)],
            "label": [m.one([*LABELS, None]) for _ in range(rows)],
            "until": pa.array([m.one(SECONDS) for _ in range(rows)], pa.float64()),
        }
    )
    text = m.one(
        [
            f"SELECT c.video_id, c.frame, w.label FROM {m.table(task)} AS c JOIN watch w USING (video_id, frame) WHERE {m.where('c', task)}",
            f"SELECT w.frame, c.ts FROM watch w LEFT JOIN {m.table(task)} AS c ON c.video_id = w.video_id AND c.frame = w.frame AND {m.atom('c', task)}",
            f"SELECT c.frame, c.label FROM {m.table(task)} AS c WHERE c.video_id IN (SELECT video_id FROM watch WHERE frame > 20) AND {m.atom('c', task)}",
            f"SELECT c.frame, c.label FROM {m.table(task)} AS c ANTI JOIN watch w ON w.label = c.label WHERE {m.where('c', task)}",
            f"SELECT count(*) FROM {m.table(task)} AS c, WATCH WHERE c.video_id = watch.video_id AND c.ts < watch.until",
            f"SELECT c.frame FROM {m.table(task)} AS c WHERE c.ts < (SELECT min(until) FROM watch) AND {m.atom('c', task)}",
        ]
    )
    return Case(construct="", text=text, tables={"watch": watch})


def saved_views(m: Maker) -> Case:
    task = m.task()
    views: dict[str, Any] = {
        "night": f"SELECT * FROM {m.table(task)} AS x WHERE {m.where('x', task)}",
        "late": "SELECT * FROM night WHERE ts > 0.215",
    }
    text = m.one(
        [
            f"SELECT {m.columns('n', task)} FROM night AS n WHERE {m.atom('n', task)}",
            f"SELECT {m.columns('late', task)} FROM late WHERE {m.atom('late', task)}",
            f"SELECT a.frame, b.frame FROM night AS a JOIN late AS b USING (video_id, frame) WHERE {m.atom('a', task)}",
            "WITH night AS (SELECT 1 AS frame) SELECT l.frame FROM late AS l JOIN night ON l.frame > night.frame",
            f"SELECT v.name, count(*) FROM videos v JOIN night AS n USING (video_id) WHERE {m.atom('n', task)} GROUP BY v.name",
        ]
    )
    return Case(construct="", text=text, views=views)


def _rows(text: str) -> Case:
    return Case(construct="", text=text)


SHAPING: Mapping[str, Construct] = {
    "group by": group_by,
    "having": having,
    "grouping sets": grouping_sets,
    "window": window,
    "qualify": qualify,
    "distinct": distinct,
    "union": union,
    "intersect and except": intersect_and_except,
    "order and limit": order_and_limit,
    "limit": limit,
    "sample": sample,
    "pivot and unpivot": pivot,
    "lateral and unnest": lateral,
    "values": values,
    "stars": stars,
    "expressions": expressions,
    "parameters": parameters,
    "given tables": given_tables,
    "saved views": saved_views,
}
