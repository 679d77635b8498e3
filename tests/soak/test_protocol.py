"""Part of the simulation: as many states of every scenario as a test run has time for."""

from __future__ import annotations

import pytest

from benchmarks.soak.protocol import SCENARIOS, Scenario, explore

pytestmark = pytest.mark.slow

STATES = 200_000


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_no_schedule_breaks_an_invariant(scenario: Scenario) -> None:
    explored = explore(scenario, most_states=STATES, seed=0)
    assert explored.states == STATES or explored.complete
    assert explored.outcomes
