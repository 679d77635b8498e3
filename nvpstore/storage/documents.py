"""The small JSON objects: tasks, views, what people say about a video. And canonical JSON, for digests."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any, get_args

from nvpstore.errors import ArchiveError, IntegrityError
from nvpstore.types import SavedView, TaskKind, TaskRecord, VideoMeta

FORMAT_VERSION = 1


def canonical_json(value: object) -> bytes:
    """One spelling a value: sorted keys, no spaces, UTF-8. Raises ValueError for NaN and infinities."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def canonical_digest(value: object) -> str:
    """SHA-256 of the canonical JSON, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def check_format(found: object, *, what: str) -> None:
    """Raises ArchiveError unless this release reads format version `found`: its own and all before it."""
    if not isinstance(found, int) or not 1 <= found <= FORMAT_VERSION:
        raise ArchiveError(
            f"{what} has format version {found}; "
            f"this release of nvpstore reads versions up to {FORMAT_VERSION}"
        )


def load_document(data: bytes, *, what: str) -> dict[str, Any]:
    """A JSON object of a known format. Raises IntegrityError or ArchiveError, naming `what`."""
    document = parse_document(data, what=what)
    check_format(document.get("format"), what=what)
    return document


def parse_document(data: bytes, *, what: str) -> dict[str, Any]:
    """A JSON object of whatever format. Raises IntegrityError, naming `what`."""
    try:
        document = json.loads(data)
    except ValueError:
        raise IntegrityError(f"{what} is not JSON") from None
    if not isinstance(document, dict):
        raise IntegrityError(f"{what} is not a JSON object")
    return document


def encode_task(task: TaskRecord) -> bytes:
    return canonical_json(
        {
            "format": FORMAT_VERSION,
            "name": task.name,
            "version": task.version,
            "kind": task.kind,
            "cuts": task.cuts,
            "labels": list(task.labels),
            "spec": task.spec,
        }
    )


def decode_task(data: bytes) -> TaskRecord:
    """Raises ArchiveError for an unknown format or kind of task, IntegrityError for anything malformed."""
    document = load_document(data, what="a task")
    try:
        if document["kind"] not in get_args(TaskKind):
            raise ArchiveError(
                f"task {document['name']} is of kind {document['kind']!r}; "
                f"this release of nvpstore knows {', '.join(get_args(TaskKind))}"
            )
        return TaskRecord(
            name=str(document["name"]),
            version=str(document["version"]),
            kind=document["kind"],
            cuts=int(document["cuts"]),
            labels=tuple(document["labels"]),
            spec=str(document["spec"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"a task is malformed: {error!r}") from error


def encode_view(view: SavedView) -> bytes:
    return canonical_json(
        {
            "format": FORMAT_VERSION,
            "name": view.name,
            "sql": view.sql,
            "saved_at": view.saved_at.astimezone(UTC).isoformat(),
        }
    )


def decode_view(data: bytes) -> SavedView:
    """Raises ArchiveError for an unknown format, IntegrityError for anything malformed."""
    document = load_document(data, what="a saved view")
    try:
        return SavedView(
            name=str(document["name"]),
            sql=str(document["sql"]),
            saved_at=datetime.fromisoformat(document["saved_at"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"a saved view is malformed: {error!r}") from error


def encode_meta(meta: VideoMeta) -> bytes:
    recorded = meta.recorded_at.astimezone(UTC).isoformat() if meta.recorded_at else None
    return canonical_json(
        {
            "format": FORMAT_VERSION,
            "video_id": meta.video_id,
            "name": meta.name,
            "tags": dict(meta.tags),
            "recorded_at": recorded,
            "hold": meta.hold,
        }
    )


def decode_meta(data: bytes) -> VideoMeta:
    """Raises ArchiveError for an unknown format, IntegrityError for anything malformed."""
    document = load_document(data, what="a video's metadata")
    try:
        recorded = document["recorded_at"]
        return VideoMeta(
            video_id=str(document["video_id"]),
            name=str(document["name"]),
            tags={str(key): str(value) for key, value in document["tags"].items()},
            recorded_at=datetime.fromisoformat(recorded) if recorded else None,
            hold=bool(document["hold"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"a video's metadata is malformed: {error!r}") from error
