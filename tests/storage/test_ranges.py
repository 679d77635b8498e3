"""Ranged reads: as few requests as possible, each byte verified, ahead of use, and together."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvpstore.errors import IntegrityError, ObjectMissing, StoreError
from nvpstore.storage import keys
from nvpstore.storage.local import LocalStore
from nvpstore.storage.range_cache import RangeCache
from nvpstore.storage.ranges import RangeReader
from nvpstore.types import ByteRange
from tests.storage.counting import CountingStore

VIDEO = "a" * 32
ATTEMPT = keys.new_attempt()
KEY, OTHER = (keys.weights_key(VIDEO, ATTEMPT, first) for first in (0, 64))
GROUP = 100  # bytes of a range
DATA = {key: np.random.default_rng(n).bytes(20 * GROUP) for n, key in enumerate((KEY, OTHER))}


def group(number: int, key: str = KEY, *, count: int = 1) -> ByteRange:
    """The `number`th range of an object; `count` of them as one."""
    start, size = number * GROUP, count * GROUP
    digest = hashlib.sha256(DATA[key][start : start + size]).hexdigest()
    return ByteRange(key=key, offset=start, size_bytes=size, sha256=digest)


def content(wanted: ByteRange) -> bytes:
    return DATA[wanted.key][wanted.offset : wanted.offset + wanted.size_bytes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = LocalStore(tmp_path_factory.mktemp("store"))
    for key, data in DATA.items():
        store.put(key, data)
    return Path(store.root)


@pytest.fixture
def store(folder: Path) -> CountingStore:
    return CountingStore(LocalStore(folder))


@pytest.fixture
def reader(store: CountingStore) -> Iterator[RangeReader]:
    reader = RangeReader(store, cache=None)
    yield reader
    store.gate.set()
    reader.close()
    assert reader.held_bytes == 0


def cached(store: CountingStore, folder: Path) -> RangeReader:
    """A reader of its own, as another process would have one."""
    return RangeReader(store, cache=RangeCache(folder, budget_bytes=10**6))


def soon(condition: object) -> None:
    end = time.monotonic() + 5
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


class TestMerging:
    def test_neighbours_are_one_request(self, store: CountingStore, reader: RangeReader) -> None:
        wanted = [group(n) for n in (3, 4, 5)]
        assert reader.read(wanted, as_of=1) == [content(w) for w in wanted]
        assert store.ranges == [(KEY, 3 * GROUP, 3 * GROUP)]

    def test_a_gap_or_another_object_is_another_request(
        self, store: CountingStore, reader: RangeReader
    ) -> None:
        wanted = [group(8), group(0), group(1), group(1, OTHER), group(9), group(3)]
        assert reader.read(wanted, as_of=1) == [content(w) for w in wanted]
        assert sorted(store.ranges) == sorted(
            [(KEY, 0, 200), (KEY, 300, 100), (KEY, 800, 200), (OTHER, 100, 100)]
        )

    def test_a_small_gap_is_bridged_where_that_is_asked_for(
        self, store: CountingStore, reader: RangeReader
    ) -> None:
        wanted = [group(0), group(2), group(5)]
        found = reader.read_counted(wanted, as_of=1, bridge_bytes=GROUP)
        assert list(found.data) == [content(w) for w in wanted]
        assert sorted(store.ranges) == [(KEY, 0, 300), (KEY, 500, 100)]
        assert (found.traffic.requests, found.traffic.store_bytes) == (2, 400)

    def test_a_request_is_bounded(
        self, store: CountingStore, reader: RangeReader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("nvpstore.storage.ranges.MERGED_BYTES", 4 * GROUP)
        wanted = [group(n) for n in range(10)]
        assert reader.read(wanted, as_of=1) == [content(w) for w in wanted]
        assert sorted(size for _, _, size in store.ranges) == [200, 400, 400]

    @given(
        asked=st.lists(st.tuples(st.integers(0, 19), st.sampled_from([KEY, OTHER]), st.integers(1, 3))),
        bridge=st.integers(0, 3),
    )
    def test_any_list_gives_its_bytes_in_its_order(
        self, folder: Path, asked: list[tuple[int, str, int]], bridge: int
    ) -> None:
        store = CountingStore(LocalStore(folder))
        reader = RangeReader(store, cache=None)
        wanted = [group(n, key, count=min(count, 20 - n)) for n, key, count in asked]
        found = reader.read_counted(wanted, as_of=1, bridge_bytes=bridge * GROUP)
        assert list(found.data) == [content(w) for w in wanted]
        assert found.traffic.requests == len(store.ranges) <= len(set(wanted))
        assert found.traffic.store_bytes == store.total_bytes
        assert reader.held_bytes == 0
        reader.close()

    def test_local_files_too(self, folder: Path, tmp_path: Path) -> None:
        local = CountingStore(LocalStore(folder), local=True)
        reader = cached(local, tmp_path)
        for _ in range(2):
            assert reader.read([group(1)], as_of=1) == [content(group(1))]
        assert len(local.ranges) == 2
        assert list(tmp_path.iterdir()) == []  # a local file needs no copy


class TestTogether:
    def test_requests_run_side_by_side_but_not_all_at_once(self, store: CountingStore) -> None:
        reader = RangeReader(store, cache=None, workers=3)
        store.gate.clear()
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(reader.read, [group(n) for n in range(0, 20, 2)], as_of=1)
            soon(lambda: store.at_once == 4)  # the workers, and the one who asks
            time.sleep(0.02)
            assert store.at_once == 4
            store.gate.set()
            assert reading.result() == [content(group(n)) for n in range(0, 20, 2)]
        assert store.most_at_once == 4

    def test_threads_that_want_the_same_share_one_request(
        self, store: CountingStore, reader: RangeReader
    ) -> None:
        store.gate.clear()
        wanted = [group(1), group(2)]
        with ThreadPoolExecutor(8) as pool:
            readings = [pool.submit(reader.read_counted, wanted, as_of=1) for _ in range(8)]
            soon(lambda: store.at_once == 1)
            time.sleep(0.02)
            store.gate.set()
            found = [reading.result() for reading in readings]
        assert len(store.ranges) == 1
        assert {f.data for f in found} == {tuple(content(w) for w in wanted)}
        # Counted once, whoever was first.
        assert sum(f.traffic.requests for f in found) == 1
        assert sum(f.traffic.store_bytes for f in found) == 2 * GROUP

    def test_what_others_fetch_already_is_not_fetched_again(
        self, store: CountingStore, reader: RangeReader
    ) -> None:
        store.gate.clear()
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(reader.read, [group(1)], as_of=1)
            soon(lambda: store.at_once == 1)
            second = pool.submit(reader.read, [group(0), group(1), group(2)], as_of=1)
            soon(lambda: store.at_once == 3)
            store.gate.set()
            assert first.result() == [content(group(1))]
            assert second.result() == [content(group(n)) for n in range(3)]
        assert sorted(store.ranges) == [(KEY, 0, 100), (KEY, 100, 100), (KEY, 200, 100)]

    def test_many_threads_and_many_ranges(self, store: CountingStore, tmp_path: Path) -> None:
        reader = cached(store, tmp_path)

        def read(seed: int) -> None:
            numbers = np.random.default_rng(seed).integers(0, 20, size=6).tolist()
            wanted = [group(n) for n in numbers]
            held = reader.prefetch(wanted[:3], as_of=1)
            assert reader.read(wanted, as_of=1) == [content(w) for w in wanted]
            held.drop()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read, range(200)))
        assert reader.held_bytes == 0
        reader.close()


class TestDamage:
    def test_damage_on_the_way_is_fetched_again(self, store: CountingStore, reader: RangeReader) -> None:
        flips = iter([True])

        def flip(data: bytes) -> bytes:
            return bytes([data[0] ^ 1]) + data[1:] if next(flips, False) else data

        store.damage = flip
        assert reader.read([group(1), group(2)], as_of=1) == [content(group(1)), content(group(2))]
        assert store.ranges == [(KEY, 100, 200), (KEY, 100, 100)]  # only what differed

    def test_damage_that_stays_is_an_error_that_says_where(
        self, store: CountingStore, reader: RangeReader
    ) -> None:
        store.damage = lambda data: data[:-1] + bytes([data[-1] ^ 128])
        where = rf"{KEY} at offset 200 \(100 bytes\) in .* has SHA-256 \w+…; {group(2).sha256[:12]}…"
        with pytest.raises(IntegrityError, match=where):
            reader.read([group(1), group(2)], as_of=1)
        assert store.ranges == [(KEY, 100, 200), (KEY, 200, 100)]  # once more, and no more

    def test_an_object_that_ends_early_damages_only_its_end(self, tmp_path: Path) -> None:
        inner = LocalStore(tmp_path)
        inner.put(KEY, DATA[KEY][: 2 * GROUP + 50])
        reader = RangeReader(CountingStore(inner), cache=None)
        with pytest.raises(IntegrityError, match=f"{KEY} .*ends early: 100 bytes asked for at offset 200"):
            reader.read([group(0), group(1), group(2)], as_of=1)
        assert reader.read([group(0), group(1)], as_of=1) == [content(group(0)), content(group(1))]

    def test_a_missing_object_is_named_and_can_be_asked_for_again(
        self, store: CountingStore, reader: RangeReader
    ) -> None:
        missing = ByteRange(key=keys.weights_key(VIDEO, ATTEMPT, 9), offset=0, size_bytes=1, sha256="0" * 64)
        for _ in range(2):
            with pytest.raises(ObjectMissing, match=missing.key):
                reader.read([group(0), missing], as_of=1)
        assert reader.read([group(0)], as_of=1) == [content(group(0))]

    def test_an_error_ahead_is_the_later_read_s(self, store: CountingStore, reader: RangeReader) -> None:
        def refuse(data: bytes) -> bytes:
            raise StoreError("the line is dead")

        store.damage = refuse
        held = reader.prefetch([group(0)], as_of=1)
        with pytest.raises(StoreError, match="the line is dead"):
            reader.read([group(0)], as_of=1)
        store.damage = bytes
        held.drop()
        assert reader.read([group(0)], as_of=1) == [content(group(0))]


class TestCache:
    def test_a_second_reader_asks_for_nothing(self, store: CountingStore, tmp_path: Path) -> None:
        wanted = [group(n) for n in (0, 1, 5)]
        first = cached(store, tmp_path).read_counted(wanted, as_of=1)
        # Bytes are given before they are on the disk, and by another thread where requests run side by side.
        soon(lambda: all((tmp_path / VIDEO / each.sha256).exists() for each in wanted))
        second = cached(store, tmp_path).read_counted(wanted, as_of=1)
        assert first.data == second.data
        assert len(store.ranges) == 2
        assert (first.traffic.requests, first.traffic.store_bytes, first.traffic.cache_bytes) == (2, 300, 0)
        assert (second.traffic.requests, second.traffic.store_bytes, second.traffic.cache_bytes) == (
            0,
            0,
            300,
        )

    def test_only_what_is_missing_is_fetched(self, store: CountingStore, tmp_path: Path) -> None:
        cached(store, tmp_path).read([group(1)], as_of=1)
        found = cached(store, tmp_path).read([group(n) for n in range(4)], as_of=1)
        assert found == [content(group(n)) for n in range(4)]
        assert sorted(store.ranges[1:]) == [(KEY, 0, 100), (KEY, 200, 200)]

    def test_damage_in_it_is_fetched_again(self, store: CountingStore, tmp_path: Path) -> None:
        cached(store, tmp_path).read([group(1)], as_of=1)
        path = tmp_path / VIDEO / group(1).sha256
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        assert cached(store, tmp_path).read([group(1)], as_of=1) == [content(group(1))]
        assert len(store.ranges) == 2
        assert path.read_bytes() == content(group(1))

    def test_nothing_damaged_gets_into_it(self, store: CountingStore, tmp_path: Path) -> None:
        store.damage = lambda data: bytes(len(data))
        with pytest.raises(IntegrityError):
            cached(store, tmp_path).read([group(1)], as_of=1)
        assert not (tmp_path / VIDEO).exists()

    def test_an_old_reader_brings_nothing_of_an_erased_video_back(
        self, store: CountingStore, tmp_path: Path
    ) -> None:
        reader = cached(store, tmp_path)
        reader.read([group(1)], as_of=3)
        RangeCache(tmp_path, budget_bytes=0).forget(VIDEO, erased_at=4)
        assert reader.read([group(1)], as_of=3) == [content(group(1))]
        assert not (tmp_path / VIDEO).exists()


class TestAhead:
    def test_a_later_read_finds_it_there(self, store: CountingStore, reader: RangeReader) -> None:
        held = reader.prefetch([group(1), group(2)], as_of=1)
        soon(lambda: len(store.ranges) == 1)
        first = reader.read_counted([group(1)], as_of=1)
        second = reader.read_counted([group(2), group(1)], as_of=1)
        assert (*first.data, *second.data) == tuple(content(group(n)) for n in (1, 2, 1))
        assert (first.traffic.requests, second.traffic.requests) == (1, 0)
        held.drop()
        assert len(store.ranges) == 1

    def test_a_read_joins_what_is_on_its_way(self, store: CountingStore, reader: RangeReader) -> None:
        store.gate.clear()
        held = reader.prefetch([group(1)], as_of=1)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(reader.read, [group(1)], as_of=1)
            soon(lambda: store.at_once == 1)
            store.gate.set()
            assert reading.result() == [content(group(1))]
        held.drop()
        assert len(store.ranges) == 1

    def test_what_is_dropped_is_held_no_longer(self, store: CountingStore, reader: RangeReader) -> None:
        held = reader.prefetch([group(1), group(3)], as_of=1)
        assert reader.held_bytes == 2 * GROUP
        held.drop()
        held.drop()
        assert reader.held_bytes == 0

    def test_two_that_hold_the_same_do_not_disturb_each_other(
        self, store: CountingStore, reader: RangeReader
    ) -> None:
        mine, yours = (reader.prefetch([group(1)], as_of=1) for _ in range(2))
        mine.drop()
        assert reader.read([group(1)], as_of=1) == [content(group(1))]
        yours.drop()
        assert len(store.ranges) == 1

    def test_what_did_not_start_never_does_once_dropped(self, store: CountingStore) -> None:
        reader = RangeReader(store, cache=None, workers=1)
        store.gate.clear()
        held = [reader.prefetch([group(n)], as_of=1) for n in range(0, 10, 2)]
        soon(lambda: store.at_once == 1)
        for one in held:
            one.drop()
        store.gate.set()
        assert reader.read([group(11)], as_of=1) == [content(group(11))]
        soon(lambda: not any(t.name.startswith("ranges") and store.at_once for t in threading.enumerate()))
        assert len(store.ranges) == 2
        reader.close()

    def test_no_more_than_the_budget_is_held(self, store: CountingStore) -> None:
        reader = RangeReader(store, cache=None, ahead_bytes=3 * GROUP)
        held = [reader.prefetch([group(n), group(n + 1)], as_of=1) for n in range(0, 8, 2)]
        assert reader.held_bytes == 2 * GROUP
        assert reader.read([group(4)], as_of=1) == [content(group(4))]
        held[0].drop()
        again = reader.prefetch([group(6)], as_of=1)
        assert reader.held_bytes == GROUP
        again.drop()
        assert reader.read([group(6)], as_of=1) == [content(group(6))]
        reader.close()
