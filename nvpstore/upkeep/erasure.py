"""Erasing a stored video, everywhere that this machine can reach."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from nvpstore.catalog import Catalog, Snapshot
from nvpstore.errors import CommitDropped, OnHold
from nvpstore.storage import keys
from nvpstore.storage.erase import erase, leftovers
from nvpstore.upkeep.renewal import renew_checkpoints

_TRIES = 20  # others' changes of one video between our reading and our writing


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What an erasure did: `number` is its log entry, `objects` how many objects went."""

    video_id: str
    number: int
    objects: int


def erase_video(catalog: Catalog, ref: str) -> Erasure:
    """Erase a video: its objects, name, tags and what this machine keeps of it. Only its id remains.

    The id of an erased video again deletes what killed writers left of it since. Raises NotFound for an
    unknown video, OnHold for one on hold.
    """
    for _ in range(_TRIES):
        snapshot = catalog.snapshot()
        video_id = _erasable(catalog, snapshot, ref)
        with suppress(CommitDropped):  # its hold or tags were changed: look again
            number, objects = erase(
                catalog.log, video_id, number=snapshot.number, latest_attempt=snapshot.latest_attempt
            )
            renew_checkpoints(catalog)
            catalog.forget(video_id, number=number)
            return Erasure(video_id=video_id, number=number, objects=objects)
    raise CommitDropped(f"video {ref}: others changed it {_TRIES} times meanwhile; try again later")


def _erasable(catalog: Catalog, snapshot: Snapshot, ref: str) -> str:
    gone = keys.is_video_id(ref) and not snapshot.has_video(ref)
    if gone and (ref in snapshot.erased() or leftovers(catalog.log.store, ref)):
        return ref
    video = snapshot.video(snapshot.find_video(ref))
    if video.hold:
        raise OnHold(f"{video.name} ({video.video_id}) is on hold: it cannot be erased before that ends")
    return video.video_id
