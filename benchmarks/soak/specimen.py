"""A small archive with everything in it that an archive can hold, and all that it answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.soak import clips
from benchmarks.soak.look import digest
from nvpstore.archive import Archive
from nvpstore.storage import keys
from nvpstore.storage.keys import LOG_PREFIX

GRACE_SECONDS = 6
_VIEWS = ("videos", "segments", "tasks", "routes")
_QUESTION = "SELECT * FROM labels(route := 'adapter', top := 2) WHERE frame < 2 ORDER BY ALL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Bytes [start, end) of an object."""

    key: str
    start: int
    end: int


def build(folder: Path) -> Archive:
    """Two videos, one fitted anew, one with its original; one erased; tags, kept answers, gc, checkpoint."""
    kept, copied, erased = clips.write_clips(folder / "clips", 3, frames=4)
    root, cache = str(folder / "archive"), folder / "cache"
    archive = clips.create(root, cache, grace_seconds=GRACE_SECONDS)
    store = _storing(archive)
    video_id = store(kept)
    store(copied, keep_source="copy", tags={"camera": "gate"})
    archive.erase(store(erased))
    archive.tag(video_id, tags={"camera": "yard"})
    time.sleep(GRACE_SECONDS + 1)
    archive.gc()
    store(kept, refit=True)
    clips.opened(root, cache, answers="on").sql(_QUESTION).fetchall()
    archive.catalog.checkpoint(force=True)
    archive.tag(video_id, tags={"camera": "roof"})
    return archive


def places(archive: Archive) -> Mapping[str, list[Place]]:
    """All bytes of the archive by what they are."""
    found: dict[str, list[Place]] = {}
    groups = _row_groups(archive)
    in_force = {obj.key for obj in archive.catalog.snapshot().objects()}
    for key in archive.store.list(""):
        size, kind = archive.store.size(key), keys.parse_key(key).kind
        if not key.startswith(LOG_PREFIX) and key not in in_force:
            kind_places = {"superseded": [Place(key=key, start=0, end=size)]}
        elif key in groups:
            kind_places = {
                f"{kind} payload": [Place(key=key, start=a, end=b) for a, b in groups[key]],
                f"{kind} footer": [Place(key=key, start=max(b for _, b in groups[key]), end=size)],
            }
        else:
            kind_places = {str(kind): [Place(key=key, start=0, end=size)]}
        for stratum, some in kind_places.items():
            found.setdefault(stratum, []).extend(some)
    return found


def answers(archive: Archive) -> tuple[Any, ...]:
    """What it answers to everything, and every frame that it shows."""
    snapshot = archive.catalog.snapshot()
    with snapshot.noticing_damage(), snapshot.connect() as connection:
        rows = [repr(connection.sql(f"FROM {view} ORDER BY ALL").fetchall()) for view in _VIEWS]
    return (*rows, repr(archive.sql(_QUESTION).fetchall()), *shown(archive))


def shown(archive: Archive) -> Iterator[str]:
    """The digest of every frame of every video."""
    for video in sorted(archive.videos(), key=lambda row: str(row["video_id"])):
        for batch in archive.frames(video["video_id"]):
            yield from (digest(picture) for picture in batch.rgb_thwc)


def _storing(archive: Archive) -> Callable[..., str]:
    def store(clip: Path, **options: Any) -> str:
        return archive.ingest(clip, preset="micro", device="cpu", **options).video_id

    return store


def _row_groups(archive: Archive) -> dict[str, list[tuple[int, int]]]:
    """The row groups of all weights, latents and routes in force."""
    snapshot = archive.catalog.snapshot()
    found: dict[str, list[tuple[int, int]]] = {}
    for video in archive.videos():
        parts = [route.row_group for route in _routes(archive, video["video_id"])]
        for segment in snapshot.segments(video["video_id"]):
            parts += [segment.latents, *(part for _, part in segment.stages)]
        for part in parts:
            if part is not None:
                found.setdefault(part.key, []).append((part.offset, part.offset + part.size_bytes))
    return found


def _routes(archive: Archive, video_id: str) -> list[Any]:
    snapshot = archive.catalog.snapshot()
    versions = {keys.parse_key(obj.key).version for obj in snapshot.objects(video_id)} - {""}
    return [route for version in sorted(versions) for route in snapshot.routes(video_id, version)]
