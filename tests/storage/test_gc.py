"""gc and erasure: what goes, what stays, and who may still commit. (All interleavings: tests/soak.)"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak.fold import Folded, fold
from nvpstore.errors import CommitDropped, UsageError
from nvpstore.storage import keys
from nvpstore.storage.commit import commit_stabilizer
from nvpstore.storage.erase import erase, leftovers, sweep
from nvpstore.storage.gc import collect
from nvpstore.storage.log import Log, LogDraft, LogEntry, create_archive
from nvpstore.storage.objects import open_store
from nvpstore.types import StoredObject

VIDEO, OTHER = "a" * 32, "b" * 32
DAY = timedelta(days=1)
LATER = datetime.now(UTC) + 3 * DAY


@pytest.fixture(params=["local", "memory"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Log:
    store = open_store(str(tmp_path / "a") if request.param == "local" else f"memory://{keys.new_attempt()}")
    create_archive(store)
    return Log(store)


def state(log: Log) -> Folded:
    return fold(log.entries())


def put_video(log: Log, video_id: str = VIDEO, *, attempt: str = "") -> list[StoredObject]:
    attempt = attempt or keys.new_attempt(later_than=state(log).latest_attempt)
    names = [keys.weights_key(video_id, attempt, 0), keys.manifest_key(video_id, attempt)]
    names += [] if state(log).has_video(video_id) else [keys.meta_key(video_id, attempt)]
    return [log.store.put(key, key.encode()) for key in names]


def store_video(log: Log, video_id: str = VIDEO) -> LogEntry:
    objects = put_video(log, video_id)
    draft = LogDraft(
        kind="video",
        attempt=keys.parse_key(objects[0].key).attempt,
        subject=video_id,
        objects=tuple(objects),
        replaces=state(log).has_video(video_id),
    )
    return log.append(draft)


def save_stabilizer(log: Log) -> str:
    return commit_stabilizer(
        log, name="labels", version="c" * 64, data=b"weights", later_than=state(log).latest_attempt
    ).key


def save_view(log: Log, name: str, *, drop: bool = False) -> set[str]:
    attempt = keys.new_attempt(later_than=state(log).latest_attempt)
    objects = () if drop else (log.store.put(keys.view_key(name, attempt), attempt.encode()),)
    log.append(LogDraft(kind="view", attempt=attempt, subject=name, objects=objects))
    return {obj.key for obj in objects}


def gc(log: Log, **options: Any) -> set[str]:
    return set(collect(log, lambda: state(log), **options).keys)


def stored(log: Log) -> set[str]:
    return {key for key in log.store.list() if not key.startswith(keys.LOG_PREFIX)}


def test_what_is_in_force_stays_forever(log: Log) -> None:
    entry = store_video(log)
    assert gc(log, now=LATER) == set()
    assert stored(log) == {obj.key for obj in entry.objects}


def test_orphans_and_replaced_objects_go_after_the_grace(log: Log) -> None:
    first = store_video(log)
    second = store_video(log)
    orphans = put_video(log, OTHER)
    assert gc(log) == set()
    # What people said about the video outlives the refit.
    meta = {obj.key for obj in first.objects if "/meta/" in obj.key}
    replaced = {obj.key for obj in first.objects} - meta
    expected = replaced | {obj.key for obj in orphans}
    assert gc(log, now=LATER, dry_run=True) == expected
    assert stored(log) >= expected
    assert gc(log, now=LATER) == expected
    assert stored(log) == meta | {obj.key for obj in second.objects}
    assert state(log).replaced == {}
    assert gc(log, now=LATER) == set()


def test_replaced_and_orphaned_stabilizers_go_and_those_in_force_stay(log: Log) -> None:
    first, second = save_stabilizer(log), save_stabilizer(log)
    attempt = keys.first_attempt_at(datetime.now(UTC) - 2 * DAY)
    orphan = log.store.put(keys.stabilizer_key("labels", "d" * 64, attempt), b"weights").key
    assert gc(log) == {orphan}
    assert gc(log, now=LATER) == {first}
    assert stored(log) == {second}


def test_replaced_and_dropped_views_go_and_views_in_force_stay(log: Log) -> None:
    first, night = save_view(log, "night"), save_view(log, "night")
    day, _ = save_view(log, "day"), save_view(log, "day", drop=True)
    attempt = keys.first_attempt_at(datetime.now(UTC) - 2 * DAY)
    orphan = log.store.put(keys.view_key("never", attempt), b"{}").key
    assert gc(log) == {orphan}
    assert gc(log, now=LATER) == first | day
    assert stored(log) == night
    # The same name again: a deletion that comes late could not hit it.
    assert not save_view(log, "day") & day


def test_a_killed_gc_is_completed_by_the_next(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    store_video(log)
    entry = store_video(log)

    def killed(keys: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(log.store, "delete_all", killed)
        with pytest.raises(KeyboardInterrupt):
            gc(log, now=LATER)
    left = gc(log, now=LATER)
    assert len(left) == 2
    assert stored(log) >= {obj.key for obj in entry.objects}


def test_a_writer_behind_the_fence_cannot_commit(log: Log) -> None:
    objects = put_video(log)
    attempt, base = keys.parse_key(objects[0].key).attempt, log.head()
    gc(log, now=LATER)
    draft = LogDraft(kind="video", attempt=attempt, subject=VIDEO, objects=tuple(objects))
    with pytest.raises(CommitDropped, match="collected as garbage"):
        log.append(draft, after=base)
    assert not state(log).has_video(VIDEO)


def test_a_commit_between_its_look_and_its_entry_makes_gc_look_again(log: Log) -> None:
    objects = put_video(log)
    draft = LogDraft(
        kind="video",
        attempt=keys.parse_key(objects[0].key).attempt,
        subject=VIDEO,
        objects=tuple(objects),
    )
    looks: list[int] = []

    def held() -> Folded:
        looks.append(1)
        seen = state(log)
        if len(looks) == 1:
            Log(log.store).append(draft)
        return seen

    assert collect(log, held, now=LATER).keys == []
    assert len(looks) == 2
    assert stored(log) == {obj.key for obj in objects}


def test_a_shorter_grace_than_the_archives_is_refused(log: Log) -> None:
    with pytest.raises(UsageError, match=r"a grace of 1:00:00: .* at least 1 day"):
        gc(log, grace=timedelta(hours=1))


def test_keys_that_are_nobodys_are_told_and_left(log: Log) -> None:
    log.store.put("videos/readme.txt", b"mine")
    found = collect(log, lambda: state(log), now=LATER)
    assert (found.unknown, found.keys) == (("videos/readme.txt",), [])
    assert stored(log) == {"videos/readme.txt"}


class TestErasure:
    def erase(self, log: Log, video_id: str = VIDEO) -> int:
        now = state(log)
        return erase(log, video_id, number=now.number, latest_attempt=now.latest_attempt)[1]

    def test_nothing_of_the_video_is_left_and_others_stay(self, log: Log) -> None:
        store_video(log)
        store_video(log)
        other = store_video(log, OTHER)
        put_video(log)
        log.store.put(f"videos/{VIDEO}/notes.txt", b"somebody's")
        assert self.erase(log) == 8
        assert leftovers(log.store, VIDEO) == []
        assert stored(log) == {obj.key for obj in other.objects}
        assert not state(log).has_video(VIDEO)

    def test_a_writer_that_was_under_way_cannot_bring_it_back(self, log: Log) -> None:
        objects, base = put_video(log), log.head()
        attempt = keys.parse_key(objects[0].key).attempt
        self.erase(log)
        draft = LogDraft(kind="video", attempt=attempt, subject=VIDEO, objects=tuple(objects))
        with pytest.raises(CommitDropped, match="erased meanwhile"):
            log.append(draft, after=base)
        assert not state(log).has_video(VIDEO)

    def test_it_can_be_stored_again_and_erased_again(self, log: Log) -> None:
        for _ in range(2):
            store_video(log)
            assert state(log).has_video(VIDEO)
            assert self.erase(log) == 3
        assert leftovers(log.store, VIDEO) == []

    def test_objects_of_later_attempts_are_not_touched(self, log: Log) -> None:
        store_video(log)
        self.erase(log)
        erasure = list(log.entries())[-1]
        entry = store_video(log)
        # An eraser that was stopped for long: its late deletions hit only what was there before it.
        assert sweep(log.store, VIDEO, before=erasure.attempt) == 0
        assert stored(log) == {obj.key for obj in entry.objects}

    def test_a_hold_set_meanwhile_stops_it(self, log: Log) -> None:
        store_video(log)
        before = state(log)
        key = keys.meta_key(VIDEO, keys.new_attempt())
        meta = log.store.put(key, b"{}")
        log.append(LogDraft(kind="meta", attempt=keys.new_attempt(), subject=VIDEO, objects=(meta,)))
        with pytest.raises(CommitDropped, match="changed meanwhile"):
            erase(log, VIDEO, number=before.number, latest_attempt=before.latest_attempt)
        assert state(log).has_video(VIDEO)
