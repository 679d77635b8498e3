"""Weights as files: the archive's own, or fetched once a machine, whoever asks and however often."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from nvpstore.errors import IntegrityError, StoreError, TaskError
from nvpstore.storage import keys
from nvpstore.storage.contract import TEMPORARY_PREFIX, ObjectStore
from nvpstore.storage.objects import open_store
from nvpstore.storage.weights import keep_weights, weights_file

DATA = b"tensors" * 1000


@dataclass(frozen=True)
class Task:
    name: str = "signs"
    version: str = "a" * 64
    weights_sha256: str = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def far() -> ObjectStore:
    """A store whose objects are no local files."""
    store = open_store(f"memory://{keys.new_attempt()}")
    store.put(keys.task_weights_key(Task().name, Task().version), DATA)
    return store


def test_a_local_archives_own_file_is_used(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "archive"))
    with pytest.raises(
        TaskError, match=r"signs@aaaaaaaa: its weights are neither in a package nor in .*archive"
    ):
        weights_file(store, Task(), folder=tmp_path / "cache")
    store.put(keys.task_weights_key("signs", "a" * 64), DATA)
    found = weights_file(store, Task(), folder=None)
    assert (found.is_relative_to(tmp_path / "archive"), found.read_bytes()) == (True, DATA)
    assert not (tmp_path / "cache").exists()


def test_what_is_far_away_is_fetched_once(
    far: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = weights_file(far, Task(), folder=tmp_path / "weights")
    assert found == tmp_path / "weights" / f"{Task().weights_sha256}.safetensors"
    assert found.read_bytes() == DATA
    monkeypatch.setattr(far, "get_file", None)  # nobody calls it again
    assert weights_file(far, Task(), folder=tmp_path / "weights") == found


def test_a_damaged_file_is_fetched_again_and_left_overs_go(far: ObjectStore, tmp_path: Path) -> None:
    found = weights_file(far, Task(), folder=tmp_path)
    found.write_bytes(b"damaged")
    left = tmp_path / f"{TEMPORARY_PREFIX}01"
    left.write_bytes(b"a killed process's")
    assert weights_file(far, Task(), folder=tmp_path).read_bytes() == DATA
    assert not left.exists()


def test_those_who_ask_at_once_fetch_it_once(
    far: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, fetched = far.get_file, []

    def counted(obj: object, path: Path) -> None:
        fetched.append(path)
        fetch(obj, path)  # type: ignore[arg-type]

    monkeypatch.setattr(far, "get_file", counted)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(weights_file(far, Task(), folder=tmp_path)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(found), len(set(found)), len(fetched)) == (6, 1, 1)


def test_other_bytes_than_the_task_names_are_no_weights(far: ObjectStore, tmp_path: Path) -> None:
    other = Task(weights_sha256="0" * 64)
    with pytest.raises(IntegrityError):
        weights_file(far, other, folder=tmp_path)
    assert list(tmp_path.glob("*.safetensors")) == []


def test_what_is_nowhere_is_said(far: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="neither in a package nor in memory:"):
        weights_file(far, Task(name="faces"), folder=tmp_path)
    with pytest.raises(TaskError, match="no cache folder"):
        weights_file(far, Task(), folder=None)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot write to"):
        weights_file(far, Task(), folder=tmp_path / "file")


def test_what_is_about_to_be_stored_lies_there_by_its_digest(tmp_path: Path) -> None:
    path = keep_weights(tmp_path / "weights", DATA)
    assert (path.stem, path.read_bytes()) == (Task().weights_sha256, DATA)
    before = path.stat().st_mtime_ns
    assert keep_weights(tmp_path / "weights", DATA) == path
    assert path.stat().st_mtime_ns == before
