"""Entries: exact bytes and back, and which newer ones make a prepared commit pointless."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nvpstore.errors import CommitDropped, UsageError
from nvpstore.storage import keys
from nvpstore.storage.entries import (
    EntryKind,
    LogDraft,
    conflict,
    decode_entry,
    encode_entry,
    new_entry,
)
from nvpstore.storage.log import create_archive, open_log
from nvpstore.storage.objects import open_store
from nvpstore.types import StoredObject

VIDEO, OTHER = "a" * 32, "b" * 32
ARCHIVE = keys.new_attempt()


def draft(kind: EntryKind, subject: str = VIDEO, **fields: Any) -> LogDraft:
    return LogDraft(kind=kind, attempt=fields.pop("attempt", keys.new_attempt()), subject=subject, **fields)


def meta_object(video_id: str) -> StoredObject:
    key = keys.meta_key(video_id, keys.new_attempt())
    return StoredObject(key=key, size_bytes=1, sha256="0" * 64)


def result_object(video_id: str = VIDEO, version: str = "1" * 64, result: str = "2" * 32) -> StoredObject:
    key = keys.result_key(video_id, version, result, keys.new_attempt(), "0" * 64)
    return StoredObject(key=key, size_bytes=1, sha256="0" * 64)


def routes_object(version: str) -> StoredObject:
    key = keys.routes_key(VIDEO, version, keys.new_attempt())
    return StoredObject(key=key, size_bytes=1, sha256="0" * 64)


ANSWERS = result_object()


def refused(later: LogDraft, *newer: LogDraft) -> str | None:
    entries = [new_entry(one, number=n, previous_digest="") for n, one in enumerate(newer, start=5)]
    found = conflict(later, entries)
    return found.reason if found else None


def test_an_entry_comes_back_from_its_bytes() -> None:
    removed = (keys.meta_key(VIDEO, ARCHIVE),)
    entry = new_entry(
        draft("gc", ARCHIVE, removed=removed, fence=ARCHIVE), number=3, previous_digest="0" * 64
    )
    assert decode_entry(encode_entry(entry), 3) == entry


@pytest.mark.parametrize(
    ("prepared", "newer", "reason"),
    [
        (draft("video"), draft("video"), "stored the video first"),
        (draft("video"), draft("erase"), "erased"),
        (draft("routes"), draft("erase"), "erased"),
        (draft("meta"), draft("erase"), "erased"),
        (draft("routes"), draft("video"), "fitted anew"),
        (draft("meta"), draft("meta", objects=(meta_object(VIDEO),)), "changed meanwhile"),
        (draft("meta"), draft("video", objects=(meta_object(VIDEO),)), "changed meanwhile"),
        (draft("erase"), draft("meta", objects=(meta_object(VIDEO),)), "changed meanwhile"),
        (draft("erase"), draft("video"), "changed meanwhile"),
        (draft("erase"), draft("routes"), "changed meanwhile"),
        (draft("gc", ARCHIVE), draft("task", "labels"), "meanwhile"),
        (draft("gc", ARCHIVE), draft("results", objects=(ANSWERS,)), "meanwhile"),
        (draft("erase"), draft("results", objects=(ANSWERS,)), "changed meanwhile"),
        (draft("results", objects=(ANSWERS,)), draft("erase"), "erased"),
        (draft("results", objects=(ANSWERS,)), draft("video"), "fitted anew"),
        (draft("view", "night"), draft("view", "day"), "views or tasks were changed"),
        (draft("view", "night"), draft("task", "labels"), "views or tasks were changed"),
        (draft("gc", ARCHIVE), draft("view", "night"), "meanwhile"),
        (
            draft("results", removed=(ANSWERS.key,)),
            draft("results", objects=(result_object(),)),
            "stored or dropped",
        ),
        (
            draft("results", objects=(result_object(),)),
            draft("results", removed=(ANSWERS.key,)),
            "stored or dropped",
        ),
        (
            draft("results", objects=(ANSWERS,)),
            draft("routes", objects=(routes_object("1" * 64),)),
            "other routes",
        ),
        (
            draft("routes", objects=(routes_object("1" * 64),)),
            draft("routes", objects=(routes_object("1" * 64),)),
            "others stored routes of the task",
        ),
    ],
)
def test_a_newer_entry_refuses_what_it_makes_pointless(
    prepared: LogDraft, newer: LogDraft, reason: str
) -> None:
    assert reason in (refused(prepared, newer) or "")
    assert "(log entry 5)" in (refused(prepared, newer) or "")


@pytest.mark.parametrize(
    ("prepared", "newer"),
    [
        (draft("video", replaces=True), draft("video")),
        (draft("video"), draft("video", OTHER)),
        (draft("video"), draft("erase", OTHER)),
        (draft("meta"), draft("video", objects=())),
        (draft("erase"), draft("erase")),
        (draft("routes"), draft("results", objects=(ANSWERS,))),
        (draft("video", replaces=True), draft("results", objects=(ANSWERS,))),
        (draft("results", objects=(ANSWERS,)), draft("results", objects=(result_object(result="3" * 32),))),
        (draft("results", objects=(ANSWERS,)), draft("results", OTHER, objects=(result_object(OTHER),))),
        (draft("results", objects=(ANSWERS,)), draft("routes", objects=(routes_object("4" * 64),))),
        (draft("results", objects=(ANSWERS,)), draft("meta", objects=(meta_object(VIDEO),))),
        (
            draft("routes", objects=(routes_object("1" * 64),)),
            draft("routes", objects=(routes_object("4" * 64),)),
        ),
        (draft("task", "labels"), draft("erase")),
        (draft("task", "labels"), draft("view", "labels")),
        (draft("view", "night"), draft("video")),
        (draft("view", "night"), draft("erase")),
    ],
)
def test_what_does_not_touch_the_same_video_is_let_through(prepared: LogDraft, newer: LogDraft) -> None:
    assert refused(prepared, newer) is None


def test_a_fence_refuses_attempts_begun_before_it() -> None:
    fence = keys.first_attempt_at(datetime.now(UTC))
    before = keys.first_attempt_at(datetime.now(UTC) - timedelta(seconds=1))
    collected = draft("gc", ARCHIVE, fence=fence)
    assert "collected as garbage" in (refused(draft("video", attempt=before), collected) or "")
    assert refused(draft("video", attempt=keys.new_attempt(later_than=fence)), collected) is None


def test_an_attempt_older_than_half_of_the_grace_is_refused() -> None:
    store = open_store(f"memory://{ARCHIVE}")
    create_archive(store, grace_seconds=100)
    log = open_log(store)
    old = keys.first_attempt_at(datetime.now(UTC) - timedelta(seconds=51))
    with pytest.raises(CommitDropped, match=r"begun 5\d s ago; at most half of the archive's grace of 100 s"):
        log.append(draft("meta", attempt=old))
    assert log.head() == 0
    log.append(draft("meta", attempt=keys.first_attempt_at(datetime.now(UTC) - timedelta(seconds=40))))


def test_a_grace_must_be_positive() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        create_archive(open_store(f"memory://{keys.new_attempt()}"), grace_seconds=0)
