"""Pages of many videos against all of them, sorted in Python."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nvpstore.api.service.listing import Wanted, _time, page_of_videos
from nvpstore.api.service.problems import Refused
from nvpstore.catalog import Catalog, Snapshot
from nvpstore.storage.objects import open_store
from tests.catalog.conftest import SmallArchive

# Some names come several times, and some would end a text in SQL.
NAMES = ("gate", "Gate", "gate", "Tür", "a'b", 'a"b', "a%b", "a_b", "\\", "日本", "z" * 255, "gate", "$name")

ALL = Wanted()


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("many")
    archive = SmallArchive(open_store(str(folder / "archive")))
    for number, name in enumerate(NAMES):
        video = archive.add_video(f"source {number}", segments=1, name=name)
        if number % 2:
            tags = {"camera": "gate" if number % 4 == 1 else "yard", "a:b": "c:d", "'; --": "x"}
            archive.add_meta(video.video_id, name=name, tags=tags)
    return Catalog(archive.store, folder / "cache").snapshot()


def listed(snapshot: Snapshot, wanted: Wanted = ALL, *, limit: int = 1000) -> list[dict[str, Any]]:
    """All pages, one after another."""
    rows: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = page_of_videos(snapshot, wanted, cursor=cursor, limit=limit)
        assert len(page.videos) <= limit
        rows += [video.model_dump() for video in page.videos]
        cursor = page.next
        if cursor is None:
            return rows


def all_rows(snapshot: Snapshot) -> list[dict[str, Any]]:
    """What the view holds, by name and id."""
    with snapshot.connect() as con:
        rows = con.sql("SELECT * FROM videos").to_arrow_table().to_pylist(maps_as_pydicts="strict")
    return sorted(rows, key=lambda row: (row["name"].encode(), row["video_id"]))


@pytest.mark.parametrize("limit", [1, 2, 3, 5, len(NAMES), 1000])
def test_pages_hold_every_video_once_in_order(snapshot: Snapshot, limit: int) -> None:
    rows = listed(snapshot, limit=limit)
    expected = all_rows(snapshot)
    assert [row["video_id"] for row in rows] == [row["video_id"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row == {name: None if value != value else value for name, value in other.items()}


@pytest.mark.parametrize(
    "text", ["gate", "GATE", "ü", "'", '"', "%", "_", "\\", "$name", "' OR true --", "本", "no"]
)
def test_a_name_is_found_by_any_part_of_it(snapshot: Snapshot, text: str) -> None:
    expected = [row["video_id"] for row in all_rows(snapshot) if text.lower() in row["name"].lower()]
    assert [row["video_id"] for row in listed(snapshot, Wanted(name=text), limit=2)] == expected


@pytest.mark.parametrize(
    "tags",
    [
        {"camera": "gate"},
        {"camera": "yard"},
        {"camera": "gate", "a:b": "c:d"},
        {"camera": "gate", "'; --": "y"},
        {"'; --": "x"},
        {"nothing": ""},
    ],
)
def test_tags_must_all_be_there(snapshot: Snapshot, tags: dict[str, str]) -> None:
    expected = [row["video_id"] for row in all_rows(snapshot) if tags.items() <= row["tags"].items()]
    assert [row["video_id"] for row in listed(snapshot, Wanted(tags=tags), limit=2)] == expected


def test_a_state_is_a_filter(snapshot: Snapshot) -> None:
    assert len(listed(snapshot, Wanted(state="ready"))) == len(NAMES)
    assert listed(snapshot, Wanted(state="added")) == []


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "*",
        base64.urlsafe_b64encode(b"[]").decode(),
        base64.urlsafe_b64encode(b'["a"]').decode(),
        base64.urlsafe_b64encode(b'["a", 1]').decode(),
        base64.urlsafe_b64encode(b'{"a": 1, "b": 2}').decode() + "=",
        base64.urlsafe_b64encode(json.dumps(["\ud800", "a"]).encode()).decode(),
        base64.urlsafe_b64encode(b"[" * 3000).decode(),
    ],
)
def test_what_is_no_cursor_is_refused(snapshot: Snapshot, cursor: str) -> None:
    with pytest.raises(Refused, match="cursor") as refused:
        page_of_videos(snapshot, Wanted(), cursor=cursor, limit=10)
    assert refused.value.status == 422


def test_a_page_goes_on_where_a_video_was_that_is_gone(snapshot: Snapshot) -> None:
    rows = all_rows(snapshot)
    cursor = base64.urlsafe_b64encode(
        json.dumps([rows[3]["name"], rows[3]["video_id"] + "0"]).encode()
    ).decode()
    page = page_of_videos(snapshot, Wanted(), cursor=cursor, limit=1000)
    assert [video.video_id for video in page.videos] == [row["video_id"] for row in rows[4:]]


def test_an_empty_archive_has_an_empty_page(tmp_path: Path) -> None:
    archive = SmallArchive(open_store(str(tmp_path / "archive")))
    page = page_of_videos(
        Catalog(archive.store, tmp_path / "cache").snapshot(), Wanted(), cursor=None, limit=10
    )
    assert (page.videos, page.next) == ([], None)


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59.999999+00:00", "0001-01-01T00:00:00+00:00"])
def test_times_at_the_calendars_ends_are_told_exactly(text: str) -> None:
    # Entries of earlier releases may have them.
    at = datetime.fromisoformat(text)
    assert _time((at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)) == at
    assert _time(None) is None
