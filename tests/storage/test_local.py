"""Local objects: durable, whole from the first moment, and nothing left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nvpstore.errors import ObjectExists, StoreError
from nvpstore.storage.contract import TEMPORARY_PREFIX
from nvpstore.storage.keys import first_attempt_at, new_attempt
from nvpstore.storage.objects import open_store


def _left_over(folder: Path, *, age: timedelta) -> Path:
    path = folder / (TEMPORARY_PREFIX + first_attempt_at(datetime.now(UTC) - age))
    path.write_bytes(b"half")
    return path


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
    assert store.list() == store.list("a/") == ["a/b"]
    assert len(list((tmp_path / "a").iterdir())) == 2


def test_a_listing_looks_only_where_its_keys_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    for key in ("log/1", "log/checkpoint-1", "log/other/x", "videos/aa/1", "videos/ab/1", "videos/b/1"):
        store.put(key, b"")
    scanned: list[str] = []
    scandir = os.scandir

    def note(path: Path) -> object:
        scanned.append(path.relative_to(tmp_path).as_posix())
        return scandir(path)

    monkeypatch.setattr(os, "scandir", note)
    assert store.list("log/checkpoint-") == ["log/checkpoint-1"]
    assert store.list("videos/a") == ["videos/aa/1", "videos/ab/1"]
    assert scanned == ["log", "videos", *sorted(scanned[2:])]
    assert sorted(scanned[2:]) == ["videos/aa", "videos/ab"]


def test_left_overs_are_swept_by_age_and_empty_folders_with_them(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "root"))
    for key in ("videos/x/1/a", "videos/x/2/a", "videos/y/1/a", "log/0"):
        store.put(key, b"")
    folder = tmp_path / "root" / "videos" / "x" / "1"
    old, new = _left_over(folder, age=timedelta(hours=3)), _left_over(folder, age=timedelta(hours=1))
    other = _left_over(tmp_path / "root" / "videos" / "y" / "1", age=timedelta(hours=3))
    strange = folder / f"{TEMPORARY_PREFIX}strange"
    strange.write_bytes(b"")
    before = datetime.now(UTC) - timedelta(hours=2)
    assert store.sweep_unfinished("videos/x/", before=before) == 1
    assert not old.exists()
    assert new.exists()
    assert other.exists()
    assert strange.exists()
    store.delete_all(["videos/x/2/a", "log/0"])
    assert store.sweep_unfinished(before=before) == 1
    folders = {path.relative_to(tmp_path / "root").as_posix() for path in (tmp_path / "root").rglob("*/")}
    assert {name for name in folders if (tmp_path / "root" / name).is_dir()} == {
        "videos", "videos/x", "videos/x/1", "videos/y", "videos/y/1"
    }  # fmt: skip
    assert store.list() == ["videos/x/1/a", "videos/y/1/a"]


def test_sweeping_never_removes_the_root(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "root"))
    now = datetime.now(UTC)
    assert store.sweep_unfinished(before=now) == store.sweep_unfinished("a/", before=now) == 0
    store.put("a", b"")
    store.delete("a")
    store.sweep_unfinished(before=now)
    assert (tmp_path / "root").is_dir()


def test_puts_and_sweeps_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    store, done = open_store(str(tmp_path)), threading.Event()

    def sweep() -> None:
        while not done.is_set():
            store.sweep_unfinished(before=datetime.now(UTC) - timedelta(hours=1))

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for n in range(300):
            store.put(f"videos/x/{n}/a", b"x")
            if n % 2:
                store.delete(f"videos/x/{n}/a")
    finally:
        done.set()
        sweeper.join()
    assert len(store.list("videos/x/")) == 150


def test_a_put_whose_temporary_file_was_swept_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, link = open_store(str(tmp_path)), os.link

    def swept(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        store.sweep_unfinished(before=datetime.now(UTC) + timedelta(hours=1))
        link(source, target)

    monkeypatch.setattr(os, "link", swept)
    store.put("a/b/c", b"x")
    assert store.get("a/b/c") == b"x"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "a" / "b" / "c"]


def _fail_with(code: int) -> Callable[[int], None]:
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("file", [False, True])
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: bool
) -> None:
    store = open_store(str(tmp_path / "root"))
    store.put("here", b"")
    source = tmp_path / "source"
    source.write_bytes(b"x")
    sync = os.fsync
    # Folders can be made, the file cannot.
    monkeypatch.setattr(os, "fsync", lambda fd: (sync if os.path.isdir(f"/proc/self/fd/{fd}") else full)(fd))
    full = _fail_with(errno.ENOSPC)
    with pytest.raises(StoreError, match=r"^cannot write b/c/d in .*: the disk is full$"):
        _ = store.put_file("b/c/d", source) if file else store.put("b/c/d", b"x")
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["here"]


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


def test_a_folder_in_the_way_is_not_overwritten(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("a/b", b"x")
    with pytest.raises(ObjectExists):
        store.put("a", b"x")
    with pytest.raises(StoreError, match="a part of the path is a file"):
        store.put("a/b/c", b"x")


def test_files_larger_than_memory_pass_in_pieces(tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    with source.open("wb") as file:
        file.truncate(120 * 2**20)
    code = (
        "import resource, sys; from pathlib import Path; from nvpstore.storage.objects import open_store\n"
        "store = open_store(sys.argv[1] + '/root'); store.put('warm', b'')\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 40 * 2**20,) * 2)\n"
        "obj = store.put_file(sys.argv[2], Path(sys.argv[1], 'source'))\n"
        "store.get_file(obj, Path(sys.argv[1], 'back'))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), new_attempt()], check=True)
    assert back.stat().st_size == 120 * 2**20
