"""Erasing a video: one log entry, then everything that it left. Afterwards only its id remains."""

from __future__ import annotations

from nvpstore.errors import UsageError
from nvpstore.storage import keys
from nvpstore.storage.log import Log, LogDraft
from nvpstore.storage.objects import ObjectStore


def erase(log: Log, video_id: str, *, number: int, latest_attempt: str) -> tuple[int, int]:
    """Erase a video as of log entry `number`. Returns the erasure's number and how many objects went.

    `latest_attempt`: none committed up to `number` sorts above it. Killed after its entry, the same call
    again deletes what is left; a writer that is still putting objects for the video cannot commit them, and
    deletes its own. Raises CommitDropped if the video's hold or tags were changed meanwhile.
    """
    attempt = keys.new_attempt(later_than=max([latest_attempt, *_attempts(log.store, video_id)]))
    entry = log.append(LogDraft(kind="erase", attempt=attempt, subject=video_id), after=number)
    return entry.number, sweep(log.store, video_id, before=attempt)


def leftovers(store: ObjectStore, video_id: str) -> list[str]:
    """All objects that are listed under a video, whether any entry names them or not."""
    return [key for prefix in keys.video_prefixes(video_id) for key in store.list(prefix)]


def sweep(store: ObjectStore, video_id: str, *, before: str) -> int:
    """Delete the video's objects of attempts that sort below `before`. Returns how many there were."""
    # Attempts begun after the erasure belong to somebody who stores the video again.
    doomed = [key for key in leftovers(store, video_id) if _attempt(key) < before]
    store.delete_all(doomed)
    for prefix in keys.video_prefixes(video_id):
        store.sweep_unfinished(prefix, before=keys.attempt_time(before))
    return len(doomed)


def _attempts(store: ObjectStore, video_id: str) -> list[str]:
    return [_attempt(key) for key in leftovers(store, video_id)]


def _attempt(key: str) -> str:
    try:
        return keys.parse_key(key).attempt
    except UsageError:  # under the video's own folder, so it goes with it
        return ""
