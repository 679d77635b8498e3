"""A server with the golden archive, which has one fitted video, and a clip that is only added."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import nvpstore
from nvpstore.config import load_settings
from tests.api.conftest import write_clip
from tests.serving import Serving

if TYPE_CHECKING:
    from nvpstore.archive import Archive
    from nvpstore.client.remote import RemoteArchive

GOLDEN = Path(__file__).parents[1] / "golden/format-1/archive"


@pytest.fixture(scope="session")
def served_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, since tests change what the server has."""
    root = tmp_path_factory.mktemp("served") / "archive"
    shutil.copytree(GOLDEN, root)
    clip = tmp_path_factory.mktemp("added") / "square.mp4"
    write_clip(clip, frames=12)
    settings = load_settings({"NVP_CACHE": str(root.parent / "cache")})
    nvpstore.open(root, settings=settings).add(clip, keep_source="copy")
    return root


@pytest.fixture(scope="session")
def served(served_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with Serving(served_root, tmp_path_factory.mktemp("server"), workers=1) as server:
        yield server


@pytest.fixture
def remote(served: Serving) -> Iterator[RemoteArchive]:
    with nvpstore.connect(served.url) as archive:
        yield archive


@pytest.fixture
def local(served_root: Path) -> Archive:
    """The same archive, opened by this process."""
    return nvpstore.open(served_root)
