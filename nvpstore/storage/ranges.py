"""Verified ranges of objects: merged into few requests, fetched side by side and ahead of their use."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass

from nvpstore.errors import IntegrityError, StoreError
from nvpstore.storage.contract import ObjectStore
from nvpstore.storage.range_cache import RangeCache
from nvpstore.types import ByteRange

WORKERS = 8
MERGED_BYTES = 16 << 20  # of one request: more is faster as several side by side
AHEAD_BYTES = 64 << 20  # of all that is fetched ahead and not dropped yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What reading took: requests to the store, bytes that they brought, bytes of the disk cache."""

    requests: int = 0
    store_bytes: int = 0
    cache_bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            requests=self.requests + other.requests,
            store_bytes=self.store_bytes + other.store_bytes,
            cache_bytes=self.cache_bytes + other.cache_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RangesRead:
    """Ranges in the order asked for. `traffic` counts what this read was the first to use."""

    data: tuple[bytes, ...]
    traffic: Traffic


class _Flight:
    """One range on its way, or arrived and held. Whoever reads or prefetched it is a holder."""

    def __init__(self, wanted: ByteRange, *, as_of: int) -> None:
        self.range = wanted
        self.as_of = as_of
        self.arrival: Future[bytes] = Future()
        self.holders = 0
        self.traffic = Traffic()


class Prefetched:
    """Ranges that are being fetched ahead. `drop` lets go of those: what did not start, never will."""

    def __init__(self, drop: Callable[[], None]) -> None:
        self._drop: Callable[[], None] | None = drop

    def drop(self) -> None:
        """Harmless if repeated."""
        drop, self._drop = self._drop, None
        if drop is not None:
            drop()


