"""Trying again: what passes, until a deadline, and nothing else."""

from __future__ import annotations

import time

import pytest

from nvpstore.storage.retries import GivenUp, persistently


class Flaky:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def _run(action: Flaky, *, deadline_seconds: float = 30.0) -> str:
    return persistently(
        action,
        is_transient=lambda error: isinstance(error, ConnectionError),
        deadline_seconds=deadline_seconds,
    )


def test_what_passes_is_tried_until_it_has_passed() -> None:
    action = Flaky(ConnectionError(), ConnectionResetError())
    assert _run(action) == "done"
    assert action.calls == 3


def test_what_stays_is_raised_at_once() -> None:
    action = Flaky(ValueError("wrong"), ConnectionError())
    with pytest.raises(ValueError, match="wrong"):
        _run(action)
    assert action.calls == 1


def test_the_deadline_ends_it_with_the_last_error() -> None:
    action = Flaky(*(ConnectionError(str(n)) for n in range(1000)))
    begun = time.monotonic()
    with pytest.raises(GivenUp) as caught:
        _run(action, deadline_seconds=1.0)
    assert time.monotonic() - begun < 1.2
    assert caught.value.attempts == action.calls > 1
    assert caught.value.seconds <= 1.1
    assert str(caught.value.last) == str(action.calls - 1)
