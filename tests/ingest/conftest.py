"""An empty archive for what is written to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvpstore.archive import Archive
from tests.conftest import open_micro


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    """Once as files and once on a real S3 server."""
    root = request.getfixturevalue("s3_root") if request.param == "s3" else tmp_path / "archive"
    return open_micro(root, tmp_path / "cache", create=True)
