"""Originals: read where they lie, fetched once from afar, and never another file than was ingested."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nvpstore.errors import SourceError, StoreError
from nvpstore.storage import keys
from nvpstore.storage.local import LocalStore
from nvpstore.storage.objects import open_store
from nvpstore.storage.originals import local_original, original_file, write_original
from nvpstore.storage.range_cache import RangeCache
from tests.storage.counting import CountingStore

FILM = bytes(range(256)) * 40
SHA256 = hashlib.sha256(FILM).hexdigest()
VIDEO = SHA256[:32]
KEPT = keys.source_key(VIDEO, keys.new_attempt())


@dataclass(frozen=True, kw_only=True)
class Film:
    source_uri: str | None
    video_id: str = VIDEO
    name: str = "film.mp4"
    sha256: str = SHA256
    source_bytes: int = len(FILM)


@pytest.fixture
def far(tmp_path: Path) -> CountingStore:
    """An archive elsewhere that keeps a copy of the original."""
    store = LocalStore(tmp_path / "archive")
    store.put(KEPT, FILM)
    return CountingStore(store)


@pytest.fixture
def cache(tmp_path: Path) -> RangeCache:
    return RangeCache(tmp_path / "originals", budget_bytes=10**6)


@pytest.fixture
def referenced(tmp_path: Path) -> Film:
    path = tmp_path / "a film.mp4"
    path.write_bytes(FILM)
    return Film(source_uri=path.as_uri())


class TestNear:
    def test_a_referenced_file_is_read_where_it_lies(self, far: CountingStore, referenced: Film) -> None:
        path = original_file(far, referenced, cache=None, as_of=1)
        assert (path.name, path.read_bytes()) == ("a film.mp4", FILM)
        assert local_original(far, referenced) == path

    def test_so_is_a_local_archive_s_copy(self, far: CountingStore) -> None:
        path = original_file(far.inner, Film(source_uri=KEPT), cache=None, as_of=1)
        assert str(path) == far.inner.local_path(KEPT)

    def test_one_that_is_gone_is_named(self, far: CountingStore, referenced: Film) -> None:
        (path := original_file(far, referenced, cache=None, as_of=1)).unlink()
        with pytest.raises(SourceError, match=rf"film\.mp4 \({VIDEO}\) is not at hand: looked at file://.*"):
            original_file(far, referenced, cache=None, as_of=1)
        assert local_original(far, referenced) is None
        assert not path.exists()

    def test_one_of_another_size_is_refused(self, far: CountingStore, referenced: Film) -> None:
        original_file(far, referenced, cache=None, as_of=1).write_bytes(FILM + b"?")
        with pytest.raises(SourceError, match=r"not the file that was ingested: 10241 bytes, expected 10240"):
            original_file(far, referenced, cache=None, as_of=1)
        assert local_original(far, referenced) is None

    def test_one_that_was_not_kept_says_so(self, far: CountingStore, cache: RangeCache) -> None:
        with pytest.raises(SourceError, match="is not at hand: it was not kept"):
            original_file(far, Film(source_uri=None), cache=cache, as_of=1)


class TestFar:
    def test_it_is_fetched_once(self, far: CountingStore, cache: RangeCache) -> None:
        film = Film(source_uri=KEPT)
        path = original_file(far, film, cache=cache, as_of=1)
        assert path.read_bytes() == FILM
        requests = len(far.ranges)
        assert original_file(far, film, cache=cache, as_of=1) == path
        assert len(far.ranges) == requests
        assert path == cache.folder / VIDEO / SHA256
        assert [file.name for file in path.parent.iterdir()] == [SHA256]

    def test_a_reference_into_another_store_is_too(self, far: CountingStore, cache: RangeCache) -> None:
        folder = f"memory://films-{keys.new_attempt()}/2026"
        open_store(folder).put("gate.mp4", FILM)
        path = original_file(far, Film(source_uri=f"{folder}/gate.mp4"), cache=cache, as_of=1)
        assert path.read_bytes() == FILM
        assert far.ranges == []

    def test_without_a_cache_there_is_no_place_for_it(self, far: CountingStore) -> None:
        with pytest.raises(SourceError, match="no cache folder"):
            original_file(far, Film(source_uri=KEPT), cache=None, as_of=1)

    def test_one_that_is_gone_is_named(self, far: CountingStore, cache: RangeCache) -> None:
        for uri in (keys.source_key(VIDEO, keys.new_attempt()), "memory://nowhere/gate.mp4"):
            with pytest.raises(SourceError, match=f"is not at hand: looked at {uri}"):
                original_file(far, Film(source_uri=uri), cache=cache, as_of=1)
            assert cache.check() == ()

    @pytest.mark.parametrize("bytes_of_it", [FILM[:-1] + b"?", FILM[:-1], FILM + b"?"])
    def test_another_file_is_refused_and_not_kept(
        self, far: CountingStore, cache: RangeCache, bytes_of_it: bytes
    ) -> None:
        folder = f"memory://films-{keys.new_attempt()}"
        open_store(folder).put("gate.mp4", bytes_of_it)
        with pytest.raises(SourceError, match="is not the file that was ingested"):
            original_file(far, Film(source_uri=f"{folder}/gate.mp4"), cache=cache, as_of=1)
        assert list((cache.folder / VIDEO).iterdir()) == []

    def test_one_of_an_erased_video_does_not_stay(self, far: CountingStore, cache: RangeCache) -> None:
        original_file(far, Film(source_uri=KEPT), cache=cache, as_of=3)
        cache.forget(VIDEO, erased_at=4)
        with pytest.raises(StoreError, match="erased"):
            original_file(far, Film(source_uri=KEPT), cache=cache, as_of=3)
        assert [file for file in cache.folder.rglob(SHA256) if file.is_file()] == []


class TestWriting:
    @pytest.mark.parametrize("where", ["near", "far", "referenced"])
    def test_the_bytes_are_the_original_s(
        self, far: CountingStore, referenced: Film, tmp_path: Path, where: str
    ) -> None:
        film = referenced if where == "referenced" else Film(source_uri=KEPT)
        out = tmp_path / "out" / "film.mp4"
        out.parent.mkdir()
        write_original(far.inner if where == "near" else far, film, out)
        assert out.read_bytes() == FILM
        assert list(out.parent.iterdir()) == [out]

    def test_another_file_is_not_written(self, far: CountingStore, referenced: Film, tmp_path: Path) -> None:
        out = tmp_path / "out" / "film.mp4"
        out.parent.mkdir()
        with pytest.raises(SourceError, match="its SHA-256 differs"):
            write_original(far, replace(referenced, sha256="0" * 64), out)
        assert list(out.parent.iterdir()) == []

    def test_an_existing_file_stays(self, far: CountingStore, referenced: Film, tmp_path: Path) -> None:
        out = tmp_path / "mine.mp4"
        out.write_text("mine")
        with pytest.raises(StoreError, match=r"cannot write .*mine\.mp4: File exists"):
            write_original(far, referenced, out)
        assert out.read_text() == "mine"

    def test_a_folder_that_is_not_there_is_named(self, far: CountingStore, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match=r"none/film\.mp4"):
            write_original(far, Film(source_uri=KEPT), tmp_path / "none" / "film.mp4")
