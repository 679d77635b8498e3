"""What people say about a stored video: name, tags, when it was recorded, whether it is on hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from nvpstore.catalog import Catalog, Snapshot
from nvpstore.errors import CommitDropped, UsageError
from nvpstore.storage import keys
from nvpstore.storage.documents import encode_meta
from nvpstore.storage.log import LogDraft
from nvpstore.types import VideoMeta

EARLIEST_YEAR, LATEST_YEAR = 2, 9998  # of a recording, so that its end and other zones have a date
_TRIES = 20  # others' changes of one video between our reading and our writing


def change_meta(
    catalog: Catalog,
    ref: str,
    *,
    tags: Mapping[str, str] | None = None,
    remove: Sequence[str] = (),
    name: str | None = None,
    recorded_at: datetime | None = None,
    hold: bool | None = None,
) -> VideoMeta:
    """Change what is given, keep the rest, and return all of it. Nothing is written where nothing changes.

    Raises UsageError for an unknown video, a tag to remove that is not there, or a time without zone or of
    no year that `in_utc` allows.
    """
    recorded_at = recorded_at and in_utc(recorded_at)
    for _ in range(_TRIES):
        snapshot = catalog.snapshot()
        before = snapshot.meta(snapshot.find_video(ref))
        if unknown := [key for key in remove if key not in before.tags]:
            known = ", ".join(sorted(before.tags)) or "none"
            raise UsageError(f"{before.name} has no tag {', '.join(unknown)}: its tags are {known}")
        kept = {key: value for key, value in before.tags.items() if key not in remove}
        after = replace(
            before,
            name=name or before.name,
            tags={**kept, **(tags or {})},
            recorded_at=recorded_at or before.recorded_at,
            hold=before.hold if hold is None else hold,
        )
        if after == before:
            return before
        with suppress(CommitDropped):  # somebody else said something: read it, then say ours again
            _commit(catalog, snapshot, after)
            return after
    raise CommitDropped(f"video {ref}: others changed it {_TRIES} times meanwhile; try again later")


def in_utc(recorded_at: datetime) -> datetime:
    """When a video was recorded. Raises UsageError without a time zone, and at the calendar's ends, where
    other zones and the video's own end have no date.
    """
    if recorded_at.tzinfo is None:
        raise UsageError(f"recorded_at {recorded_at.isoformat()}: a time zone is needed, as in …+00:00")
    if not EARLIEST_YEAR <= recorded_at.year <= LATEST_YEAR:
        raise UsageError(
            f"recorded_at {recorded_at.isoformat()}: a year from {EARLIEST_YEAR} to {LATEST_YEAR} is needed"
        )
    return recorded_at.astimezone(UTC)


def _commit(catalog: Catalog, snapshot: Snapshot, meta: VideoMeta) -> None:
    log = catalog.log
    attempt = keys.new_attempt(later_than=snapshot.latest_attempt)
    stored = log.store.put(keys.meta_key(meta.video_id, attempt), encode_meta(meta))
    draft = LogDraft(kind="meta", attempt=attempt, subject=meta.video_id, objects=(stored,))
    try:
        log.append(draft, after=snapshot.number)
    except CommitDropped:
        log.store.delete(stored.key)  # it may be of a video that was erased meanwhile
        raise
