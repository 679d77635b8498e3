"""What an archive shows to whoever asks it everything, and how that may differ from what it showed before."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

import nvpstore
from nvpstore.archive import Archive
from nvpstore.storage.log import Log

Row = tuple[int, int, str, float]  # frame, rank, label, score

_SCORE_TOLERANCE = 1e-3  # other batches round otherwise
QUESTION = "SELECT video_id, frame, rank, label, score FROM labels(route := 'adapter', top := 2) ORDER BY ALL"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenVideo:
    """One video. `pictures` are the digests of its first and last frame as they are shown."""

    name: str
    tags: Mapping[str, str]
    frames: int
    rows: tuple[Row, ...]
    pictures: tuple[str, str]

    def same_fit(self, other: SeenVideo) -> bool:
        """Whether both were made by one fit: equal pictures and, up to rounding, answers."""
        return self.pictures == other.pictures and same_rows(self.rows, other.rows)

    def same(self, other: SeenVideo) -> bool:
        words = (self.name, dict(self.tags), self.frames) == (other.name, dict(other.tags), other.frames)
        return words and self.same_fit(other)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Everything: videos by id, and what is broken already by being so."""

    videos: Mapping[str, SeenVideo]
    broken: tuple[str, ...]


def look(archive: Archive) -> Seen:
    """Ask for everything of every video. Raises whatever a question raises."""
    broken = [f"verify: {damage}" for damage in archive.verify(deep=False).damages]
    broken += committed_twice(archive.log)
    videos = {}
    rows = _rows_by_video(archive)
    broken += _wrongly_kept(archive, rows)
    for video in archive.videos():
        video_id, frames = video["video_id"], video["frames"]
        own = rows.pop(video_id, ())
        if sorted({row[0] for row in own}) != list(range(frames)):
            broken.append(f"video {video_id} is half visible: {frames} frames, answers for {len(own) // 2}")
        shown = [digest(picture) for batch in archive.frames(video_id) for picture in batch.rgb_thwc]
        if len(shown) != frames:
            broken.append(f"video {video_id} is half visible: {frames} frames, {len(shown)} are shown")
        videos[video_id] = SeenVideo(
            name=video["name"],
            tags=video["tags"],
            frames=frames,
            rows=tuple(own),
            pictures=(shown[0], shown[-1]),
        )
    if rows:
        broken.append(f"answers for videos that are not listed: {sorted(rows)}")
    return Seen(videos=videos, broken=tuple(broken))


def same_rows(some: tuple[Row, ...], others: tuple[Row, ...]) -> bool:
    return len(some) == len(others) and all(
        a[:3] == b[:3] and math.isclose(a[3], b[3], abs_tol=_SCORE_TOLERANCE)
        for a, b in zip(some, others, strict=True)
    )


def committed_twice(log: Log) -> Iterator[str]:
    """Videos that have two first entries without an erasure between them."""
    stored: set[str] = set()
    for entry in log.entries():
        if entry.kind == "erase":
            stored.discard(entry.subject)
        # A refit leaves alone what people said: only a first entry brings a meta object.
        elif entry.kind == "video" and any("/meta/" in obj.key for obj in entry.objects):
            if entry.subject in stored:
                yield f"video {entry.subject} is stored a second time by log entry {entry.number}"
            stored.add(entry.subject)


def digest(picture: NDArray[np.uint8]) -> str:
    return hashlib.sha256(picture.tobytes()).hexdigest()


def _wrongly_kept(archive: Archive, rows: dict[str, list[Row]]) -> Iterator[str]:
    """Where answers are kept, they must be what is answered without them."""
    if archive.store.list("results/"):
        reading = nvpstore.open(archive.store.root, settings=replace(archive.settings, answers="read"))
        for video_id, kept in _rows_by_video(reading).items():
            if not same_rows(tuple(kept), tuple(rows.get(video_id, ()))):
                yield f"the kept answers for video {video_id} are others than those computed now"


def _rows_by_video(archive: Archive) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    if not any(task["name"] == "labels" for task in archive.tasks()):
        return rows
    for video_id, *row in archive.sql(QUESTION).fetchall():
        rows.setdefault(video_id, []).append(tuple(row))
    return rows
