"""Equal steps of queries that run at once are one step, whatever becomes of the query that began it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

from nvpstore.errors import IntegrityError, NvpError, QueryError, StoreError
from nvpstore.query.flights import Ask
from nvpstore.query.request import Request
from nvpstore.query.run import execute
from nvpstore.query.scheduler import SCHEDULER, Cancelled, Scheduler
from nvpstore.query.sharing import Sharing
from nvpstore.query.shelves import Shelf
from tests.query.archive_fixture import SETTINGS, CountingOperators, FixtureSnapshot, ask

A = "a" * 32
STAGES = ("0", "1", "2", "3", "rgb")
PREDICATES = [
    "l.rank = 1",
    "l.label = 'cat'",
    "l.score > 0.3",
    "l.label LIKE 'b%' AND l.rank < 3",
    "l.score BETWEEN 0.2 AND 0.4",
    "l.label <> 'dog'",
    "e.embedding[2] > 4",
    "l.label = 'tree' OR e.embedding[1] < 20",
]
PAIRED = (
    "SELECT l.video_id, l.frame, l.label, e.embedding"
    " FROM labels l JOIN embed e USING (video_id, frame) WHERE {}"
)


def never() -> None:
    """No query of these is cancelled."""


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


class Together(CountingOperators):
    """Begins when `queries` of them run."""

    def __init__(self, queries: int) -> None:
        super().__init__()
        self.queries = queries

    def fetch(self, snapshot: Any, video_id: str, segment: int, stage: str) -> Any:
        until(lambda: SCHEDULER.running >= self.queries or bool(self.fetches))
        return super().fetch(snapshot, video_id, segment, stage)


def at_once(asks: list[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(asks)) as pool:
        futures: list[Future[Any]] = [pool.submit(one) for one in asks]
        return [future.exception() or future.result() for future in futures]


class TestQueries:
    def test_eight_predicates_decode_everything_once(self, snapshot: FixtureSnapshot) -> None:
        operators = Together(len(PREDICATES))
        queries = [PAIRED.format(predicate) for predicate in PREDICATES]
        results = at_once([partial(ask, snapshot, sql, operators) for sql in queries])
        assert len(set(operators.fetches)) == len(operators.fetches)
        assert set(operators.decoded.values()) == {1}
        assert operators.tails == 2 * operators.decoded.total()
        for sql, result in zip(queries, results, strict=True):
            assert sorted(result.fetchall()) == sorted(ask(snapshot, sql).fetchall())

    def test_what_they_took_adds_up(self, snapshot: FixtureSnapshot) -> None:
        operators = Together(2)
        sql = "SELECT label FROM labels WHERE segment = 0"
        results = at_once([lambda: ask(snapshot, sql, operators)] * 2)
        measured = [result.measured for result in results]
        assert sum(one.fetches for one in measured) == len(operators.fetches) == 3
        assert sum(one.frames for one in measured) == operators.decoded.total()
        assert sum(one.shared_decodes for one in measured) == operators.decoded.total()
        assert len({one.bytes for one in measured}) == 1
        assert sum(one.traffic.requests for one in measured) == 2 * 3 + 3

    def test_features_go_with_the_last_query(self, snapshot: FixtureSnapshot) -> None:
        operators = Together(2)
        at_once([lambda: ask(snapshot, "SELECT label FROM labels", operators)] * 2)
        weights = operators.sharing.size_bytes
        operators.sharing.forget_features()
        assert operators.sharing.size_bytes == weights > 0
        before = operators.decoded.total()
        ask(snapshot, "SELECT label FROM labels", operators)
        assert operators.decoded.total() == 2 * before
        assert len(operators.fetches) == 7

    def test_weights_that_are_deeper_serve_a_shallower_query(self, snapshot: FixtureSnapshot) -> None:
        operators = CountingOperators()
        where = f"WHERE video_id = '{A}' AND segment = 0"
        ask(snapshot, f"SELECT image FROM frames {where}", operators)
        result = ask(snapshot, f"SELECT label FROM labels {where}", operators)
        assert operators.fetches == [(A, 0, "rgb")]
        assert result.measured is not None
        assert (result.measured.prefix_bytes, result.measured.fetches) == (7000, 0)

    def test_a_shared_error_is_every_query_s_own(self, snapshot: FixtureSnapshot) -> None:
        class Broken(Together):
            def tail(self, route: Any, features: Any) -> Any:
                raise IntegrityError("bytes differ")

        operators = Broken(3)
        where = f"WHERE video_id = '{A}' AND segment = 0"
        strict, lenient, pixels = at_once(
            [
                lambda: ask(snapshot, f"SELECT label FROM labels {where}", operators),
                lambda: ask(snapshot, f"SELECT label FROM labels(on_error := 'skip') {where}", operators),
                lambda: ask(snapshot, f"SELECT image FROM frames {where}", operators),
            ]
        )
        assert isinstance(strict, IntegrityError)
        assert "labels@9c21…" in str(strict)
        assert "segment 0, answering: bytes differ" in str(strict)
        assert lenient.fetchall() == []
        assert [skip.segment for skip in lenient.skipped] == [0]
        assert len(pixels.fetchall()) == 30

    def test_cancelling_one_leaves_the_others_alone(self, snapshot: FixtureSnapshot) -> None:
        cancel = threading.Event()

        class Cancelling(Together):
            def decode(self, handle: Any, frames: Any, taps: tuple[str, ...]) -> Any:
                if self.decoded.total() > 40:
                    cancel.set()
                return super().decode(handle, frames, taps)

        operators = Cancelling(3)
        sql = "SELECT * FROM labels"
        stopped, *others = at_once(
            [lambda: ask(snapshot, sql, operators, cancel=cancel)]
            + [lambda: ask(snapshot, sql, operators)] * 2
        )
        assert isinstance(stopped, QueryError)
        assert str(stopped) == "the query was cancelled"
        for other in others:
            assert other.fetchall() == ask(snapshot, sql).fetchall()
        assert set(operators.decoded.values()) == {1}

    def test_operators_are_made_once_for_queries_that_begin_at_once(self, snapshot: FixtureSnapshot) -> None:
        made: list[CountingOperators] = []

        def make() -> CountingOperators:
            if not made:
                time.sleep(0.05)
                made.append(CountingOperators())
            return made[0]

        def run() -> None:
            execute(
                Request(
                    sql="SELECT label FROM labels",
                    snapshot=snapshot,
                    operators_factory=make,
                    settings=SETTINGS,
                )
            )

        at_once([run] * 4)
        assert len(made) == 1


class TestOnce:
    def take(self, sharing: Sharing, make: Callable[[], Any], check: Callable[[], None] = never) -> Any:
        return sharing.once("key", make, shelf=Shelf.FEATURES, size=lambda _: 1, check=check)

    def in_flight(self, sharing: Sharing, readers: int) -> Callable[[], bool]:
        return lambda: [flight.readers for flight in sharing._flights.values()] == [readers]

    def test_who_comes_meanwhile_waits_for_the_value(self) -> None:
        sharing, go = Sharing(scheduler=Scheduler()), threading.Event()
        with ThreadPoolExecutor(3) as pool:
            first = pool.submit(self.take, sharing, lambda: go.wait(20) and "value")
            until(self.in_flight(sharing, 1))
            others = [pool.submit(self.take, sharing, lambda: pytest.fail("made twice")) for _ in range(2)]
            until(self.in_flight(sharing, 3))
            go.set()
            taken = [future.result() for future in (first, *others)]
        assert [one.value for one in taken] == ["value"] * 3
        assert [one.made for one in taken] == [True, False, False]
        assert not sharing._flights

    def test_a_reader_takes_over_from_a_cancelled_one(self) -> None:
        sharing, go = Sharing(scheduler=Scheduler()), threading.Event()

        def cancelled() -> Any:
            go.wait(20)
            raise Cancelled("the query was cancelled")

        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(self.take, sharing, cancelled)
            until(self.in_flight(sharing, 1))
            second = pool.submit(self.take, sharing, lambda: "value")
            until(self.in_flight(sharing, 2))
            go.set()
            assert isinstance(first.exception(), Cancelled)
            assert second.result().value == "value"
        assert not sharing._flights

    def test_a_waiting_reader_can_be_cancelled(self) -> None:
        sharing, go, stop = Sharing(scheduler=Scheduler()), threading.Event(), threading.Event()

        def check() -> None:
            if stop.is_set():
                raise Cancelled("the query was cancelled")

        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(self.take, sharing, lambda: go.wait(20) and "value")
            until(self.in_flight(sharing, 1))
            second = pool.submit(self.take, sharing, lambda: "other", check)
            until(self.in_flight(sharing, 2))
            stop.set()
            assert isinstance(second.exception(), Cancelled)
            go.set()
            assert first.result().value == "value"

    def test_an_error_is_every_reader_s_and_nobody_s_later(self) -> None:
        sharing, go = Sharing(scheduler=Scheduler()), threading.Event()

        def fail() -> Any:
            go.wait(20)
            raise StoreError("the line is dead")

        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(self.take, sharing, fail)
            until(self.in_flight(sharing, 1))
            second = pool.submit(self.take, sharing, lambda: "value")
            until(self.in_flight(sharing, 2))
            go.set()
            errors = [first.exception(), second.exception()]
        assert errors[0] is errors[1]
        assert isinstance(errors[0], StoreError)
        assert self.take(sharing, lambda: "value").value == "value"


class Decoder:
    """Decodes to `{stage: (stage, frame)}`, and notes what it was asked for."""

    def __init__(self, fails_at: str = "") -> None:
        self.asked: list[tuple[list[int], tuple[str, ...], Any]] = []
        self.fails_at = fails_at

    def __call__(self, ask: Ask) -> Any:
        self.asked.append((ask.frames.tolist(), ask.taps, ask.handle))
        if self.fails_at in ask.taps:
            raise NvpError(f"stage {self.fails_at} is damaged")
        return {stage: [(stage, frame) for frame in ask.frames.tolist()] for stage in ask.taps}


class TestDecode:
    """Decodes that are asked for while the device is taken: all are known before any begins."""

    def run(self, asks: list[Ask], decoder: Decoder) -> list[Any]:
        scheduler = Scheduler()
        sharing = Sharing(scheduler=scheduler)

        def decode(ask: Ask) -> Any:
            taken = sharing.decode("segment", ask, decoder, size=lambda _: 1, check=never)
            return {stage: taken.value[stage] for stage in ask.taps}, taken.made

        with ThreadPoolExecutor(len(asks)) as pool:
            with scheduler.device(never):
                futures = []
                for number, one in enumerate(asks, 1):
                    futures.append(pool.submit(decode, one))
                    until(partial(self.waiting, sharing, number))
            results = [future.exception() or future.result() for future in futures]
        assert not sharing._decodings
        return results

    def waiting(self, sharing: Sharing, readers: int) -> bool:
        found = (decoding for decodings in sharing._decodings.values() for decoding in decodings)
        return sum(decoding.readers for decoding in found) >= readers

    def ask(self, frames: range, *taps: str) -> Ask:
        return Ask(handle=f"to {taps[-1]}", frames=np.array(frames), taps=taps, stages=STAGES)

    def expected(self, ask: Ask) -> dict[str, Any]:
        return {stage: [(stage, frame) for frame in ask.frames.tolist()] for stage in ask.taps}

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_the_shallower_one_is_a_tap_of_the_deeper_one(self, order: tuple[int, int]) -> None:
        asks = [self.ask(range(8), "1"), self.ask(range(8), "0", "3")]
        decoder = Decoder()
        results = self.run([asks[i] for i in order], decoder)
        assert [found for found, _ in results] == [self.expected(asks[i]) for i in order]
        assert decoder.asked == [(list(range(8)), ("0", "1", "3"), "to 3")]
        assert sum(made for _, made in results) == 1

    def test_only_the_same_frames_are_one_decode(self) -> None:
        asks = [self.ask(range(8), "1"), self.ask(range(7), "1"), self.ask(range(8), "1")]
        decoder = Decoder()
        results = self.run(asks, decoder)
        assert [found for found, _ in results] == [self.expected(ask) for ask in asks]
        assert sorted(len(frames) for frames, *_ in decoder.asked) == [7, 8]

    def test_what_fails_deeper_does_not_fail_the_shallower_one(self) -> None:
        asks = [self.ask(range(8), "1"), self.ask(range(8), "1", "3")]
        shallow, deep = self.run(asks, Decoder(fails_at="3"))
        assert shallow[0] == self.expected(asks[0])
        assert str(deep) == "stage 3 is damaged"
