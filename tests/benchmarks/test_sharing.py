"""The benchmark of sharing runs, on the smallest networks."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.drawn import Shape, draw_archive
from benchmarks.sharing import (
    GROUPED_SEGMENTS,
    PAIRED,
    TASKS,
    Session,
    measure_grouped,
    measure_predicates,
    measure_stages,
    settings_in,
)

SHAPE = Shape(preset="micro", height=96, width=144, segments=2, frames=8, tasks=TASKS)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder: Path = tmp_path_factory.mktemp("drawn")
    session = Session(root=str(folder / "archive"), settings=settings_in(folder / "cache", 2))
    draw_archive(session.root, SHAPE)
    return session


@pytest.mark.slow
def test_each_frame_is_decoded_once_for_eight_queries(session: Session) -> None:
    found = measure_predicates(session, repeats=1)
    assert found["most_decodes_of_a_frame"] == 1
    assert found["rows_equal"]


@pytest.mark.slow
def test_four_tasks_share_each_decode(session: Session) -> None:
    assert measure_stages(session, repeats=1)["most_decodes_of_a_frame"] == 1


def test_grouped_decodes_are_those_of_each_segment() -> None:
    for row in measure_grouped(SHAPE, repeats=1):
        assert row["segments"] == GROUPED_SEGMENTS
        assert row["error"] < 1e-5


def test_predicates_are_of_both_tasks() -> None:
    assert all(name in PAIRED for name in ("shallow", "middle"))
