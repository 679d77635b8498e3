"""Engines: every item is done, failures are told, lost workers are replaced."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from nvpstore.engine.choice import made_engine
from nvpstore.engine.contract import MOST_TRIES
from nvpstore.engine.local import HereEngine, ProcessEngine
from nvpstore.errors import UsageError, WorkerLost


def double(x: int) -> int:
    return 2 * x


def fail_at_three(x: int) -> int:
    if x == 3:
        raise UsageError("three is not allowed")
    return x


def die_once(folder: str, x: int) -> int:
    """Item 2's first worker ends without a word."""
    mark = Path(folder) / "died"
    if x == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def die_always(x: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return x


def whose(_: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("engine", [HereEngine(), ProcessEngine(2)], ids=["here", "processes"])
def test_every_item_is_done(engine: HereEngine | ProcessEngine) -> None:
    assert sorted(engine.run(double, range(7))) == [0, 2, 4, 6, 8, 10, 12]
    assert list(engine.run(double, [])) == []


@pytest.mark.parametrize("engine", [HereEngine(), ProcessEngine(2)], ids=["here", "processes"])
def test_what_work_raises_is_raised(engine: HereEngine | ProcessEngine) -> None:
    with pytest.raises(UsageError, match="three is not allowed"):
        list(engine.run(fail_at_three, range(6)))


def test_a_lost_worker_is_replaced(tmp_path: Path) -> None:
    done = list(ProcessEngine(2).run(partial(die_once, str(tmp_path)), range(5)))
    assert sorted(done) == [0, 1, 2, 3, 4]


def test_work_that_kills_its_workers_is_given_up() -> None:
    with pytest.raises(WorkerLost, match=f"{MOST_TRIES} times"):
        list(ProcessEngine(1).run(die_always, [1]))


def test_processes_are_not_this_one() -> None:
    assert os.getpid() not in set(ProcessEngine(2).run(whose, range(4)))
    assert set(HereEngine().run(whose, range(4))) == {os.getpid()}


def test_engines_have_names() -> None:
    assert isinstance(made_engine("local", workers=1), HereEngine)
    assert isinstance(made_engine("local", workers=3), ProcessEngine)
    with pytest.raises(UsageError, match="0 workers: at least 1"):
        made_engine("local", workers=0)
    with pytest.raises(UsageError, match="local, processes, ray are allowed"):
        made_engine("spark", workers=1)  # type: ignore[arg-type]