class RangeReader:
    """Ranged reads of one store. Shared by threads: who asks for what is on its way waits for that."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        cache: RangeCache | None = None,
        workers: int = WORKERS,
        ahead_bytes: int = AHEAD_BYTES,
    ) -> None:
        """At most `workers` requests at a time, and one more for each thread in `read`."""
        self._store = store
        self._cache = cache
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="ranges")
        self._lock = threading.Lock()
        self._flights: dict[ByteRange, _Flight] = {}
        self._ahead_limit = ahead_bytes
        self._ahead_bytes = 0
        self._traffic = Traffic()

    @property
    def traffic(self) -> Traffic:
        """All that this reader has taken since it was made."""
        return self._traffic

    @property
    def held_bytes(self) -> int:
        """Of ranges on their way or held for whoever prefetched them."""
        with self._lock:
            return sum(wanted.size_bytes for wanted in self._flights)

    def read(self, ranges: Sequence[ByteRange], *, as_of: int, bridge_bytes: int = 0) -> list[bytes]:
        """The bytes of `ranges`, in order, each equal to what was committed. See `read_counted`."""
        return list(self.read_counted(ranges, as_of=as_of, bridge_bytes=bridge_bytes).data)

    def read_counted(self, ranges: Sequence[ByteRange], *, as_of: int, bridge_bytes: int = 0) -> RangesRead:
        """The bytes of `ranges`, in order, each equal to what was committed.

        Neighbours in an object are one request; so are those with at most `bridge_bytes` between them.
        `as_of` is the log number that the caller reads at. A range that differs from its digest is fetched
        once more; then IntegrityError names key and offset. Raises what the store raises, too.
        """
        flights, new = self._hold(ranges, as_of=as_of)
        try:
            self._bring(new, bridge_bytes)
            data = tuple(flights[wanted].arrival.result() for wanted in ranges)
            return RangesRead(data=data, traffic=self._taken(flights.values()))
        finally:
            self._let_go(flights.values())

    def prefetch(self, ranges: Sequence[ByteRange], *, as_of: int, bridge_bytes: int = 0) -> Prefetched:
        """Fetches in the background what a later `read` will find here, until it is dropped.

        Nothing is fetched where everything held ahead would be more than `ahead_bytes`. Errors are the
        later read's.
        """
        size_bytes = sum(wanted.size_bytes for wanted in set(ranges))
        with self._lock:
            if self._ahead_bytes + size_bytes > self._ahead_limit:
                return Prefetched(lambda: None)
            self._ahead_bytes += size_bytes
        flights, new = self._hold(ranges, as_of=as_of)

        def drop() -> None:
            self._let_go(flights.values())
            with self._lock:
                self._ahead_bytes -= size_bytes

        if new:
            self._pool.submit(self._bring, new, bridge_bytes)
        return Prefetched(drop)

    def close(self) -> None:
        """Starts no request any more. What is on its way is waited for by nobody."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------ who wants what

    def _hold(
        self, ranges: Iterable[ByteRange], *, as_of: int
    ) -> tuple[dict[ByteRange, _Flight], list[_Flight]]:
        """The flight of each range, held once; and those of them that nobody had asked for."""
        flights: dict[ByteRange, _Flight] = {}
        new: list[_Flight] = []
        with self._lock:
            for wanted in dict.fromkeys(ranges):
                flight = self._flights.get(wanted)
                if flight is None:
                    flight = self._flights[wanted] = _Flight(wanted, as_of=as_of)
                    new.append(flight)
                flight.holders += 1
                flights[wanted] = flight
        return flights, new

    def _let_go(self, flights: Iterable[_Flight]) -> None:
        with self._lock:
            for flight in flights:
                flight.holders -= 1
                if not flight.holders:
                    del self._flights[flight.range]

    def _taken(self, flights: Iterable[_Flight]) -> Traffic:
        """What these flights took, told to one reader only."""
        total = Traffic()
        with self._lock:
            for flight in flights:
                total, flight.traffic = total + flight.traffic, Traffic()
        return total

    def _wanted(self, flights: Iterable[_Flight]) -> bool:
        with self._lock:
            return any(flight.holders for flight in flights)

    def _note(self, flight: _Flight, traffic: Traffic) -> None:
        with self._lock:
            flight.traffic += traffic
            self._traffic += traffic

    # ------------------------------------------------------------ bringing it

    def _bring(self, flights: Sequence[_Flight], bridge_bytes: int) -> None:
        """Lands every flight that is still wanted: from the cache, else by requests, one of them here."""
        try:
            wanted = [flight for flight in flights if self._wanted([flight])]
            missing = [flight for flight in wanted if not self._from_cache(flight)]
            runs = merged(missing, bridge_bytes=bridge_bytes)
            for run in runs[1:]:
                self._pool.submit(self._get, run)
            if runs:
                self._get(runs[0])
        except BaseException as error:
            _fail(flights, error)
            raise

    def _cache_for(self, wanted: ByteRange) -> RangeCache | None:
        # A local file needs no second copy on the same machine.
        return self._cache if self._store.local_path(wanted.key) is None else None

    def _from_cache(self, flight: _Flight) -> bool:
        cache = self._cache_for(flight.range)
        data = None if cache is None else cache.get(flight.range)
        if data is None:
            return False
        self._note(flight, Traffic(cache_bytes=len(data)))
        flight.arrival.set_result(data)
        return True

    def _get(self, run: Sequence[_Flight]) -> None:
        """Lands a run of neighbours by one request, and each damaged one among them by one more."""
        if not self._wanted(run):
            return
        try:
            data = memoryview(self._request_run(run))
            for flight in run:
                start = flight.range.offset - run[0].range.offset
                self._land(flight, bytes(data[start : start + flight.range.size_bytes]))
        except BaseException as error:
            _fail(run, error)
            if not isinstance(error, Exception):
                raise
        # Only now: nobody waits for the disk.
        for flight in run:
            self._keep(flight)

    def _request_run(self, run: Sequence[_Flight]) -> bytes:
        first, last = run[0].range, run[-1].range
        size_bytes = last.offset + last.size_bytes - first.offset
        try:
            return self._request(run[0], first.key, first.offset, size_bytes)
        except IntegrityError:  # the object ends early, perhaps after some of these
            return b""

    def _land(self, flight: _Flight, data: bytes) -> None:
        wanted = flight.range
        if _digest(data) != wanted.sha256:
            try:
                data = self._request(flight, wanted.key, wanted.offset, wanted.size_bytes)
                if (found := _digest(data)) != wanted.sha256:
                    raise IntegrityError(
                        f"{wanted.key} at offset {wanted.offset} ({wanted.size_bytes} bytes) in"
                        f" {self._store.root} has SHA-256 {found[:12]}…; {wanted.sha256[:12]}… was committed"
                    )
            except StoreError as error:
                _fail([flight], error)
                return
        flight.arrival.set_result(data)

    def _request(self, flight: _Flight, key: str, offset: int, size_bytes: int) -> bytes:
        self._note(flight, Traffic(requests=1))
        data = self._store.get_range(key, offset, size_bytes)
        self._note(flight, Traffic(store_bytes=len(data)))
        return data

    def _keep(self, flight: _Flight) -> None:
        cache = self._cache_for(flight.range)
        if cache is not None and flight.arrival.exception() is None:
            cache.put(flight.range, flight.arrival.result(), as_of=flight.as_of)


def merged(flights: Iterable[_Flight], *, bridge_bytes: int = 0) -> list[list[_Flight]]:
    """Runs of flights that one request each serves: of one object, in order, at most MERGED_BYTES long.

    Between two of a run lie at most `bridge_bytes`, which are fetched and not used.
    """
    runs: list[list[_Flight]] = []
    for flight in sorted(flights, key=_place):
        wanted = flight.range
        if runs and (last := runs[-1][-1].range).key == wanted.key:
            gap = wanted.offset - (last.offset + last.size_bytes)
            length = wanted.offset + wanted.size_bytes - runs[-1][0].range.offset
            if 0 <= gap <= bridge_bytes and length <= MERGED_BYTES:
                runs[-1].append(flight)
                continue
        runs.append([flight])
    return runs


def _place(flight: _Flight) -> tuple[str, int, int]:
    return (flight.range.key, flight.range.offset, flight.range.size_bytes)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _fail(flights: Iterable[_Flight], error: BaseException) -> None:
    if not isinstance(error, Exception):  # this thread's alone: another's that waits is not interrupted
        error = StoreError("reading was interrupted")
    for flight in flights:
        # Another thread may have landed it a moment ago.
        with contextlib.suppress(InvalidStateError):
            flight.arrival.set_exception(error)
