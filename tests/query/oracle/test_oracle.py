"""Generated queries, each answered by the engine and by plain DuckDB on tables that hold every row."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.query.oracle.compare import assert_same, assert_some
from tests.query.oracle.making import Maker
from tests.query.oracle.reading import READING
from tests.query.oracle.shaping import SHAPING
from tests.query.oracle.world import Case, World

CONSTRUCTS = {**READING, **SHAPING}
EACH = 20
SEED = 20261121


def cases(construct: str, count: int) -> list[Case]:
    """`count` different queries, the same ones in every run."""
    maker = Maker(SEED + list(CONSTRUCTS).index(construct))
    found: dict[str, Case] = {}
    while len(found) < count:
        case = dataclasses.replace(CONSTRUCTS[construct](maker), construct=construct)
        found.setdefault(f"{case.text} {case.params} {case.views}", case)
    return list(found.values())


CASES = [(f"{name}-{n}", case) for name in CONSTRUCTS for n, case in enumerate(cases(name, EACH))]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("oracle"))
    yield made
    made.close()


@pytest.mark.parametrize("case", [case for _, case in CASES], ids=[name for name, _ in CASES])
def test_rows_are_those_of_plain_duckdb(world: World, case: Case) -> None:
    found = world.by_engine(case.text, case)
    if case.check == "some":
        full = world.by_duckdb(case.full, case)
        assert_some(found, full, count=len(world.by_duckdb(case.text, case)))
        return
    assert_same(found, world.by_duckdb(case.text, case), ordered=case.check == "ordered")


def test_most_answers_hold_rows(world: World) -> None:
    filled = Counter(case.construct for _, case in CASES if world.by_duckdb(case.full or case.text, case))
    assert min(filled[name] for name in CONSTRUCTS) >= EACH // 3
    assert sum(filled.values()) >= 0.75 * len(CASES)


def test_every_construct_is_asked_often(capsys: pytest.CaptureFixture[str]) -> None:
    counts = Counter(case.construct for _, case in CASES)
    with capsys.disabled():
        print(f"\n{len(CASES)} queries: " + ", ".join(f"{name} {n}" for name, n in counts.items()))
    assert len(CASES) >= 300
    assert min(counts.values()) >= 15
