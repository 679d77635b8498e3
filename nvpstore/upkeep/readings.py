"""Reading what is stored, in pieces, and saying which parts of it are not what was committed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nvpstore.errors import ObjectMissing, StoreError
from nvpstore.storage.checkpoints import Checkpoint
from nvpstore.storage.contract import PIECE_BYTES, ObjectStore
from nvpstore.types import ByteRange, StoredObject
from nvpstore.upkeep.report import Damage

FOOTER = "footer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A range of an object that its manifest or the index describes; `damage` is it, were it damaged."""

    range: ByteRange
    damage: Damage

    @property
    def end(self) -> int:
        return self.range.offset + self.range.size_bytes


def check_object(
    store: ObjectStore,
    obj: StoredObject,
    parts: Sequence[Part],
    about: Damage,
    *,
    read: Callable[[int], None],
) -> list[Damage]:
    """Read all of `obj` from the store, and compare it and its `parts` with their digests.

    `about` names the object in damages. `read` is told how many bytes were done with.
    """
    try:
        found = store.size(obj.key)
        whole, wrong = _digests(store, obj.key, min(found, obj.size_bytes), parts, read)
    except ObjectMissing:
        return [replace(about, found="it is missing" + _of_segments(parts))]
    except StoreError as error:
        return [replace(about, found=f"it cannot be read: {error}")]
    if found == obj.size_bytes and whole == obj.sha256:
        # The bytes are those that were committed: whoever described the part was wrong.
        return [replace(part.damage, found=f"{part.damage.found} that the manifest gives") for part in wrong]
    what = f"SHA-256 {whole[:12]}…; {obj.sha256[:12]}… was committed"
    if found != obj.size_bytes:
        what = f"{found} bytes; {obj.size_bytes} were committed"
    if not wrong:
        where = "none of its row groups is damaged: " if parts else ""
        return [replace(about, found=f"{where}it has {what}")]
    return [replace(part.damage, found=f"{part.damage.found} (the object has {what})") for part in wrong]


def check_checkpoint(store: ObjectStore, checkpoint: Checkpoint) -> Damage | None:
    """Whether a checkpoint's bytes are those that its name says; one deleted meanwhile is no damage."""
    try:
        whole, _ = _digests(store, checkpoint.key, store.size(checkpoint.key), (), lambda _: None)
    except ObjectMissing:
        return None
    except StoreError as error:
        return Damage(object=checkpoint.key, found=f"it cannot be read: {error}")
    if whole == checkpoint.sha256:
        return None
    return Damage(
        object=checkpoint.key,
        found=f"it has SHA-256 {whole[:12]}…, not that of its name; it is derived and may be deleted",
    )


def _digests(
    store: ObjectStore, key: str, size_bytes: int, parts: Sequence[Part], read: Callable[[int], None]
) -> tuple[str, list[Part]]:
    """SHA-256 of the first `size_bytes`, and the parts that differ from theirs or lie beyond."""
    whole = hashlib.sha256()
    own = [hashlib.sha256() for _ in parts]
    for offset in range(0, size_bytes, PIECE_BYTES):
        piece = memoryview(store.get_range(key, offset, min(PIECE_BYTES, size_bytes - offset)))
        whole.update(piece)
        for part, digest in zip(parts, own, strict=True):
            start = max(0, part.range.offset - offset)
            digest.update(piece[start : max(start, part.end - offset)])
        read(len(piece))
    wrong = [
        part
        for part, digest in zip(parts, own, strict=True)
        if part.end > size_bytes or digest.hexdigest() != part.range.sha256
    ]
    return whole.hexdigest(), wrong


def _of_segments(parts: Sequence[Part]) -> str:
    segments = sorted({part.damage.segment for part in parts if part.damage.segment is not None})
    if not segments:
        return ""
    return (
        f" (segment {segments[0]})" if len(segments) == 1 else f" (segments {segments[0]} to {segments[-1]})"
    )
