"""What every engine does: calls of one function on many values, by several workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")

MOST_TRIES = 3  # of one value, where the worker is lost
BACKGROUND = 10  # nice level of workers that let what people wait for go first


class Engine(Protocol):
    """Runs `work` on each of `items`; gives what it returns as it comes, in any order.

    Items are begun in their order, one at a time by each worker. `work` can be pickled, and may be called
    twice on one item where a worker was lost. Raises what `work` raises. Where a worker ended MOST_TRIES
    times on one item, `lost` of that item stands for it, and the others go on; without `lost`, WorkerLost is
    raised. Nothing runs any more once the iterator is closed.
    """

    def run(
        self,
        work: Callable[[Item], Done],
        items: Sequence[Item],
        *,
        lost: Callable[[Item], Done] | None = None,
    ) -> Iterator[Done]: ...
