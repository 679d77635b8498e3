"""How much of a video a query touches: counted while it runs, on drawn networks of the smallest preset."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.drawn import Shape, draw_archive
from benchmarks.query.counting import Session, settings_in
from benchmarks.query.outcome import Line

TASK = {"labels": ("1", "blocks.14")}
FRAMES = 25  # a segment: a second
RANGE_SEGMENTS, LIMIT_SEGMENTS = 60, 1000
RANGE_SQL = "SELECT ts, label, score FROM labels WHERE ts BETWEEN 10 AND 11"
LIMIT_SQL = "SELECT ts, label, score FROM labels LIMIT 5"
MOST_OF_RANGE, MOST_OF_LIMIT = 2, 0.02


def measure(repeats: int) -> dict[str, Any]:
    """Counts do not vary: one run each."""
    return {
        "between": touched_by(RANGE_SQL, RANGE_SEGMENTS),
        "limit": touched_by(LIMIT_SQL, LIMIT_SEGMENTS),
    }


def touched_by(sql: str, segments: int) -> dict[str, Any]:
    """What `sql` touches of a video of `segments`. Of `begun` ones bytes were asked for, ahead of use too."""
    shape = Shape(
        preset="micro", height=96, width=144, segments=segments, frames=FRAMES, tasks=TASK, one_decoder=True
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "archive"
        video_id = draw_archive(str(root), shape)
        session = Session(root, settings_in(Path(folder) / "cache"))
        stored = stored_bytes(session, video_id)
        asked, counted = session.ask(sql), session.operators
        return {
            "sql": sql,
            "segments": segments,
            "frames": segments * FRAMES,
            "rows": asked.rows.num_rows,
            "begun_segments": len(counted.begun),
            "fetched_segments": len(counted.fetched),
            "decoded_segments": len({segment for segment, _ in counted.decoded}),
            "decoded_frames": counted.decodes,
            "read_bytes": session.store.read_bytes,
            "stored_bytes": stored,
        }


def stored_bytes(session: Session, video_id: str) -> int:
    """Of the video's weights and latents."""
    segments = session.catalog.snapshot().segments(video_id)
    stages = [group for segment in segments for _, group in segment.stages]
    return sum(at.size_bytes for at in [*stages, *(s.latents for s in segments)] if at is not None)


def lines(result: Mapping[str, Any]) -> list[Line]:
    between, limit = result["between"], result["limit"]
    most = int(MOST_OF_LIMIT * limit["segments"])
    return [
        _line("ts BETWEEN 10 AND 11", between, "1–2 segments", MOST_OF_RANGE),
        _line("LIMIT 5", limit, f"at most {most} segments", most),
    ]


def _line(what: str, row: Mapping[str, Any], target: str, most: int) -> Line:
    found = (
        f"{row['begun_segments']} of {row['segments']} segments asked for, {row['decoded_segments']} decoded,"
        f" {row['decoded_frames']} frames, {row['read_bytes'] / row['stored_bytes']:.2%} of the bytes"
    )
    return Line(part="touched", what=what, found=found, target=target, met=row["begun_segments"] <= most)
