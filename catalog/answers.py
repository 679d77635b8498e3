"""What an index says of stored answers: which frames they cover, and where their rows are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from nvpstore.catalog.rows import Row, byte_range
from nvpstore.catalog.snapshot import Snapshot
from nvpstore.storage.keys import attempt_time, parse_key
from nvpstore.storage.results import Intervals
from nvpstore.types import ByteRange


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedAnswers:
    """A part of a results object in force: which frames it covers and where its rows are.

    `result` and `route` are digests of what the rows depend on. `key` is the object's; `row_group` is None
    where the frames have no rows.
    """

    video_id: str
    result: str
    segment: int
    route: str
    covered: Intervals
    rows: int
    key: str
    row_group: ByteRange | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResult:
    """A results object in force, for people. It covers `frames` frames; 0 where its footer is damaged."""

    task: str
    version: str
    video_id: str
    name: str
    result: str
    frames: int
    rows: int
    bytes: int
    stored_at: datetime
    key: str


def stored_answers(snapshot: Snapshot, version: str, video_ids: Sequence[str]) -> list[IndexedAnswers]:
    """All answers of a task version that are stored on these videos, by video and segment."""
    found = snapshot.ask(
        "FROM idx.store.results SEMI JOIN (SELECT unnest($ids::VARCHAR[]) AS video_id) USING (video_id) "
        "WHERE version = $version ORDER BY video_id, segment, key",
        {"version": version, "ids": list(video_ids)},
    )
    return [_answers(row) for row in found]


def has_answers(snapshot: Snapshot, version: str) -> bool:
    """Whether any answers of a task version are stored."""
    asked = "SELECT 1 FROM idx.store.results WHERE version = $version LIMIT 1"
    return bool(snapshot.ask(asked, {"version": version}))


def stored_results(
    snapshot: Snapshot, *, video_id: str | None = None, task: str | None = None
) -> list[StoredResult]:
    """Results objects in force, of one video or task (its name, or a version of it) or all, oldest first."""
    found = snapshot.ask(
        """
        SELECT o.key, o.size_bytes, coalesce(v.name, '') AS name, coalesce(t.name, '') AS task,
               coalesce(r.frames, 0)::BIGINT AS frames, coalesce(r.n, 0)::BIGINT AS n
        FROM (SELECT *, split_part(key, '/', 3) AS version FROM idx.store.objects
              WHERE replaced_at IS NULL AND starts_with(key, 'results/')) o
        LEFT JOIN idx.store.videos v ON v.video_id = o.owner
        LEFT JOIN (SELECT DISTINCT name, version FROM idx.store.tasks) t USING (version)
        LEFT JOIN (SELECT key, sum(frames) AS frames, sum("rows") AS n FROM idx.store.results GROUP BY key) r
               ON r.key = o.key
        WHERE ($video IS NULL OR o.owner = $video) AND ($task IS NULL OR $task IN (t.name, version))
        ORDER BY parse_filename(o.key), o.key
        """,
        {"video": video_id, "task": task},
    )
    return [_stored_result(row) for row in found]


def _answers(row: Row) -> IndexedAnswers:
    starts, stops = (np.array(row[name], dtype=np.int64) for name in ("starts", "stops"))
    return IndexedAnswers(
        video_id=row["video_id"],
        result=row["result"],
        segment=row["segment"],
        route=row["route"],
        covered=Intervals(starts=starts, stops=stops),
        rows=row["rows"],
        key=row["key"],
        row_group=byte_range(row) if row["rows"] else None,
    )


def _stored_result(row: Row) -> StoredResult:
    parsed = parse_key(row["key"])
    return StoredResult(
        task=row["task"],
        version=parsed.version,
        video_id=parsed.video_id,
        name=row["name"],
        result=parsed.result,
        frames=row["frames"],
        rows=row["n"],
        bytes=row["size_bytes"],
        stored_at=attempt_time(parsed.attempt),
        key=row["key"],
    )
