"""JSON objects: what goes in comes out; what is malformed or newer is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from nvpstore.errors import ArchiveError, IntegrityError
from nvpstore.storage.documents import (
    canonical_json,
    decode_meta,
    decode_task,
    decode_view,
    encode_meta,
    encode_task,
    encode_view,
)
from nvpstore.types import SavedView, TaskRecord, VideoMeta

TASK = TaskRecord(
    name="labels", version="a" * 64, kind="classification", cuts=2, labels=("ü", "b"), spec="{}"
)
META = VideoMeta(video_id="a" * 32, name='gate "1"', tags={"camera": "gäte"}, hold=True)
VIEW = SavedView(
    name="night", sql="SELECT 'ü'\nFROM videos", saved_at=datetime(2026, 5, 1, 12, 30, tzinfo=UTC)
)


def test_tasks_views_and_metadata_come_back() -> None:
    assert decode_view(encode_view(VIEW)) == VIEW
    assert decode_task(encode_task(TASK)) == TASK
    assert decode_meta(encode_meta(META)) == META


def test_a_recording_time_keeps_its_moment() -> None:
    there = datetime(2026, 5, 1, 14, 30, tzinfo=timezone(timedelta(hours=2)))
    meta = VideoMeta(video_id="a" * 32, name="x", recorded_at=there)
    assert decode_meta(encode_meta(meta)).recorded_at == datetime(2026, 5, 1, 12, 30, tzinfo=UTC)


def test_canonical_json_has_one_spelling() -> None:
    assert canonical_json({"b": [1, 0.5], "a": "ü"}) == '{"a":"ü","b":[1,0.5]}'.encode()
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b'{"format":1}', b'{"format":1,"kind":[]}'])
def test_malformed_documents_are_integrity_errors(data: bytes) -> None:
    for decode in (decode_task, decode_view, decode_meta):
        with pytest.raises((IntegrityError, ArchiveError)):
            decode(data)


def test_newer_formats_and_kinds_are_archive_errors() -> None:
    with pytest.raises(ArchiveError, match="version 2; this release of nvpstore reads versions up to 1"):
        decode_meta(encode_meta(META).replace(b'"format":1', b'"format":2'))
    with pytest.raises(ArchiveError, match="of kind 'smell'"):
        decode_task(encode_task(TASK).replace(b"classification", b"smell"))
