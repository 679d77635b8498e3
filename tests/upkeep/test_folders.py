"""Which files an input names: oracles are the trees that the tests write."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from nvpstore.errors import SourceError, UsageError
from nvpstore.storage.keys import new_attempt
from nvpstore.storage.objects import open_store
from nvpstore.storage.remote import FsspecStore
from nvpstore.upkeep.folders import RemoteVideo, at_hand, expand

TREE = (
    "b.mp4", "a.MKV", "notes.txt", "day 1/c.mov", "day 1/deep/d.ts", ".hidden.mp4", ".trash/e.mp4",
    "day 2/f.webm", "day 2/g[1].mp4", "day 2/.h.mp4",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "clips"
    for name in TREE:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


@pytest.fixture
def prefix() -> str:
    """The same tree in memory, beside another prefix that begins alike."""
    root = f"memory://{new_attempt()}/clips"
    store = open_store(root)
    for name in TREE:
        store.put(name, name.encode())
    open_store(root + "2").put("other.mp4", b"other")
    return root


def names(root: Path | str, inputs: Iterable[str]) -> list[str]:
    return [str(video).removeprefix(f"{root}/") for video in expand(inputs)]


EVERYTHING = ["a.MKV", "b.mp4", "day 1/c.mov", "day 1/deep/d.ts", "day 2/f.webm", "day 2/g[1].mp4"]
GLOBS = [
    ("*.mp4", ["b.mp4"]),
    ("?.mp4", ["b.mp4"]),
    ("[ab].*", ["a.MKV", "b.mp4"]),
    ("**/*.mp4", ["b.mp4", "day 2/g[1].mp4"]),
    ("day ?", ["day 1/c.mov", "day 1/deep/d.ts", "day 2/f.webm", "day 2/g[1].mp4"]),
    ("day */*.webm", ["day 2/f.webm"]),
    ("**", EVERYTHING),
]


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_is_all_videos_below_it(folder: Path, slash: str) -> None:
    assert names(folder, [f"{folder}{slash}"]) == EVERYTHING


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_prefix_is_all_videos_below_it(prefix: str, slash: str) -> None:
    assert names(prefix, [prefix + slash]) == EVERYTHING


@pytest.mark.parametrize(("pattern", "expected"), GLOBS)
def test_globs_name_the_same_here_and_there(
    folder: Path, prefix: str, pattern: str, expected: list[str]
) -> None:
    assert names(folder, [f"{folder}/{pattern}"]) == expected
    assert names(prefix, [f"{prefix}/{pattern}"]) == expected


def test_a_file_is_taken_whatever_it_is_called(folder: Path) -> None:
    assert names(folder, [f"{folder}/notes.txt"]) == ["notes.txt"]
    assert names(folder, [f"{folder}/day 2/g[1].mp4"]) == ["day 2/g[1].mp4"]
    assert names(folder, [(folder / "b.mp4").as_uri()]) == ["b.mp4"]


def test_a_missing_file_is_left_to_whoever_opens_it(folder: Path) -> None:
    assert names(folder, [f"{folder}/missing.mp4"]) == ["missing.mp4"]


def test_each_file_is_named_once_in_the_order_of_the_inputs(folder: Path) -> None:
    found = names(folder, [f"{folder}/day 2/f.webm", f"{folder}/*.mp4", str(folder)])
    assert found[:2] == ["day 2/f.webm", "b.mp4"]
    assert sorted(found) == EVERYTHING


@pytest.mark.parametrize("pattern", ["*.txt", "nothing/**", "day 1/deep/*.mp4"])
def test_an_input_that_names_nothing_says_what_was_looked_for(
    folder: Path, prefix: str, pattern: str
) -> None:
    for root in (str(folder), prefix):
        with pytest.raises(UsageError, match=r"no videos at .*\.mp4 \.mkv"):
            expand([f"{root}/{pattern}"])
    with pytest.raises(UsageError, match="no videos"):
        expand([f"{prefix}/missing.mp4"])


def test_a_remote_video_is_here_only_while_it_is_needed(prefix: str, tmp_path: Path) -> None:
    (video,) = expand([f"{prefix}/day 1/c.mov"])
    assert str(video) == f"{prefix}/day 1/c.mov"
    with at_hand(video, tmp_path / "incoming") as path:
        assert (path.name, path.read_bytes()) == ("c.mov", b"day 1/c.mov")
    assert not [found for found in (tmp_path / "incoming").rglob("*") if found.suffix != ".lock"]


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_stays(prefix: str, tmp_path: Path) -> None:
    left = tmp_path / "left-by-a-killed-one"
    left.mkdir()
    (left / "half.mp4").write_bytes(b"half")
    one, two = expand([f"{prefix}/b.mp4", f"{prefix}/a.MKV"])
    with at_hand(one, tmp_path) as first, at_hand(two, tmp_path) as second:
        assert first.exists()
        assert second.exists()
        assert not left.exists()


def test_a_remote_video_that_is_gone_is_said_by_its_uri(prefix: str, tmp_path: Path) -> None:
    (video,) = expand([f"{prefix}/b.mp4"])
    assert isinstance(video, RemoteVideo)
    video.store.delete(video.key)
    with pytest.raises(SourceError, match=r"b\.mp4 is gone"), at_hand(video, tmp_path):
        pass


def test_large_videos_pass_in_pieces(prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvpstore.upkeep.folders.PIECE_BYTES", 1000)
    data = bytes(range(256)) * 17
    open_store(prefix).put("long.mp4", data)
    whole: list[str] = []
    monkeypatch.setattr(FsspecStore, "get", lambda *_: whole.append("read whole"))
    (video,) = expand([f"{prefix}/long.mp4"])
    with at_hand(video, tmp_path) as path:
        assert path.read_bytes() == data
    assert not whole
