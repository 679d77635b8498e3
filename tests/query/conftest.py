"""The index that all query tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.query.archive_fixture import FixtureSnapshot, build_index


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> FixtureSnapshot:
    path: Path = tmp_path_factory.mktemp("index") / "index.duckdb"
    return build_index(path)
