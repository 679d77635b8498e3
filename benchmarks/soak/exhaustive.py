"""`python -m benchmarks.soak protocol`: every interleaving and every crash point of all scenarios.

What is tried and what must hold is said in benchmarks.soak.protocol. With a scale below one, that share of a
million states, drawn by the seed.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from benchmarks.soak.outcome import Options, Outcome
from benchmarks.soak.protocol import SCENARIOS, Scenario, explore

SAMPLED_STATES = 1_000_000


def run(options: Options) -> Outcome:
    broken: list[str] = []
    scenarios = {scenario.name: _explored(scenario, options, broken) for scenario in SCENARIOS}
    return Outcome(
        question="does any interleaving or crash of two writers, gc and an eraser break the protocol?",
        figures={"exhaustive": options.scale >= 1, "scenarios": scenarios},
        broken=tuple(broken),
    )


def _explored(scenario: Scenario, options: Options, broken: list[str]) -> dict[str, Any]:
    started = time.monotonic()
    figures: dict[str, Any] = {}
    try:
        if options.scale >= 1:
            figures = asdict(explore(scenario))
        else:
            most = options.count(SAMPLED_STATES)
            figures = asdict(explore(scenario, most_states=most, seed=options.seed))
    except AssertionError as error:
        broken.append(str(error))
    return {**figures, "seconds": round(time.monotonic() - started, 1)}
