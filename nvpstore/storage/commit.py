"""The last step of all that stores a video: put its files under a fresh attempt, then one log entry."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nvpstore.errors import CommitDropped, StoreError
from nvpstore.storage import keys
from nvpstore.storage.documents import encode_meta, encode_task
from nvpstore.storage.log import Log, LogDraft
from nvpstore.storage.manifest import encode_manifest
from nvpstore.storage.tables import encode_routes
from nvpstore.types import (
    ByteRange,
    SegmentRecord,
    StoredObject,
    TaskRecord,
    TaskRoutes,
    VideoMeta,
    VideoRecord,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The state that a commit is prepared on: log entry `number`.

    `stored` says whether the video is there, `fitted` whether it is more than added; `source` is the original
    that is kept with it, if any. No attempt of that state sorts above `latest_attempt`.
    """

    number: int
    stored: bool
    fitted: bool
    latest_attempt: str
    source: StoredObject | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedVideo:
    """A video that is finished but for its attempt. Keys are those of a provisional attempt.

    `files` holds the weights, latents, audio and kept original by their keys. `meta` is used where the video
    is new: what people said about a stored one stays.
    """

    video: VideoRecord
    routes: tuple[TaskRoutes, ...]
    files: Mapping[str, Path]
    meta: VideoMeta


def commit_video(log: Log, prepared: PreparedVideo, base: Base, *, replaces: bool) -> VideoRecord:
    """Store `prepared`; with `replaces` also in place of what is stored. Returns it as it is stored now.

    A fitted video takes the place of one that is only added, whatever `replaces` says. Raises CommitDropped,
    with its own objects deleted again, where others stored or erased the video since `base`; any other
    failure leaves orphans, for gc, and nothing visible.
    """
    video_id = prepared.video.video_id
    if base.stored and not replaces and (base.fitted or prepared.video.state == "added"):
        raise CommitDropped(f"video {video_id} is stored already: nothing was committed")
    # Only now, however long the fit took: an attempt is what gc measures the age of uploads by.
    attempt = keys.new_attempt(later_than=base.latest_attempt)
    objects: list[StoredObject] = []
    try:
        video = _put(log, prepared, base, attempt, objects)
        log.append(
            LogDraft(
                kind="video", attempt=attempt, subject=video_id, objects=tuple(objects), replaces=base.fitted
            ),
            after=base.number,
        )
    except CommitDropped:
        _discard(log, objects, attempt)
        raise
    return video


def register_task(log: Log, task: TaskRecord, *, weights: Path | None = None) -> None:
    """Make a task version known to the archive, with the file of its `weights` where they are to be kept.

    Two writers who do so at once do no harm. A version that is there already becomes the newest.
    """
    # Their keys hold the content's digest: a racing or killed writer's objects are the same.
    objects = [log.store.put(keys.task_key(task.name, task.version), encode_task(task))]
    if weights is not None:
        objects.append(log.store.put_file(keys.task_weights_key(task.name, task.version), weights))
    # Only now, however long the upload took: an attempt that is too old is not committed.
    log.append(LogDraft(kind="task", attempt=keys.new_attempt(), subject=task.name, objects=tuple(objects)))


def commit_stabilizer(log: Log, *, name: str, version: str, data: bytes, later_than: str) -> StoredObject:
    """Put a stabilizer (a safetensors file) in the place of the one of that name and version, if any.

    Of two that are stored at once the later entry's answers. Raises CommitDropped, with its own object
    deleted again.
    """
    attempt = keys.new_attempt(later_than=later_than)
    stored = log.store.put(keys.stabilizer_key(name, version, attempt), data)
    try:
        log.append(LogDraft(kind="stabilizer", attempt=attempt, subject=name, objects=(stored,)))
    except CommitDropped:
        _discard(log, [stored], attempt)
        raise
    return stored


def commit_routes(log: Log, routes: TaskRoutes, base: Base) -> StoredObject:
    """Put `routes` in the place of those of the same task version, if there are any.

    Raises CommitDropped, with its own object deleted again, where the video was fitted anew or erased, or got
    others of that version, since `base`.
    """
    attempt = keys.new_attempt(later_than=base.latest_attempt)
    key = keys.routes_key(routes.video_id, routes.version, attempt)
    stored = log.store.put(key, encode_routes(key, replace(routes, attempt=attempt)).data)
    draft = LogDraft(kind="routes", attempt=attempt, subject=routes.video_id, objects=(stored,))
    try:
        log.append(draft, after=base.number)
    except CommitDropped:
        _discard(log, [stored], attempt)
        raise
    return stored


def rekeyed(video: VideoRecord, attempt: str) -> VideoRecord:
    """The same video with all its objects under `attempt`."""

    def moved(key: str) -> str:
        return moved_key(key, attempt)

    audio, uri = video.audio, video.source_uri
    return replace(
        video,
        attempt=attempt,
        source_uri=moved(uri) if uri and _is_kept(uri) else uri,
        segments=tuple(_moved_segment(segment, attempt) for segment in video.segments),
        footers={moved(key): footer for key, footer in video.footers.items()},
        audio=replace(audio, key=moved(audio.key)) if audio else None,
    )


def moved_key(key: str, attempt: str) -> str:
    """`key` with `attempt` in the place of its own attempt."""
    return key.replace(keys.parse_key(key).attempt, attempt)


def _put(
    log: Log, prepared: PreparedVideo, base: Base, attempt: str, objects: list[StoredObject]
) -> VideoRecord:
    store, video = log.store, rekeyed(prepared.video, attempt)
    for key, path in prepared.files.items():
        if _is_kept(key) and base.source is not None:
            # The same bytes, by the video's id: kept once, whatever is fitted anew.
            objects.append(base.source)
            video = replace(video, source_uri=base.source.key)
        else:
            objects.append(store.put_file(moved_key(key, attempt), path))
            if _is_kept(key) and objects[-1].sha256 != video.sha256:
                raise CommitDropped(f"{path} changed while it was read: nothing was committed")
    for routes in prepared.routes:
        key = keys.routes_key(video.video_id, routes.version, attempt)
        objects.append(store.put(key, encode_routes(key, replace(routes, attempt=attempt)).data))
    if not base.stored:
        objects.append(store.put(keys.meta_key(video.video_id, attempt), encode_meta(prepared.meta)))
    objects.append(store.put(keys.manifest_key(video.video_id, attempt), encode_manifest(video)))
    return video


def _discard(log: Log, objects: list[StoredObject], attempt: str) -> None:
    # Best effort: what stays is an orphan. But after an erasure nothing of the video should stay.
    own = [obj.key for obj in objects if attempt in obj.key]
    with contextlib.suppress(StoreError):
        log.store.delete_all(own)


def _is_kept(uri: str) -> bool:
    return uri.startswith(keys.SOURCES_PREFIX)


def _moved_segment(segment: SegmentRecord, attempt: str) -> SegmentRecord:
    def moved(part: ByteRange) -> ByteRange:
        return replace(part, key=moved_key(part.key, attempt))

    return replace(
        segment,
        stages=tuple((stage, moved(part)) for stage, part in segment.stages),
        latents=moved(segment.latents) if segment.latents else None,
    )
