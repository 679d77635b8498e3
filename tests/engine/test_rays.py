"""The Ray engine: the same promises, on a Ray of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nvpstore.engine.rays import RayEngine
from nvpstore.errors import UsageError, WorkerLost
from tests.engine.test_local import die_always, die_once, double, fail_at_three

pytestmark = pytest.mark.slow  # starts Ray


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    import ray  # only where it is tested

    root = Path(__file__).resolve().parents[2]
    ray.shutdown()  # of another file's, which began when it was first used
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(root)}},
    )
    yield ray
    ray.shutdown()


def test_every_item_is_done(ray: Any) -> None:
    assert sorted(RayEngine(2).run(double, range(7))) == [0, 2, 4, 6, 8, 10, 12]
    assert list(RayEngine(2).run(double, [])) == []


def test_what_work_raises_is_raised(ray: Any) -> None:
    with pytest.raises(UsageError, match="three is not allowed"):
        list(RayEngine(2).run(fail_at_three, range(6)))


def test_a_lost_worker_is_replaced(ray: Any, tmp_path: Path) -> None:
    done = list(RayEngine(2).run(partial(die_once, str(tmp_path)), range(5)))
    assert sorted(done) == [0, 1, 2, 3, 4]


def test_work_that_kills_its_workers_is_given_up(ray: Any) -> None:
    with pytest.raises(WorkerLost):
        list(RayEngine(1).run(die_always, [1]))
