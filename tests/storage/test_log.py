"""The log: one winner a number, nothing lost, nothing changed unnoticed, nothing half visible."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nvpstore.errors import (
    ArchiveError,
    IntegrityError,
    ObjectMissing,
    StoreError,
)
from nvpstore.storage.documents import canonical_digest, canonical_json
from nvpstore.storage.keys import log_key, new_attempt
from nvpstore.storage.log import Log, LogDraft, LogEntry, create_archive, open_log
from nvpstore.storage.objects import ObjectStore, open_store
from nvpstore.types import StoredObject

VIDEO = "a" * 32


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return open_store(str(tmp_path / "a") if request.param == "local" else f"memory://{new_attempt()}")


@pytest.fixture
def log(store: ObjectStore) -> Log:
    create_archive(store)
    return open_log(store)


def draft(subject: str = VIDEO, objects: Sequence[StoredObject] = ()) -> LogDraft:
    return LogDraft(kind="meta", attempt=new_attempt(), subject=subject, objects=tuple(objects))


def rewrite(store: ObjectStore, number: int, data: bytes) -> None:
    store.delete(log_key(number))
    store.put(log_key(number), data)


def test_a_new_archive_has_one_entry_with_its_id(store: ObjectStore) -> None:
    entry = create_archive(store)
    assert list(open_log(store).entries()) == [entry]
    assert (entry.number, entry.kind, entry.previous_digest) == (0, "init", "")
    with pytest.raises(ArchiveError, match="exists: it is an archive already"):
        create_archive(store)


def test_a_root_without_entries_is_no_archive(store: ObjectStore) -> None:
    with pytest.raises(ArchiveError, match="is not an archive: run `nvp init`"):
        open_log(store)
    with pytest.raises(ArchiveError, match="is not an archive"):
        Log(store).append(draft())


def test_one_of_many_racing_creates_wins(store: ObjectStore) -> None:
    def create(_: int) -> LogEntry | None:
        try:
            return create_archive(store)
        except ArchiveError:
            return None

    with ThreadPoolExecutor(8) as pool:
        made = [entry for entry in pool.map(create, range(8)) if entry]
    assert made == list(open_log(store).entries())


def test_entries_come_back_chained_and_from_anywhere(store: ObjectStore, log: Log) -> None:
    obj = store.put("videos/x", b"data")
    appended = [log.append(draft(str(n), [obj])) for n in range(5)]
    assert [entry.number for entry in appended] == [1, 2, 3, 4, 5]
    fresh = Log(store)
    assert list(fresh.entries(after=0)) == appended
    assert list(Log(store).entries(after=3)) == appended[3:]
    assert list(fresh.entries(after=5)) == []
    assert appended[3].previous_digest == appended[2].checksum
    assert appended[0].objects == (obj,)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 20])
def test_head_is_the_last_number(count: int) -> None:
    store = open_store(f"memory://{new_attempt()}")
    assert Log(store).head() == -1
    create_archive(store)
    log = Log(store)
    for _ in range(count):
        log.append(draft())
    assert log.head() == Log(store).head() == count


def test_a_writer_that_loses_retries_behind_the_winner(store: ObjectStore, log: Log) -> None:
    winner = Log(store).append(draft("winner"))
    entry = log.append(draft("loser"), after=0)
    assert (entry.number, entry.previous_digest) == (2, winner.checksum)


def test_objects_must_be_there_before_their_entry(store: ObjectStore, log: Log) -> None:
    missing = StoredObject(key="videos/x", size_bytes=3, sha256="0" * 64)
    with pytest.raises(ObjectMissing, match="videos/x"):
        log.append(draft(objects=[missing]))
    store.put("videos/x", b"four")
    with pytest.raises(StoreError, match="has 4 bytes, not the 3"):
        log.append(draft(objects=[missing]))
    assert log.head() == 0


def test_a_crash_before_the_entry_leaves_nothing_visible(store: ObjectStore, log: Log) -> None:
    store.put("videos/orphan", b"data")
    assert [entry.kind for entry in Log(store).entries()] == ["init"]


def _append_some(root: str, writer: int, count: int) -> None:
    log = open_log(open_store(root))
    for n in range(count):
        log.append(draft(f"{writer}-{n}"))


def test_eight_processes_append_without_loss(tmp_path: Path) -> None:
    root = str(tmp_path)
    create_archive(open_store(root))
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_some, args=(root, n, 5)) for n in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert all(writer.exitcode == 0 for writer in writers)
    entries = list(open_log(open_store(root)).entries(after=0))
    assert [entry.number for entry in entries] == list(range(1, 41))
    assert sorted(entry.subject for entry in entries) == sorted(
        f"{w}-{n}" for w in range(8) for n in range(5)
    )


def test_threads_share_one_log(log: Log) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: log.append(draft(str(n))), range(24)))
    entries = list(log.entries(after=0))
    assert sorted(int(entry.subject) for entry in entries) == list(range(24))


def test_every_flipped_bit_of_an_entry_is_noticed(log: Log, store: ObjectStore) -> None:
    log.append(draft())
    data = store.get(log_key(1))
    for position in range(0, len(data), 3):
        changed = bytearray(data)
        changed[position] ^= 1 << (position % 8)
        rewrite(store, 1, bytes(changed))
        with pytest.raises((IntegrityError, ArchiveError), match=log_key(1)):
            list(Log(store).entries())


def test_an_entry_swapped_for_a_valid_other_one_is_noticed(log: Log, store: ObjectStore) -> None:
    log.append(draft("one"))
    log.append(draft("two"))
    body = json.loads(store.get(log_key(1)))
    del body["checksum"]
    body["subject"] = "forged"
    rewrite(store, 1, canonical_json(body | {"checksum": canonical_digest(body)}))
    with pytest.raises(IntegrityError, match=log_key(2)):
        list(Log(store).entries())


def test_a_gap_is_found_and_closing_it_is_noticed(log: Log, store: ObjectStore) -> None:
    for n in range(3):
        log.append(draft(str(n)))
    log.check_complete()
    store.delete(log_key(2))
    with pytest.raises(IntegrityError, match=f"{log_key(2)} is missing"):
        Log(store).check_complete()
    Log(store).append(draft("late"), after=1)
    with pytest.raises(IntegrityError, match=log_key(3)):
        list(Log(store).entries())


@pytest.mark.parametrize(("field", "value"), [("format", 9), ("kind", "future")])
def test_what_a_newer_release_writes_fails_clearly(
    log: Log, store: ObjectStore, field: str, value: object
) -> None:
    log.append(draft())
    body = json.loads(store.get(log_key(1)))
    del body["checksum"]
    body[field] = value
    rewrite(store, 1, canonical_json(body | {"checksum": canonical_digest(body)}))
    with pytest.raises(ArchiveError, match=f"{log_key(1)} .*format version"):
        list(Log(store).entries())
