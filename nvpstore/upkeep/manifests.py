"""What manifests and the index say about the parts of other objects, and whether that can be true."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

from nvpstore.catalog import Snapshot
from nvpstore.errors import StoreError
from nvpstore.storage.keys import ParsedKey
from nvpstore.types import ByteRange, StoredObject, VideoRecord
from nvpstore.upkeep.readings import Part
from nvpstore.upkeep.report import Damage


def manifest_parts(record: VideoRecord, sizes: Mapping[str, int], about: Damage) -> dict[str, list[Part]]:
    """The row groups and footers of a video's weights and latents objects, by key.

    `sizes` are the objects' sizes as the log gives them; `about` names the video in damages.
    """
    parts: dict[str, list[Part]] = {}
    for segment in record.segments:
        for stage, found in segment.parts:
            damage = replace(about, segment=segment.segment, stage=stage)
            parts.setdefault(found.key, []).append(_part(found, damage))
    for key, footer in record.footers.items():
        if key in sizes:
            parts.setdefault(key, []).append(_footer_part(key, sizes[key], footer, about))
    return parts


def indexed_parts(snapshot: Snapshot, obj: StoredObject, routes: ParsedKey, about: Damage) -> list[Part]:
    """Row groups and footer of a routes object, by route. Raises StoreError where they are unknown."""
    parts = [_footer_part(obj.key, obj.size_bytes, snapshot.footer(obj.key), about)]
    task = next((task.name for task in snapshot.tasks() if task.version == routes.version), "")
    for found in snapshot.routes(routes.video_id, routes.version):
        if found.row_group is not None and found.row_group.key == obj.key:
            route = f"{task} {found.route.route} {'+'.join(found.route.stages)} to {found.route.cut}".strip()
            damage = replace(about, segment=found.route.segment, route=route)
            parts.append(_part(found.row_group, damage))
    if len(parts) == 1:
        raise StoreError(f"{obj.key} is not in the index")
    return parts


def misfits(
    record: VideoRecord, manifest: ParsedKey, objects: Mapping[str, StoredObject], about: Damage
) -> Iterator[Damage]:
    """Where a readable manifest contradicts its own name or the objects that the log names."""
    if (record.video_id, record.attempt) != (manifest.video_id, manifest.attempt):
        yield replace(about, found=f"it is the manifest of {record.video_id}, attempt {record.attempt}")
    named = {found.key for segment in record.segments for _, found in segment.parts}
    for key in sorted(named - objects.keys()):
        yield replace(about, found=f"it refers to {key}, which no log entry names")
    for key in sorted(named - record.footers.keys()):
        yield replace(about, found=f"it has no footer of {key}")
    if record.audio is not None and objects.get(record.audio.key) != record.audio:
        yield replace(about, found=f"what it says of {record.audio.key} differs from the log")
    if [segment.segment for segment in record.segments] != list(range(len(record.segments))):
        yield replace(about, found="its segments are not numbered from 0 on")


def _part(found: ByteRange, about: Damage) -> Part:
    what = f"its row group at offset {found.offset} differs from the digest"
    return Part(range=found, damage=replace(about, object=found.key, found=what))


def _footer_part(key: str, size_bytes: int, footer: bytes, about: Damage) -> Part:
    end = ByteRange(
        key=key,
        offset=max(0, size_bytes - len(footer)),
        size_bytes=len(footer),
        sha256=hashlib.sha256(footer).hexdigest(),
    )
    return Part(range=end, damage=replace(about, object=key, found="its footer differs from the one"))
