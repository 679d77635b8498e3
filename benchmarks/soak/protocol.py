"""`python -m benchmarks.soak protocol`: every interleaving and crash point of two writers, gc and an eraser.

The real code runs: log, gc and erase, over a store in memory that stops before each of its operations. A
scheduler then chooses who goes on and tries all choices; states that were seen before are not entered again.
Time stands still and gc looks from far in the future, so that its fence is above every writer's attempt: as
if each writer could be stopped for days between any two operations.

An actor that is killed is one that never goes on: so each state is also looked at as if all actors that are
not done had been killed there. In every state: the log is whole, each object in force is there with its
digest, a video is stored at most once between erasures; the video can be stored again, and a gc then leaves
nothing but what is in force. Where everyone is done, nothing of an erased video is left.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import count
from typing import Any
from unittest.mock import patch

from greenlet import GreenletExit, getcurrent, greenlet

from benchmarks.soak.fold import fold
from nvpstore.errors import CommitDropped, ObjectExists, ObjectMissing
from nvpstore.storage import entries as entries_module
from nvpstore.storage import keys
from nvpstore.storage import log as log_module
from nvpstore.storage.contract import ObjectStore, describe
from nvpstore.storage.erase import erase
from nvpstore.storage.gc import collect
from nvpstore.storage.log import Log, LogDraft, create_archive
from nvpstore.types import StoredObject

VIDEO, OTHER = "a" * 32, "b" * 32
VERSION = "c" * 64
START = datetime(2030, 1, 1, tzinfo=UTC)
GRACE = timedelta(hours=24)
LONG_AFTER = START + 10 * GRACE

Actor = Callable[[Log], None]


class SimulatedStore(ObjectStore):
    """Objects in a dict. Inside an actor every operation is handed to the scheduler, which answers it."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects

    root = property(lambda self: "simulated")

    def put(self, key: str, data: bytes) -> StoredObject:
        if self._answer("put", key, data) != data:
            raise ObjectExists(key)
        return describe(key, data)

    def get(self, key: str) -> bytes:
        return self._found("get", key)

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        return self.get(key)[offset : offset + size_bytes]

    def size(self, key: str) -> int:
        return len(self._found("size", key))

    def list(self, prefix: str = "") -> list[str]:
        return [*self._answer("list", prefix)]

    def delete(self, key: str) -> None:
        self._answer("delete", key)

    def _found(self, verb: str, key: str) -> bytes:
        data: bytes | None = self._answer(verb, key)
        if data is None:
            raise ObjectMissing(key)
        return data

    def _answer(self, verb: str, key: str, data: bytes = b"") -> Any:
        current = getcurrent()
        if isinstance(current, _Running):
            return current.parent.switch((verb, key, data))
        return answer(self.objects, verb, key, data)


def answer(objects: dict[str, bytes], verb: str, key: str, data: bytes) -> Any:
    """Carry out one operation: what a store with put-if-absent does, in one indivisible step."""
    if verb == "put":
        return objects.setdefault(key, data)
    if verb == "list":
        return tuple(sorted(found for found in objects if found.startswith(key)))
    return objects.pop(key, None) and None if verb == "delete" else objects.get(key)


class _Running(greenlet):
    """One actor of `place`, stopped before its next operation."""

    def __init__(self, actor: Actor, place: int) -> None:
        super().__init__(self._act)
        self.actor, self.place = actor, place
        self.randoms = count(1)

    def _act(self) -> str:
        try:
            self.actor(Log(SimulatedStore({})))
        except CommitDropped:
            return "dropped"
        return "done"


Operation = tuple[str, str, bytes]


@dataclass(slots=True)
class _Moment:
    """An actor after the answers that it has had: its next operation, or how its work came out.

    The actor's code is deterministic, so that the same answers always lead to the same moment.
    """

    answers: tuple[Any, ...]
    operation: Operation | None = None
    outcome: str = ""
    next: dict[Any, int] = field(default_factory=dict)


class _Actors:
    """All moments of all actors that were ever reached, found by running the actor on recorded answers."""

    def __init__(self, actors: Iterable[Actor]) -> None:
        self._actors = tuple(actors)
        self.moments: list[_Moment] = []
        self._ends: dict[tuple[int, str], int] = {}
        self.first = tuple(self._reach(place, ()) for place in range(len(self._actors)))

    def after(self, place: int, moment: int, answered: Any) -> int:
        here = self.moments[moment]
        if answered not in here.next:
            here.next[answered] = self._reach(place, (*here.answers, answered))
        return here.next[answered]

    def _reach(self, place: int, answers: tuple[Any, ...]) -> int:
        running = _Running(self._actors[place], place + 1)
        said = running.switch()
        for one in answers:
            said = running.switch(one)
        if running.dead:
            # What somebody saw who is done changes nothing any more.
            known = self._ends.setdefault((place, said), len(self.moments))
            if known == len(self.moments):
                self.moments.append(_Moment(answers=(), outcome=said))
            return known
        running.throw(GreenletExit)
        self.moments.append(_Moment(answers=answers, operation=said))
        return len(self.moments) - 1


