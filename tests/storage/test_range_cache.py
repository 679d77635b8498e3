"""Bytes on disk: bounded, shared, checked, never needed, and gone for good once they are to be forgotten."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nvpstore.errors import StoreError
from nvpstore.storage import keys
from nvpstore.storage.range_cache import SHARED, RangeCache
from nvpstore.types import ByteRange

VIDEO, OTHER = "a" * 32, "b" * 32
ATTEMPT = keys.new_attempt()


def piece(number: int, *, size: int = 1000, video: str = VIDEO) -> tuple[ByteRange, bytes]:
    data = bytes([number % 256]) * size
    key = keys.weights_key(video, ATTEMPT, 0)
    digest = hashlib.sha256(data).hexdigest()
    return ByteRange(key=key, offset=number * size, size_bytes=size, sha256=digest), data


def stored_bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.glob("*/*") if not f.parent.name.startswith("."))


@pytest.fixture
def cache(tmp_path: Path) -> RangeCache:
    return RangeCache(tmp_path / "ranges", budget_bytes=100_000)


class TestBytes:
    def test_what_is_put_is_what_is_got(self, cache: RangeCache) -> None:
        wanted, data = piece(1)
        assert cache.get(wanted) is None
        cache.put(wanted, data, as_of=3)
        assert cache.get(wanted) == data
        assert RangeCache(cache.folder, budget_bytes=100_000).get(wanted) == data

    def test_they_belong_to_their_video_or_to_all(self, cache: RangeCache) -> None:
        wanted, data = piece(1)
        archive_wide = ByteRange(
            key=keys.archive_adapters_key("c" * 64, ATTEMPT), offset=0, size_bytes=1000, sha256=wanted.sha256
        )
        cache.put(wanted, data, as_of=3)
        cache.put(archive_wide, data, as_of=3)
        assert cache.owners() == {VIDEO, SHARED}

    @pytest.mark.parametrize("damage", [b"", b"\x01" * 999, b"\x01" * 999 + b"\x03", b"\x01" * 1001])
    def test_a_damaged_file_is_a_miss_and_is_gone(self, cache: RangeCache, damage: bytes) -> None:
        wanted, data = piece(1)
        cache.put(wanted, data, as_of=3)
        path = cache.path_of(VIDEO, wanted.sha256)
        path.write_bytes(damage)
        assert cache.check() == (path,)
        assert cache.get(wanted) is None
        assert (cache.damaged, path.exists(), cache.check()) == (1, False, ())

    @pytest.mark.parametrize("folder", ["/proc/none", "/dev/null/x"])
    def test_an_unusable_folder_is_no_error(self, folder: str) -> None:
        cache = RangeCache(Path(folder), budget_bytes=1000)
        wanted, data = piece(1)
        cache.put(wanted, data, as_of=1)
        assert cache.get(wanted) is None
        assert (cache.owners(), cache.check()) == (frozenset(), ())

    def test_a_full_disk_is_no_error(self, cache: RangeCache, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> int:
            raise OSError(28, "No space left on device")

        wanted, data = piece(1)
        monkeypatch.setattr(os, "rename", full)
        cache.put(wanted, data, as_of=1)
        assert cache.get(wanted) is None
        assert list((cache.folder / VIDEO).iterdir()) == []


class TestBudget:
    def test_it_is_kept(self, tmp_path: Path) -> None:
        cache = RangeCache(tmp_path / "ranges", budget_bytes=10_000)
        for number in range(50):
            cache.put(*piece(number), as_of=1)
            assert stored_bytes(cache.folder) <= 10_000
        assert stored_bytes(cache.folder) >= 5_000

    def test_what_was_not_used_for_longest_goes_first(self, tmp_path: Path) -> None:
        cache = RangeCache(tmp_path / "ranges", budget_bytes=10_000)
        for number in range(10):
            cache.put(*piece(number), as_of=1)
            age = time.time() - 1000 + number
            os.utime(cache.path_of(VIDEO, piece(number)[0].sha256), (age, age))
        assert cache.get(piece(0)[0]) is not None  # used now
        cache.put(*piece(10), as_of=1)
        left = [number for number in range(11) if cache.get(piece(number)[0]) is not None]
        assert left == [0, 4, 5, 6, 7, 8, 9, 10]

    def test_what_is_larger_than_all_of_it_is_not_kept(self, tmp_path: Path) -> None:
        for budget in (0, 999):
            cache = RangeCache(tmp_path / str(budget), budget_bytes=budget)
            cache.put(*piece(1), as_of=1)
            assert not cache.folder.exists()

    def test_a_lost_or_damaged_count_is_made_anew(self, tmp_path: Path) -> None:
        cache = RangeCache(tmp_path / "ranges", budget_bytes=10_000)
        for number in range(9):
            cache.put(*piece(number), as_of=1)
            (cache.folder / ".used").write_text("?" if number % 2 else "")
        assert stored_bytes(cache.folder) == 9_000
        cache.put(*piece(9), as_of=1)
        assert int((cache.folder / ".used").read_text()) == stored_bytes(cache.folder) == 10_000

    def test_what_a_killed_process_left_goes_when_it_is_old(self, tmp_path: Path) -> None:
        cache = RangeCache(tmp_path / "ranges", budget_bytes=10_000)
        left = cache.temporary(VIDEO)
        left.write_bytes(bytes(9_000))
        for number in range(20):
            cache.put(*piece(number), as_of=1)
        assert left.exists()  # perhaps somebody is writing it
        os.utime(left, (time.time() - 7200,) * 2)
        for number in range(20, 40):
            cache.put(*piece(number), as_of=1)
        assert not left.exists()

    def test_two_processes_share_it(self, tmp_path: Path) -> None:
        code = (
            "import sys\n"
            "from pathlib import Path\n"
            "from nvpstore.storage.range_cache import RangeCache\n"
            "from tests.storage.test_range_cache import piece, stored_bytes\n"
            "cache = RangeCache(Path(sys.argv[1]), budget_bytes=20_000)\n"
            "for number in range(100):\n"
            "    wanted, data = piece(number)\n"
            "    found = cache.get(wanted)\n"
            "    assert found in (None, data)\n"
            "    cache.put(wanted, data, as_of=1)\n"
            "assert cache.damaged == 0\n"
        )
        both = [
            subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "ranges")], cwd=Path.cwd())
            for _ in range(2)
        ]
        assert [process.wait(60) for process in both] == [0, 0]
        cache = RangeCache(tmp_path / "ranges", budget_bytes=20_000)
        assert cache.check() == ()
        assert stored_bytes(cache.folder) <= 21_000  # both may have put one while one of them counted


class TestForgetting:
    def test_all_of_an_owner_goes_and_nothing_else(self, cache: RangeCache) -> None:
        kept, kept_data = piece(2, video=OTHER)
        cache.put(kept, kept_data, as_of=3)
        cache.put(*piece(1), as_of=3)
        cache.forget(VIDEO, erased_at=5)
        assert cache.owners() == {OTHER}
        assert cache.get(piece(1)[0]) is None
        assert cache.get(kept) == kept_data

    def test_a_reader_from_before_brings_nothing_back(self, cache: RangeCache) -> None:
        cache.put(*piece(1), as_of=3)
        cache.forget(VIDEO, erased_at=5)
        for as_of in (3, 4, 5):
            cache.put(*piece(1), as_of=as_of)
            assert cache.owners() == frozenset()
        cache.put(*piece(1), as_of=6)  # stored again since
        assert cache.get(piece(1)[0]) == piece(1)[1]

    def test_a_put_in_flight_writes_nowhere(self, cache: RangeCache, monkeypatch: pytest.MonkeyPatch) -> None:
        rename = os.rename

        def erased_just_before(*names: str, **folders: Any) -> None:
            if folders:
                monkeypatch.setattr(os, "rename", rename)
                cache.forget(VIDEO, erased_at=5)
            rename(*names, **folders)

        monkeypatch.setattr(os, "rename", erased_just_before)
        cache.put(*piece(1), as_of=3)
        assert cache.owners() == frozenset()
        left = sorted(file.name for file in cache.folder.rglob("*") if file.is_file())
        assert left == [".lock", ".used", VIDEO]  # the last is the mark

    def test_an_older_erasure_does_not_undo_a_newer_one(self, cache: RangeCache) -> None:
        cache.put(*piece(1), as_of=3)
        cache.forget(VIDEO, erased_at=9)
        cache.forget(VIDEO, erased_at=5)
        cache.put(*piece(1), as_of=7)
        assert cache.owners() == frozenset()

    def test_an_unreadable_mark_counts_as_erased(self, cache: RangeCache) -> None:
        cache.put(*piece(1), as_of=3)
        cache.forget(VIDEO, erased_at=5)
        (cache.folder / ".erased" / VIDEO).write_text("")
        cache.put(*piece(1), as_of=99)
        assert cache.owners() == frozenset()

    def test_a_killed_erasure_is_finished_by_the_next(self, cache: RangeCache) -> None:
        cache.put(*piece(1), as_of=3)
        (cache.folder / VIDEO).rename(cache.folder / f".trash-{keys.new_attempt()}")
        cache.forget(VIDEO, erased_at=5)
        assert list(cache.folder.glob(".trash-*")) == []

    def test_a_reader_that_has_put_nothing_yet_is_refused_too(self, cache: RangeCache) -> None:
        cache.forget(VIDEO, erased_at=5)
        cache.put(*piece(1), as_of=4)
        assert cache.owners() == frozenset()

    def test_what_cannot_be_removed_is_an_error(
        self, cache: RangeCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache.put(*piece(1), as_of=3)

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "rename", refuse)
        with pytest.raises(StoreError, match=r"cannot remove .* Permission denied"):
            cache.forget(VIDEO, erased_at=5)


class TestWholeFiles:
    def adopted(self, cache: RangeCache, data: bytes, *, as_of: int = 1) -> Path:
        temporary = cache.temporary(VIDEO)
        temporary.write_bytes(data)
        return cache.adopt(temporary, VIDEO, hashlib.sha256(data).hexdigest(), as_of=as_of)

    def test_one_is_found_by_size_and_name(self, cache: RangeCache) -> None:
        path = self.adopted(cache, b"film")
        assert cache.find(VIDEO, path.name, size_bytes=4) == path
        path.write_bytes(b"fil")
        assert cache.find(VIDEO, path.name, size_bytes=4) is None
        assert not path.exists()

    def test_one_above_the_budget_takes_the_place_of_all(self, tmp_path: Path) -> None:
        cache = RangeCache(tmp_path / "originals", budget_bytes=2_000)
        first = self.adopted(cache, bytes(1_500))
        second = self.adopted(cache, bytes(3_000))
        assert (first.exists(), second.exists()) == (False, True)

    def test_one_in_use_is_not_evicted(self, tmp_path: Path) -> None:
        cache = RangeCache(tmp_path / "originals", budget_bytes=0)

        def adopted(name: str) -> Path:
            temporary = cache.temporary(VIDEO)
            temporary.write_bytes(b"film")
            return cache.adopt(temporary, VIDEO, name * 64, as_of=3)

        first = adopted("1")
        with cache.in_use(first):
            second = adopted("2")
            third = adopted("3")
            assert (first.exists(), second.exists(), third.exists()) == (True, False, True)
        adopted("4")
        assert not first.exists()
        with pytest.raises(StoreError, match="cannot read"), cache.in_use(first):
            pass

    def test_one_of_an_erased_video_is_refused(self, cache: RangeCache) -> None:
        path = self.adopted(cache, b"film", as_of=3)
        cache.forget(VIDEO, erased_at=5)
        assert not path.exists()
        with pytest.raises(StoreError, match="erased meanwhile"):
            self.adopted(cache, b"film", as_of=4)
        assert [f.name for f in (cache.folder / VIDEO).iterdir()] == []
