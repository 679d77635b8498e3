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

import hashlib
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

# Nobody puts anything there: when they are listed makes no difference.
_EMPTY = ("sources/", "adapters/", "results/")

Actor = Callable[[Log], None]


class SimulatedStore(ObjectStore):
    """Objects in a dict. Inside an actor every operation first hands control to the scheduler."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects

    root = property(lambda self: "simulated")

    def put(self, key: str, data: bytes) -> StoredObject:
        self._pause("put", key)
        if self.objects.setdefault(key, data) != data:
            raise ObjectExists(key)
        return self._seen(describe(key, data))

    def get(self, key: str) -> bytes:
        # An entry that is there never changes: reading it now or later is the same.
        if not (key.startswith(keys.LOG_PREFIX) and key in self.objects):
            self._pause("get", key)
        return self._seen(self._found(key))

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        return self.get(key)[offset : offset + size_bytes]

    def size(self, key: str) -> int:
        self._pause("size", key)
        return self._seen(len(self._found(key)))

    def list(self, prefix: str = "") -> list[str]:
        if not prefix.startswith(_EMPTY):
            self._pause("list", prefix)
        return self._seen(sorted(key for key in self.objects if key.startswith(prefix)))

    def delete(self, key: str) -> None:
        self._pause("delete", key)
        self.objects.pop(key, None)

    def _found(self, key: str) -> bytes:
        if key not in self.objects:
            self._seen("missing")
            raise ObjectMissing(key)
        return self.objects[key]

    def _pause(self, verb: str, key: str) -> None:
        current = getcurrent()
        if isinstance(current, _Running):
            current.parent.switch()
            current.history.append(f"{verb} {key}")

    def _seen(self, result: Any) -> Any:
        current = getcurrent()
        if isinstance(current, _Running):
            current.history.append(repr(result))
        return result


class _Running(greenlet):
    """An actor that is stopped before its next operation; `history` is all that it has done and seen."""

    def __init__(self, actor: Actor, log: Log, place: int) -> None:
        super().__init__(self._act)
        self.actor, self.log, self.place = actor, log, place
        self.history: list[str] = []
        self.randoms = count(1)

    def _act(self) -> None:
        try:
            self.actor(self.log)
            self.history.append("done")
        except CommitDropped:
            self.history.append("dropped")
        except GreenletExit:
            pass  # killed by the scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Who acts at the same time on which archive."""

    name: str
    prepare: Callable[[Log], None]
    actors: dict[str, Actor]


@dataclass(slots=True, kw_only=True)
class Explored:
    """How much was tried. `outcomes` counts distinct final states by how each actor's work came out."""

    states: int = 0
    operations: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)


def explore(scenario: Scenario, *, most_states: int | None = None, seed: int | None = None) -> Explored:
    """Try every schedule, or up to `most_states` states in an order drawn by `seed`.

    Depth first; a state is reached by running its schedule, names of actors, from the start. Raises
    AssertionError with the schedule that breaks an invariant.
    """
    explored, seen, rng = Explored(), set[bytes](), random.Random(seed)
    with _still_time():
        start = _prepared(scenario)
        stack: list[tuple[str, ...]] = [()]
        while stack and (most_states is None or explored.states < most_states):
            schedule = stack.pop()
            run = _Run(scenario, start)
            run.follow(schedule)
            explored.operations += len(schedule)
            if (key := run.fingerprint()) not in seen:
                seen.add(key)
                explored.states += 1
                _check(run, explored, schedule)
                following = run.waiting
                if seed is not None:
                    rng.shuffle(following)
                stack += [(*schedule, name) for name in following]
            run.close()
    return explored


def _check(run: _Run, explored: Explored, schedule: tuple[str, ...]) -> None:
    try:
        run.check_held()
        if not run.waiting:
            run.check_erased()
            explored.outcomes[run.outcome()] = explored.outcomes.get(run.outcome(), 0) + 1
        run.check_recovery()
    except Exception as broken:
        raise AssertionError(f"{run.name}: {broken!r} after {' '.join(schedule)}") from broken


class _Run:
    """One execution: a copy of the prepared archive and its actors, each stopped before an operation."""

    def __init__(self, scenario: Scenario, start: dict[str, bytes]) -> None:
        self.name = scenario.name
        self.store = SimulatedStore(dict(start))
        self.actors = {
            name: _Running(actor, Log(self.store), place)
            for place, (name, actor) in enumerate(scenario.actors.items(), start=1)
        }
        for actor in self.actors.values():
            actor.switch()

    @property
    def waiting(self) -> list[str]:
        return [name for name, actor in self.actors.items() if not actor.dead]

    def follow(self, schedule: Iterable[str]) -> None:
        for name in schedule:
            self.actors[name].switch()

    def fingerprint(self) -> bytes:
        parts = [repr(sorted(self.store.objects.items()))]
        # What somebody saw who is done changes nothing any more.
        parts += [a.history[-1] if a.dead else "\n".join(a.history) for a in self.actors.values()]
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest()

    def outcome(self) -> str:
        return ", ".join(f"{name} {actor.history[-1]}" for name, actor in self.actors.items())

    def check_held(self) -> None:
        stored = False
        entries = list(Log(self.store).entries())
        for entry in entries:
            if entry.subject == VIDEO and entry.kind in ("video", "erase"):
                fresh = entry.kind == "video" and any("/meta/" in obj.key for obj in entry.objects)
                assert not (fresh and stored), "one video was stored twice"
                stored = entry.kind == "video"
        for obj in fold(entries).in_force.values():
            assert obj.key in self.store.objects, f"{obj.key} is in force and missing"
            assert describe(obj.key, self.store.objects[obj.key]) == obj, f"{obj.key} differs"

    def check_erased(self) -> None:
        entries = list(Log(self.store).entries())
        if any(entry.kind == "erase" and entry.subject == VIDEO for entry in entries):
            left = {key for key in self.store.objects if f"/{VIDEO}/" in f"/{key}"}
            assert left == fold(entries).held(left), f"left of an erased video: {left}"

    def check_recovery(self) -> None:
        """As if all who are not done were killed here: the same command again completes, and gc cleans up."""
        store = SimulatedStore(dict(self.store.objects))
        log = Log(store)
        storing()(log)
        collect(log, lambda: fold(log.entries()), now=LONG_AFTER + 10 * GRACE)
        state = fold(log.entries())
        assert state.has_video(VIDEO), "the video cannot be stored again"
        left = {key for key in store.objects if not key.startswith(keys.LOG_PREFIX)}
        assert left == set(state.in_force), f"gc leaves {left ^ set(state.in_force)}"

    def close(self) -> None:
        for actor in self.actors.values():
            actor.throw(GreenletExit)


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
