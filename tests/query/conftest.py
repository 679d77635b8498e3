"""The index that all query tests read, and a real archive with a task of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.query.archive_fixture import FixtureSnapshot, build_index

if TYPE_CHECKING:
    from tests.query.kinds import Kinds


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> FixtureSnapshot:
    path: Path = tmp_path_factory.mktemp("index") / "index.duckdb"
    return build_index(path)


@pytest.fixture(scope="session")
def all_kinds(tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    from nvpstore.codec.build import Preset
    from tests.query.kinds import FACTORIES, few_threads, make  # torch: tests of planning do without

    with pytest.MonkeyPatch.context() as patch, few_threads():
        patch.setenv("NVP_FACTORIES", FACTORIES)
        patch.setattr(Preset, "epochs_for", lambda *_, **__: 2)  # what is seen of the video does not matter
        return make(tmp_path_factory.mktemp("kinds"))


@pytest.fixture
def kinds(all_kinds: Kinds) -> Iterator[Kinds]:
    """Tests only read it."""
    from tests.query.kinds import few_threads

    with few_threads():
        yield all_kinds
