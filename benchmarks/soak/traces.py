"""Everything by which a stored video could be recognised, and a search for it in every file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nvpstore.archive import Archive
from nvpstore.types import ByteRange

_SAMPLE_BYTES = 48
_SAMPLES_EACH = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """`words` that people wrote, `digests` of its objects and row groups, `samples` of their bytes."""

    words: tuple[bytes, ...]
    digests: frozenset[str]
    samples: tuple[bytes, ...]

    def found_in(self, where: str, data: bytes) -> Iterator[str]:
        if hashlib.sha256(data).hexdigest() in self.digests:
            yield f"{where} is an object or row group of the erased video"
        for word in self.words:
            if word in data or word in where.encode():
                yield f"{where} says {word.decode()!r}"
        if any(sample in data for sample in self.samples):
            yield f"{where} holds bytes of the erased video"


def traces_of(archive: Archive, video_id: str, words: Iterable[str]) -> Traces:
    """Of a video that is stored now."""
    snapshot = archive.catalog.snapshot()
    objects = snapshot.objects(video_id)
    ranges: list[ByteRange] = []
    for segment in snapshot.segments(video_id):
        ranges += [segment.latents, *(part for _, part in segment.stages)]
    samples = []
    for part in ranges:
        data = archive.store.get_range(part.key, part.offset, part.size_bytes)
        step = max(1, len(data) // (_SAMPLES_EACH + 1))
        samples += [data[at : at + _SAMPLE_BYTES] for at in range(step, len(data) - _SAMPLE_BYTES, step)]
    # Headers of row groups are alike in all videos, and some weights hardly leave their common start.
    others = [archive.store.get(obj.key) for obj in snapshot.objects() if video_id not in obj.key]
    return Traces(
        words=tuple(word.encode() for word in words),
        digests=frozenset([obj.sha256 for obj in objects] + [part.sha256 for part in ranges]),
        samples=tuple(sample for sample in samples if not any(sample in data for data in others)),
    )


def search(traces: Traces, archive: Archive, folders: Iterable[Path]) -> list[str]:
    """All places under the archive's root, and in `folders`, that still tell of the video."""
    found: list[str] = []
    for key in archive.store.list(""):
        found += traces.found_in(key, archive.store.get(key))
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                found += traces.found_in(str(path), path.read_bytes())
    return found
