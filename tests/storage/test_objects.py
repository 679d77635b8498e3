"""What holds for every store: put once, read what was put, and say clearly what went wrong."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nvpstore.errors import IntegrityError, ObjectExists, ObjectMissing, StoreError, UsageError
from nvpstore.storage.contract import PIECE_BYTES
from nvpstore.storage.keys import new_attempt
from nvpstore.storage.objects import ObjectStore, open_store

KINDS = ("path", "file", "memory", pytest.param("s3", marks=pytest.mark.s3))


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    folder = tmp_path / "a folder"
    if request.param == "s3":
        return open_store(str(request.getfixturevalue("s3_root")))
    roots = {"path": str(folder), "file": folder.as_uri(), "memory": f"memory://{new_attempt()}/a"}
    return open_store(roots[request.param])


def test_what_is_put_is_what_is_got(store: ObjectStore) -> None:
    obj = store.put("videos/x/1.bin", b"0123456789")
    assert (obj.key, obj.size_bytes) == ("videos/x/1.bin", 10)
    assert obj.sha256 == hashlib.sha256(b"0123456789").hexdigest()
    assert store.get(obj.key) == store.get_verified(obj) == b"0123456789"
    assert store.get_range(obj.key, 3, 4) == b"3456"
    assert store.get_range(obj.key, 3, 0) == b""
    assert store.size(obj.key) == 10
    assert store.exists(obj.key)
    assert store.put("empty", b"").size_bytes == store.size("empty") == 0
    assert store.get("empty") == b""


def test_an_object_is_never_overwritten(store: ObjectStore) -> None:
    store.put("a/b", b"first")
    for other in (b"", b"firs", b"First", b"first!"):
        with pytest.raises(ObjectExists, match="a/b exists in"):
            store.put("a/b", other)
    store.put("empty", b"")
    with pytest.raises(ObjectExists):
        store.put("empty", b"x")
    assert store.get("a/b") == b"first"


def test_equal_bytes_put_twice_are_one_put(store: ObjectStore) -> None:
    assert store.put("a/b", b"first") == store.put("a/b", b"first")
    assert store.put("empty", b"") == store.put("empty", b"")
    assert store.list() == ["a/b", "empty"]


def test_files_are_put_and_got_like_bytes(store: ObjectStore, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    data = os.urandom(PIECE_BYTES + 3)
    source.write_bytes(data)
    obj = store.put_file("sources/x", source)
    assert obj == store.put_file("sources/x", source) == store.put("sources/x", data)
    assert obj.sha256 == hashlib.sha256(data).hexdigest()
    assert store.get(obj.key) == data
    back.write_bytes(b"what was there")
    store.get_file(obj, back)
    assert back.read_bytes() == data
    source.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ObjectExists):
        store.put_file("sources/x", source)
    with pytest.raises(StoreError, match=r"^cannot read .*nothing: No such file"):
        store.put_file("y", tmp_path / "nothing")


def test_a_file_is_replaced_only_by_what_was_committed(store: ObjectStore, tmp_path: Path) -> None:
    back = tmp_path / "back"
    back.write_bytes(b"old")
    obj, empty = store.put("a", b"0123456789"), store.put("e", b"")
    for wrong in (replace(obj, sha256="0" * 64), replace(obj, size_bytes=11), replace(empty, key="a")):
        with pytest.raises(IntegrityError, match=r"^a in "):
            store.get_file(wrong, back)
    with pytest.raises(ObjectMissing):
        store.get_file(replace(obj, key="b"), back)
    with pytest.raises(StoreError, match="cannot write"):
        store.get_file(obj, tmp_path / "no" / "back")
    assert back.read_bytes() == b"old"
    store.get_file(empty, back)
    assert back.read_bytes() == b""
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"back"}


def test_missing_objects_are_named(store: ObjectStore) -> None:
    for read in (store.get, store.size, lambda key: store.get_range(key, 0, 1)):
        with pytest.raises(ObjectMissing, match="a/b is missing in"):
            read("a/b")
    assert not store.exists("a/b")
    store.put("a/b/c", b"")
    assert not store.exists("a/b")


def test_listing_is_sorted_by_prefix_and_never_stale(store: ObjectStore) -> None:
    assert store.list() == store.list("log/") == []
    for key in ("log/2", "log/10", "log/1/a", "videos/x/1", "logs"):
        store.put(key, b"")
    assert store.list() == ["log/1/a", "log/10", "log/2", "logs", "videos/x/1"]
    assert store.list("log/") == ["log/1/a", "log/10", "log/2"]
    assert store.list("log/1") == ["log/1/a", "log/10"]
    assert store.list("log/10") == ["log/10"]
    assert store.list("log/10/") == store.list("nothing/") == store.list("x") == []
    assert store.list("lo") == ["log/1/a", "log/10", "log/2", "logs"]
    store.put("log/3", b"")
    store.delete("log/2")
    store.delete("log/2")
    assert store.list("log/") == ["log/1/a", "log/10", "log/3"]


def test_many_are_deleted_and_missing_ones_are_no_error(store: ObjectStore) -> None:
    for key in ("a", "b/c", "d e/ü"):
        store.put(key, b"")
    store.delete_all(["a", "nothing", "b/c", "d e/ü"])
    store.delete_all([])
    assert store.list() == []


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
    for use in (store.get, store.size, store.delete, lambda key: store.put(key, b"")):
        with pytest.raises(StoreError, match="is no key"):
            use(key)
    with pytest.raises(StoreError, match="is no key"):
        store.delete_all([key])


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


def test_racing_puts_of_equal_bytes_all_succeed(store: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: store.put("a/b", b"same").sha256, range(32)))) == 1


def test_sweeping_touches_no_object(store: ObjectStore) -> None:
    store.put("a/b", b"x")
    assert store.sweep_unfinished(before=datetime.now(UTC) + timedelta(days=1)) == 0
    assert store.list() == ["a/b"]


@pytest.mark.parametrize("root", ["", "  ", "file://host/x", "file://x"])
def test_roots_that_cannot_be_are_refused(root: str) -> None:
    with pytest.raises((UsageError, StoreError)):
        open_store(root)


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
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fromtheenvironment")
    store = open_store("memory://u:hunter2pass@b/x", storage_options={"secret": "verysecretvalue"})

    def fail(*args: object, **options: object) -> bytes:
        raise RuntimeError("denied for\nverysecretvalue, fromtheenvironment at https://u:x@h/x?sig=1234 now")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.cat_file", fail)
    with pytest.raises(StoreError) as caught:
        store.get("a")
    assert str(caught.value) == "cannot read a in memory://b/x: denied for ***, *** at https://h/x now"
    assert caught.value.__cause__ is None


def test_a_secret_further_down_the_chain_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store("memory://b/x", storage_options={"secret": "verysecretvalue"})

    def fail(*args: object, **options: object) -> bytes:
        raise RuntimeError("denied") from ValueError("verysecretvalue")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.cat_file", fail)
    with pytest.raises(StoreError, match="denied") as caught:
        store.get("a")
    assert caught.value.__cause__ is None
