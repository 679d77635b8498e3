"""A server with the archive of the fixture `micro`, and a clip that is only added."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import nvpstore
from tests.serving import Serving

if TYPE_CHECKING:
    from nvpstore.archive import Archive
    from nvpstore.client.remote import RemoteArchive
    from tests.conftest import Micro

ADDED = "added clip"


@pytest.fixture(scope="session")
def served_root(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, since tests change what the server has."""
    root = tmp_path_factory.mktemp("served") / "archive"
    assert isinstance(micro.root, Path)
    shutil.copytree(micro.root, root)
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
