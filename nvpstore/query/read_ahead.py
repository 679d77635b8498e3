"""What a plan's next steps will fetch, started while the present one is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, TypeVar

from nvpstore.errors import NvpError
from nvpstore.query.plan import Group, Key, Plan, Step, deepest
from nvpstore.types import ByteRange

STEPS_AHEAD = 4
WINDOW_STEPS = 64  # of which it is known at once which adapters they need
ADAPTER_BYTES = 16 << 20  # of one routes object, held until the last segment that needs one of them

T = TypeVar("T")
PlanStep = tuple[Step, list[Group]]


class Held(Protocol):
    """Bytes on their way or arrived, until they are dropped."""

    def drop(self) -> None:
        """Lets go of them; what was not begun never will be."""


class Fetching(Protocol):
    """The part of `steps.Operators` that reads ahead. `segment` is (video_id, segment, stage)."""

    def prefetch(
        self, snapshot: Any, *, segment: tuple[str, int, str] | None, adapters: tuple[ByteRange, ...]
    ) -> Held: ...


class _Nothing:
    def drop(self) -> None:
        pass


def ahead(
    items: Iterable[T], start: Callable[[T], Held], *, steps: int = STEPS_AHEAD
) -> Generator[T, None, None]:
    """`items`, each begun by `start` up to `steps` items before its turn and dropped after it."""
    begun: deque[tuple[T, Held]] = deque()
    try:
        for item in items:
            begun.append((item, start(item)))
            if len(begun) > steps:
                yield begun[0][0]
                begun.popleft()[1].drop()
        while begun:
            yield begun[0][0]
            begun.popleft()[1].drop()
    finally:
        for _, held in begun:
            held.drop()


def steps_ahead(
    plan: Plan, operators: Fetching, snapshot: Any, steps: Iterator[PlanStep]
) -> Generator[PlanStep, None, None]:
    """`steps` of `plan`; what the next ones fetch is on its way. Close it, and nothing more begins.

    A step without groups fetches nothing.
    """
    reading = _Reading(plan, operators, snapshot)
    try:
        yield from ahead(reading.announced(steps), reading.start)
    finally:
        reading.close()


class _Adapters:
    """Adapters of one routes object that a run of segments needs: read at once, dropped after the last."""

    def __init__(self) -> None:
        self.ranges: dict[ByteRange, None] = {}
        self.size_bytes = 0
        self.users = 0
        self.held: Held | None = None

    def add(self, wanted: ByteRange) -> None:
        """One more segment reads `wanted`."""
        self.users += 1
        if wanted not in self.ranges:
            self.ranges[wanted] = None
            self.size_bytes += wanted.size_bytes

    def drop(self) -> None:
        if self.held is not None:
            self.held.drop()


class _Reading:
    """What is on its way for one run of a plan."""

    def __init__(self, plan: Plan, operators: Fetching, snapshot: Any) -> None:
        self._plan, self._operators, self._snapshot = plan, operators, snapshot
        self._adapters: dict[tuple[int, Key], _Adapters] = {}

    def announced(self, steps: Iterator[PlanStep]) -> Iterator[PlanStep]:
        """`steps`, known some time before their turn: what several of them need is then one request."""
        while window := list(islice(steps, WINDOW_STEPS)):
            self._adapters |= _adapter_runs(self._plan, [step for step, groups in window if groups])
            yield from window

    def start(self, item: PlanStep) -> Held:
        step, groups = item
        key = (step.video_id, step.segment)
        mine = [run for i in step.scans if (run := self._adapters.pop((i, key), None)) is not None]
        segment = _Nothing() if step.source or not groups else self._segment(key, groups)
        for run in mine:
            if run.held is None:
                run.held = self._begin(segment=None, adapters=tuple(run.ranges))
        return _StepHeld(segment, mine)

    def close(self) -> None:
        for run in self._adapters.values():
            run.drop()

    def _segment(self, key: Key, groups: list[Group]) -> Held:
        return self._begin(segment=(*key, deepest(self._plan, key, groups)), adapters=())

    def _begin(self, *, segment: tuple[str, int, str] | None, adapters: tuple[ByteRange, ...]) -> Held:
        try:
            return self._operators.prefetch(self._snapshot, segment=segment, adapters=adapters)
        except NvpError:  # the step itself will meet it, and say where
            return _Nothing()


class _StepHeld:
    """One step's segment, and its use of shared adapters."""

    def __init__(self, segment: Held, adapters: list[_Adapters]) -> None:
        self._segment, self._adapters = segment, adapters

    def drop(self) -> None:
        self._segment.drop()
        for run in self._adapters:
            run.users -= 1
            if not run.users:
                run.drop()


def _adapter_runs(plan: Plan, steps: Iterable[Step]) -> dict[tuple[int, Key], _Adapters]:
    """The adapters that each scan's segment reads, shared by all segments that need the same object."""
    newest: dict[str, _Adapters] = {}
    runs: dict[tuple[int, Key], _Adapters] = {}
    for step in steps:
        key = (step.video_id, step.segment)
        for index in step.scans:
            adapter = plan.scans[index].routes[key].adapter
            if adapter is None:
                continue
            run = newest.setdefault(adapter.key, _Adapters())
            if adapter not in run.ranges and run.size_bytes + adapter.size_bytes > ADAPTER_BYTES:
                run = newest[adapter.key] = _Adapters()
            run.add(adapter)
            runs[(index, key)] = run
    return runs
