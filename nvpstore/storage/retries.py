"""Trying again: what passes is repeated, with growing random pauses, until a deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryError, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

T = TypeVar("T")

# No request is begun later than this after its first attempt; the last one may take its time-outs longer.
DEADLINE_SECONDS = 60.0

_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0


class GivenUp(Exception):
    """An action failed for as long as it was tried; `last` is its last error."""

    def __init__(self, last: BaseException, *, attempts: int, seconds: float) -> None:
        super().__init__(f"{last} (given up after {attempts} attempts in {seconds:.0f} s)")
        self.last = last
        self.attempts = attempts
        self.seconds = seconds


def persistently(
    action: Callable[[], T], *, is_transient: Callable[[BaseException], bool], deadline_seconds: float
) -> T:
    """The result of `action`, which is repeated while it raises what `is_transient`.

    Raises its own error where that is not transient, and GivenUp at the deadline.
    """
    # Pauses are random from nothing up: those whom one fault hit do not come back all at once.
    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        wait=wait_random_exponential(multiplier=_FIRST_PAUSE_SECONDS, max=_LONGEST_PAUSE_SECONDS),
        stop=stop_before_delay(deadline_seconds),
    )
    try:
        return retrying(action)
    except RetryError as error:
        last = error.last_attempt.exception()
        assert last is not None
        raise GivenUp(
            last,
            attempts=error.last_attempt.attempt_number,
            seconds=float(retrying.statistics.get("delay_since_first_attempt", 0.0)),
        ) from last