class _Stores:
    """All contents that the store ever had, by number, and what each operation makes of them."""

    def __init__(self, start: dict[str, bytes]) -> None:
        self.contents = [start]
        self._numbers = {frozenset(start.items()): 0}
        self._after: dict[tuple[int, Operation], tuple[int, Any]] = {}

    def after(self, content: int, operation: Operation) -> tuple[int, Any]:
        if (content, operation) not in self._after:
            objects = dict(self.contents[content])
            answered = answer(objects, *operation)
            number = self._numbers.setdefault(frozenset(objects.items()), len(self.contents))
            if number == len(self.contents):
                self.contents.append(objects)
            self._after[content, operation] = number, answered
        return self._after[content, operation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Who acts at the same time on which archive."""

    name: str
    prepare: Callable[[Log], None]
    actors: dict[str, Actor]


@dataclass(slots=True, kw_only=True)
class Explored:
    """How much was tried: states, steps between them, contents of the store that were checked.

    `outcomes` counts final states by how each actor's work came out. `complete` says that none is left.
    """

    states: int = 0
    steps: int = 0
    contents: int = 0
    complete: bool = False
    outcomes: dict[str, int] = field(default_factory=dict)


State = tuple[int, ...]  # the store's content, then each actor's moment


def explore(scenario: Scenario, *, most_states: int | None = None, seed: int = 0) -> Explored:
    """Try every schedule, or up to `most_states` states in an order drawn by `seed`.

    Raises AssertionError with the schedule, names of actors in order, that breaks an invariant.
    """
    explored, rng = Explored(), random.Random(seed)
    with _still_time():
        stores, actors = _Stores(_prepared(scenario)), _Actors(scenario.actors.values())
        start: State = (0, *actors.first)
        came_from: dict[State, tuple[State, int] | None] = {start: None}
        stack, checked = [start], set[int]()
        while stack and (most_states is None or explored.states < most_states):
            state = stack.pop()
            explored.states += 1
            try:
                _check(scenario, state, stores, actors, checked, explored)
            except Exception as broken:
                raise AssertionError(
                    f"{scenario.name}: {broken!r} after {_path(state, came_from, scenario)}"
                ) from broken
            following = list(_following(state, stores, actors))
            explored.steps += len(following)
            if most_states is not None:
                rng.shuffle(following)
            for place, later in following:
                if later not in came_from:
                    came_from[later] = (state, place)
                    stack.append(later)
    explored.contents, explored.complete = len(checked), not stack
    return explored


def _following(state: State, stores: _Stores, actors: _Actors) -> Iterator[tuple[int, State]]:
    content, *moments = state
    for place, moment in enumerate(moments):
        operation = actors.moments[moment].operation
        if operation is not None:
            later, answered = stores.after(content, operation)
            then = actors.after(place, moment, answered)
            yield place, (later, *moments[:place], then, *moments[place + 1 :])


def _path(state: State, came_from: dict[State, tuple[State, int] | None], scenario: Scenario) -> str:
    names, path = list(scenario.actors), list[str]()
    while (before := came_from[state]) is not None:
        state, place = before
        path.append(names[place])
    return " ".join(reversed(path))


# ---------------------------------------------------------------- invariants


def _check(
    scenario: Scenario, state: State, stores: _Stores, actors: _Actors, checked: set[int], explored: Explored
) -> None:
    content, *moments = state
    outcomes = [actors.moments[moment].outcome for moment in moments]
    if all(outcomes):
        check_erased(stores.contents[content])
        told = ", ".join(f"{name} {outcome}" for name, outcome in zip(scenario.actors, outcomes, strict=True))
        explored.outcomes[told] = explored.outcomes.get(told, 0) + 1
    if content not in checked:
        checked.add(content)
        check_held(stores.contents[content])
        check_recovery(stores.contents[content])


def check_held(objects: dict[str, bytes]) -> None:
    """The log is whole, what is in force is there, and no video is stored twice between erasures."""
    stored = False
    entries = list(Log(SimulatedStore(objects)).entries())
    for entry in entries:
        if entry.subject == VIDEO and entry.kind in ("video", "erase"):
            fresh = entry.kind == "video" and any("/meta/" in obj.key for obj in entry.objects)
            assert not (fresh and stored), "one video was stored twice"
            stored = entry.kind == "video"
    for obj in fold(entries).in_force.values():
        assert obj.key in objects, f"{obj.key} is in force and missing"
        assert describe(obj.key, objects[obj.key]) == obj, f"{obj.key} differs"


def check_erased(objects: dict[str, bytes]) -> None:
    """Nothing is left under an erased video but what the log holds of it since."""
    entries = list(Log(SimulatedStore(objects)).entries())
    if any(entry.kind == "erase" and entry.subject == VIDEO for entry in entries):
        left = {key for key in objects if f"/{VIDEO}/" in f"/{key}"}
        assert left == fold(entries).held(left), f"left of an erased video: {left}"


def check_recovery(objects: dict[str, bytes]) -> None:
    """As if all who are not done were killed here: the same command again completes, and gc cleans up."""
    store = SimulatedStore(dict(objects))
    log = Log(store)
    storing()(log)
    collect(log, lambda: fold(log.entries()), now=LONG_AFTER + 10 * GRACE)
    state = fold(log.entries())
    assert state.has_video(VIDEO), "the video cannot be stored again"
    left = {key for key in store.objects if not key.startswith(keys.LOG_PREFIX)}
    assert left == set(state.in_force), f"gc leaves {left ^ set(state.in_force)}"


# ---------------------------------------------------------------- actors


def storing(video_id: str = VIDEO, *, refit: bool = False) -> Actor:
    """What storage.commit does, with a manifest and, for a new video, a meta object."""

    def act(log: Log) -> None:
        state = fold(log.entries())
        if state.has_video(video_id) and not refit:
            return
        attempt = keys.new_attempt(later_than=state.latest_attempt)
        names = [] if state.has_video(video_id) else [keys.meta_key(video_id, attempt)]
        names += [keys.manifest_key(video_id, attempt)]
        put: list[StoredObject] = []
        try:
            put += [log.store.put(key, key.encode()) for key in names]
            draft = LogDraft(
                kind="video",
                attempt=attempt,
                subject=video_id,
                objects=tuple(put),
                replaces=state.has_video(video_id),
            )
            log.append(draft, after=state.number)
        except CommitDropped:
            log.store.delete_all([obj.key for obj in put])
            raise

    return act


def adding(key_of: Callable[[str], str], kind: Any) -> Actor:
    """Routes or meta of a stored video."""

    def act(log: Log) -> None:
        state = fold(log.entries())
        if not state.has_video(VIDEO):
            return
        attempt = keys.new_attempt(later_than=state.latest_attempt)
        obj = log.store.put(key_of(attempt), attempt.encode())
        try:
            draft = LogDraft(kind=kind, attempt=attempt, subject=VIDEO, objects=(obj,))
            log.append(draft, after=state.number)
        except CommitDropped:
            log.store.delete(obj.key)
            raise

    return act


def collecting(log: Log) -> None:
    collect(log, lambda: fold(log.entries()), now=LONG_AFTER)


def erasing(log: Log) -> None:
    state = fold(log.entries())
    erase(log, VIDEO, number=state.number, latest_attempt=state.latest_attempt)


tagging = adding(lambda attempt: keys.meta_key(VIDEO, attempt), "meta")
routing = adding(lambda attempt: keys.routes_key(VIDEO, VERSION, attempt), "routes")


def _empty(log: Log) -> None:
    log.store.put(keys.weights_key(OTHER, keys.new_attempt(), 0), b"an orphan")


def _with_video(log: Log) -> None:
    storing()(log)
    log.store.put(keys.weights_key(VIDEO, keys.new_attempt(), 0), b"an orphan")


SCENARIOS = (
    Scenario(
        name="two writers store one video",
        prepare=_empty,
        actors={"first": storing(), "second": storing(), "gc": collecting, "eraser": erasing},
    ),
    Scenario(
        name="a refit and a tag",
        prepare=_with_video,
        actors={"refit": storing(refit=True), "tag": tagging, "gc": collecting, "eraser": erasing},
    ),
    Scenario(
        name="a refit and routes",
        prepare=_with_video,
        actors={"refit": storing(refit=True), "routes": routing, "gc": collecting, "eraser": erasing},
    ),
)


def _prepared(scenario: Scenario) -> dict[str, bytes]:
    store = SimulatedStore({})
    create_archive(store, grace_seconds=int(GRACE.total_seconds()))
    scenario.prepare(Log(store))
    return store.objects


@contextmanager
def _still_time() -> Iterator[None]:
    """All clocks stand at START, and each actor has random numbers of its own, the same in every run."""

    class Still(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return START

    shared = count(1)

    def randbits(bits: int) -> int:
        current = getcurrent()
        if not isinstance(current, _Running):
            return next(shared)
        # Whose attempt is greater must not depend on who came first.
        return next(current.randoms) + (current.place << 40)

    # The same few entries are read millions of times.
    decode = lru_cache(maxsize=None)(entries_module.decode_entry)
    with ExitStack() as patches:
        patches.enter_context(patch.object(log_module, "decode_entry", decode))
        for module in (entries_module, log_module):
            patches.enter_context(patch.object(module, "datetime", Still))
        patches.enter_context(patch.object(keys.secrets, "randbits", randbits))
        patches.enter_context(patch.object(keys.time, "time_ns", lambda: int(START.timestamp() * 1e9)))
        yield
