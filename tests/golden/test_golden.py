"""Archives of every format version that was ever released open, are whole, and answer as they did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from nvpstore.archive import Archive
from nvpstore.errors import UsageError
from nvpstore.storage.checkpoints import list_checkpoints
from tests.conftest import open_micro
from tests.golden.make import expectations, frames, samples

GOLDEN = sorted(Path(__file__).parent.glob("format-*"))


@pytest.fixture(params=GOLDEN, ids=lambda folder: folder.name)
def golden(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


@pytest.fixture
def copied(golden: Path, tmp_path: Path) -> Path:
    shutil.copytree(golden / "archive", tmp_path / "archive")
    return tmp_path / "archive"


@pytest.fixture
def archive(copied: Path, tmp_path: Path) -> Archive:
    return open_micro(copied, tmp_path / "cache")


def expected(golden: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((golden / "expected.json").read_text(encoding="utf-8"))
    return found


def test_there_is_one_of_each_version() -> None:
    assert [folder.name for folder in GOLDEN] == ["format-1"]


def test_it_is_whole(archive: Archive) -> None:
    assert archive.verify(deep=True).damages == ()


def test_it_answers_as_it_did(archive: Archive, golden: Path) -> None:
    assert expectations(archive) == expected(golden)


def test_its_pictures_are_as_they_were(archive: Archive, golden: Path) -> None:
    wanted = np.asarray(Image.open(golden / "samples.png")).astype(int)
    found = samples(frames(archive, expected(golden)["video_id"])[1]).astype(int)
    assert found.shape == wanted.shape
    # Another processor sums in another order.
    assert np.abs(found - wanted).max() <= 1


def test_its_sound_comes_along(archive: Archive, golden: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mkv"
    archive.export(expected(golden)["video_id"], out, lossless=True)
    with av.open(str(out)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]


def test_it_is_the_same_without_its_checkpoint(copied: Path, tmp_path: Path, golden: Path) -> None:
    (checkpoint,) = (copied / "log").glob("checkpoint-*")
    checkpoint.unlink()
    archive = open_micro(copied, tmp_path / "cache")
    assert list_checkpoints(archive.store) == []
    assert expectations(archive) == expected(golden)


def test_what_was_erased_is_gone(archive: Archive, golden: Path, copied: Path) -> None:
    (erased,) = expected(golden)["erased"]
    with pytest.raises(UsageError):
        archive.show(erased)
    assert not any(erased in str(path) for path in copied.rglob("*"))


def test_this_release_can_add_to_it(archive: Archive, golden: Path) -> None:
    archive.tag(expected(golden)["video_id"], tags={"seen": "again"})
    assert archive.videos()[0]["tags"] == expected(golden)["tags"] | {"seen": "again"}
