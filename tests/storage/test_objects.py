"""Stores: put once, read what was put, and say clearly what went wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from nvpstore.errors import IntegrityError, ObjectExists, ObjectMissing, StoreError, UsageError
from nvpstore.storage.contract import TEMPORARY_PREFIX
from nvpstore.storage.keys import new_attempt
from nvpstore.storage.objects import ObjectStore, open_store

KINDS = ("path", "file", "memory")


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    folder = tmp_path / "a folder"
    roots = {"path": str(folder), "file": folder.as_uri(), "memory": f"memory://{new_attempt()}/a"}
    return open_store(roots[request.param])


def test_what_is_put_is_what_is_got(store: ObjectStore) -> None:
    obj = store.put("videos/x/1.bin", b"0123456789")
    assert (obj.key, obj.size_bytes) == ("videos/x/1.bin", 10)
    assert store.get(obj.key) == store.get_verified(obj) == b"0123456789"
    assert store.get_range(obj.key, 3, 4) == b"3456"
    assert store.size(obj.key) == 10
    assert store.exists(obj.key)
    assert store.put("empty", b"").size_bytes == store.size("empty") == 0


def test_an_object_is_never_overwritten(store: ObjectStore) -> None:
    store.put("a/b", b"first")
    with pytest.raises(ObjectExists, match="a/b exists in"):
        store.put("a/b", b"second")
    assert store.get("a/b") == b"first"


def test_missing_objects_are_named(store: ObjectStore) -> None:
    for read in (store.get, store.size, lambda key: store.get_range(key, 0, 1)):
        with pytest.raises(ObjectMissing, match="a/b is missing in"):
            read("a/b")
    assert not store.exists("a/b")
    store.put("a/b/c", b"")
    assert not store.exists("a/b")


def test_listing_is_sorted_by_prefix_and_never_stale(store: ObjectStore) -> None:
    assert store.list() == store.list("log/") == []
    for key in ("log/2", "log/10", "videos/x/1", "logs"):
        store.put(key, b"")
    assert store.list() == ["log/10", "log/2", "logs", "videos/x/1"]
    assert store.list("log/") == ["log/10", "log/2"]
    assert store.list("log/1") == ["log/10"]
    assert store.list("nothing/") == []
    store.put("log/3", b"")
    store.delete("log/2")
    store.delete("log/2")
    assert store.list("log/") == ["log/10", "log/3"]


@pytest.mark.parametrize(("offset", "size"), [(8, 3), (10, 1), (50, 5)])
def test_a_short_read_is_an_integrity_error(store: ObjectStore, offset: int, size: int) -> None:
    store.put("a", b"0123456789")
    with pytest.raises(
        IntegrityError, match=f"a in .* ends early: {size} bytes asked for at offset {offset}"
    ):
        store.get_range("a", offset, size)


def test_bytes_that_differ_from_their_digest_are_noticed(store: ObjectStore) -> None:
    obj = store.put("a", b"0123456789")
    store.delete("a")
    store.put("a", b"0123456780")
    with pytest.raises(IntegrityError, match=r"^a in .* SHA-256"):
        store.get_verified(obj)
    with pytest.raises(IntegrityError, match="has 10 bytes; 11 were committed"):
        store.get_verified(replace(obj, size_bytes=11))


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/./b"])
def test_keys_that_could_leave_the_root_are_refused(store: ObjectStore, key: str) -> None:
    with pytest.raises(StoreError, match="is no key"):
        store.put(key, b"")


def test_one_of_many_racing_puts_wins(store: ObjectStore) -> None:
    def put(n: int) -> int:
        try:
            store.put("log/1", f"writer {n}".encode())
        except ObjectExists:
            return 0
        return n + 1

    with ThreadPoolExecutor(8) as pool:
        winners = [n for n in pool.map(put, range(32)) if n]
    assert len(winners) == 1
    assert store.get("log/1") == f"writer {winners[0] - 1}".encode()


def test_only_local_stores_have_paths(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("a/b", b"x")
    path = store.local_path("a/b")
    assert path is not None
    assert Path(path).read_bytes() == b"x"
    assert open_store("memory://x").local_path("a/b") is None


def test_files_on_their_way_are_no_objects(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("a/b", b"x")
    (tmp_path / "a" / f"{TEMPORARY_PREFIX}01").write_bytes(b"half")
    assert store.list() == ["a/b"]
    assert len(list((tmp_path / "a").iterdir())) == 2


@pytest.mark.parametrize("root", ["", "  ", "file://host/x", "file://x"])
def test_roots_that_cannot_be_are_refused(root: str) -> None:
    with pytest.raises((UsageError, StoreError)):
        open_store(root)


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"^cannot write b in .*: the disk is full$"):
        store.put("b", b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_the_system_cuts_short_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from nvpstore.storage.objects import open_store;"
        "from nvpstore.errors import StoreError;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "store = open_store(sys.argv[1])\n"
        "try: store.put('a', bytes(5000))\n"
        "except StoreError as error: print(error)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("cannot write a in ")
    assert found.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_places_that_take_no_files_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (str(tmp_path / "file"), "/proc/nvpstore-archive"):
        with pytest.raises(StoreError, match=r"^cannot write a in ") as caught:
            open_store(root).put("a", b"x")
        assert "\n" not in str(caught.value)


def test_messages_never_show_credentials() -> None:
    options = {"key": "AKIASECRETKEY", "client_kwargs": {"secret": "verysecretvalue"}}
    store = open_store("memory://user:hunter2pass@bucket/x?token=abcdef", storage_options=options)
    assert store.root == "memory://bucket/x"
    with pytest.raises(ObjectMissing) as caught:
        store.get("a")
    assert "hunter2pass" not in str(caught.value)
    with pytest.raises(StoreError) as caught_too:
        open_store("nosuchscheme://user:hunter2pass@bucket/x")
    assert "hunter2pass" not in str(caught_too.value)
    assert caught_too.value.__cause__ is None


def test_library_errors_are_redacted_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store("memory://u:hunter2pass@b/x", storage_options={"secret": "verysecretvalue"})

    def fail(*args: object, **options: object) -> bytes:
        raise RuntimeError("denied for\nverysecretvalue at https://u:hunter2pass@h/x?sig=1234 now")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.cat_file", fail)
    with pytest.raises(StoreError) as caught:
        store.get("a")
    assert str(caught.value) == "cannot read a in memory://b/x: denied for *** at https://h/x now"
    assert caught.value.__cause__ is None
