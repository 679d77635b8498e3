"""Videos with mixed routes, their task tables in full, and both ways to ask: engine and plain DuckDB."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from nvpstore.query.relation import relation_schema
from tests.query.archive_fixture import (
    CLIPS,
    LABELS,
    SAMPLING,
    Clip,
    CountingOperators,
    FixtureSnapshot,
    answers,
    ask,
    brute_force_sample,
    build_index,
    clip_end_ts,
    clip_starts,
    steady_answers,
)

KINDS = {
    **{"labels": "classification", "embed": "embedding", "objects": "detection", "frames": "frames"},
    "actions": "action",
}
VERSIONS = {
    "labels": "9c21" + "0" * 60,
    "embed": "e0e0" + "0" * 60,
    "objects": "0b0b" + "0" * 60,
    "actions": "ac70" + "0" * 60,
    "frames": "",
}
# Whose routes differ from the others': one with poor adapters, one with the original alone.
POOR = ("a" * 32, 2)
UNFITTED = ("b" * 32, 1)

_ACTION_ROUTES = {"adapter": ("adapter", 0.9), "pixel": ("pixel", 0.91), "source": ("source", 1.0)}
_TABLE = re.compile(r"@@(\w+)\|(.*?)@@")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One query: `@@task|options@@` stands for a task table. `check` says how rows are compared."""

    construct: str
    text: str
    check: str = "rows"  # or "ordered", "some": this many rows of the full answer (the text up to LIMIT)
    full: str = ""
    params: Any = None
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    views: Mapping[str, str] = field(default_factory=dict)


class World:
    """The index that the engine reads, and a plain DuckDB that holds every task table in full."""

    def __init__(self, folder: Path) -> None:
        self.snapshot: FixtureSnapshot = build_index(folder / "index.duckdb")
        with duckdb.connect(str(self.snapshot.path)) as con:
            con.execute(
                "UPDATE store.routes SET fidelity = 0.5 WHERE route = 'adapter' AND task = 'labels'"
                " AND video_id = ? AND segment = ?",
                [*POOR],
            )
            con.execute(
                "DELETE FROM store.routes WHERE route IN ('adapter', 'pixel') AND task = 'labels'"
                " AND video_id = ? AND segment = ?",
                [*UNFITTED],
            )
        self.plain = self.snapshot.connect()
        # An oracle must not share the optimiser's mistakes.
        self.plain.execute("SET TimeZone = 'UTC'; PRAGMA disable_optimizer")
        self._known: dict[tuple[str, str], str] = {}

    def close(self) -> None:
        self.plain.close()

    def by_engine(self, text: str, case: Case) -> list[tuple[Any, ...]]:
        sql = _TABLE.sub(lambda m: f"{m[1]}({m[2]})" if m[2] else m[1], text)
        extra = {"tables": case.tables, "views": _engine_views(case.views)}
        given: dict[str, Any] = {name: value for name, value in extra.items() if value}
        result = ask(self.snapshot, sql, CountingOperators(), params=case.params, **given)
        return list(result.fetchall())

    def by_duckdb(self, text: str, case: Case) -> list[tuple[Any, ...]]:
        """The same text on plain tables; views and given tables are DuckDB's own."""
        con = self.plain
        for name, table in case.tables.items():
            con.register(name, table)
        for name, view in case.views.items():
            con.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS {_TABLE.sub(self._plain_name, view)}")
        sql = _TABLE.sub(self._plain_name, text)
        table = con.sql(sql, params=case.params or []).to_arrow_table()
        columns = [column.to_pylist() for column in table.columns]
        return list(zip(*columns, strict=True))

    def _plain_name(self, match: re.Match[str]) -> str:
        key = (match[1], match[2])
        if key not in self._known:
            name = f"plain_{len(self._known)}"
            self.plain.register("loading", full_table(*key))
            self.plain.execute(f"CREATE TEMP TABLE {name} AS FROM loading")
            self.plain.unregister("loading")
            self._known[key] = name
        return self._known[key]


def _engine_views(views: Mapping[str, str]) -> dict[str, str]:
    return {
        name: _TABLE.sub(lambda m: f"{m[1]}({m[2]})" if m[2] else m[1], text) for name, text in views.items()
    }


# ---------------------------------------------------------------- the naive plan


def full_table(task: str, options: str) -> pa.Table:
    """All rows of a task table: every frame that `every` or `stride` keeps, or every clip, of every video."""
    values = dict(re.findall(r"(\w+) := '?([\w.]+)", options))
    kind = KINDS[task]
    top = min(int(values.get("top", 5)), len(LABELS))
    rows = []
    for clip in CLIPS:
        frames, ends = _frames(clip, values), None
        if task in SAMPLING:
            frames = clip_starts(clip, task)
            ends = [clip_end_ts(clip, task, frame) for frame in frames]
        found = answers(kind, VERSIONS[task], clip.video_id, frames, top, end_ts=ends)
        if values.get("stabilize") == "true":
            before = _before(clip, frames)
            found = steady_answers(kind, VERSIONS[task], clip.video_id, frames, before, top, end_ts=ends)
        for row in found.to_pylist():
            frame = row["frame"]
            segment = max(n for n, start in enumerate(clip.starts) if start <= frame)
            route = _route(clip, segment, task, values)
            if route is None:
                assert values.get("on_error") == "skip", f"no route for {task}({options})"
                continue
            ts = clip.ts[frame]
            known = {"video_id": clip.video_id, "segment": segment, "ts": ts, "wall_ts": _wall(clip, ts)}
            rows.append({**row, **known, "route": route[0], "fidelity": route[1]})
    return pa.Table.from_pylist(rows, schema=relation_schema(kind))


def _frames(clip: Clip, values: Mapping[str, str]) -> list[int]:
    if "every" in values:
        exact = [(pts - clip.pts[0]) * clip.time_base for pts in clip.pts]
        return brute_force_sample(exact, Fraction(values["every"]))
    return list(range(0, len(clip.pts), int(values.get("stride", 1))))


def _before(clip: Clip, frames: list[int]) -> list[int]:
    """How many of `frames` lie in the same segment before each."""
    segments = [max(n for n, start in enumerate(clip.starts) if start <= frame) for frame in frames]
    return [segments[:i].count(segment) for i, segment in enumerate(segments)]


def _route(clip: Clip, segment: int, task: str, values: Mapping[str, str]) -> tuple[str, float | None] | None:
    """The route that the fixture's costs and fidelities leave, written out by hand; None: there is none."""
    asked, floor = values.get("route"), values.get("min_fidelity")
    if task == "frames":
        return ("source", None) if asked == "source" and clip.source else ("pixel", None)
    if task == "embed":
        return ("adapter", None)
    if task == "objects":
        return ("pixel", 0.7)
    if task == "actions":
        return _ACTION_ROUTES[asked or "adapter"] if asked != "source" or clip.source else None
    key = (clip.video_id, segment)
    if asked == "source" or key == UNFITTED:
        fits = asked in (None, "source") and clip.source
        return ("source", 1.0) if fits else None
    if asked == "pixel":
        return ("pixel", 0.96)
    if key == POOR:
        return ("adapter", 0.5) if asked == "adapter" or floor == "0.5" else ("pixel", 0.96)
    return ("adapter", 0.8) if floor == "0.5" else ("adapter", 0.95)


def _wall(clip: Clip, ts: float) -> datetime | None:
    if clip.recorded_at is None:
        return None
    return datetime.fromisoformat(clip.recorded_at) + timedelta(microseconds=round(ts * 1e6))
