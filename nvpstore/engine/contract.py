"""What every engine does: calls of one function on many values, by several workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item", contravariant=True)
Done = TypeVar("Done")

MOST_TRIES = 3  # of one value, where the worker is lost


class Engine(Protocol):
    """Runs `work` on each of `items`; gives what it returns as it comes, in any order.

    `work` can be pickled, and may be called twice on one item where a worker was lost. Raises what `work`
    raises, and WorkerLost where a worker ended MOST_TRIES times on one item. Nothing runs any more once the
    iterator is closed.
    """

    def run(self, work: Callable[[Item], Done], items: Sequence[Item]) -> Iterator[Done]: ...
