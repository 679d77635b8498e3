"""What the queries of one `Operators` share: steps in flight are joined, what is in memory is taken.

Any reader of a step may be the one that carries it out, so that a cancelled query never takes another one
with it; an error in a shared step is every reader's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

from nvpstore.query.flights import Ask, Decoding, Flight, State, Taken
from nvpstore.query.scheduler import POLL_SECONDS, SCHEDULER, Cancelled, Check, Scheduler
from nvpstore.query.shelves import Shelf, Shelves

LIMIT_BYTES = 512 << 20


class Sharing:
    """The steps of one `Operators`, by value: in flight, or still in memory."""

    def __init__(self, *, limit_bytes: int = LIMIT_BYTES, scheduler: Scheduler = SCHEDULER) -> None:
        self.scheduler = scheduler
        self._shelves = Shelves(limit_bytes)
        self._flights: dict[Hashable, Flight] = {}
        self._decodings: dict[Hashable, list[Decoding]] = {}
        scheduler.add(self)

    @property
    def size_bytes(self) -> int:
        """Of all that is kept."""
        return self._shelves.size_bytes

    def limit(self, limit_bytes: int) -> None:
        with self.scheduler.changed:
            self._shelves.limit(limit_bytes)

    def clear(self) -> None:
        """Forgets what is kept, weights too."""
        with self.scheduler.changed:
            self._shelves.clear(*Shelf)

    def forget_features(self) -> None:
        with self.scheduler.changed:
            self._shelves.clear(Shelf.FEATURES)

    def holds(self, keys: Sequence[Hashable]) -> bool:
        """Whether a step of one of `keys` is in memory or in flight."""
        with self.scheduler.changed:
            return any(key in self._flights or self._shelves.get(key) is not None for key in keys)

    # ------------------------------------------------------------ steps by key

    def once(
        self,
        key: Hashable,
        make: Callable[[], Any],
        *,
        shelf: Shelf,
        size: Callable[[Any], int],
        check: Check,
    ) -> Taken:
        """The value of `key`: from memory, from who is at it, else made here.

        Raises what `make` raised, wherever that was, and Cancelled from `check`.
        """
        with self.scheduler.changed:
            kept = self._shelves.get(key)
            if kept is not None:
                return Taken(value=kept, made=False)
            flight = self._flights.setdefault(key, Flight())
            flight.readers += 1
        try:
            if not self._lead(flight, check, device=False):
                return Taken(value=flight.result(), made=False)
            value = self._carry_out(flight, make)
            with self.scheduler.changed:
                self._flights.pop(key, None)
                self._keep(key, value, shelf=shelf, size=size, dropped=_nothing)
            return Taken(value=value, made=True)
        finally:
            with self.scheduler.changed:
                flight.readers -= 1
                over = flight.landed or not flight.readers
                if over and self._flights.get(key) is flight:
                    del self._flights[key]

    def deepest_of(
        self,
        keys: Sequence[Hashable],
        make: Callable[[int], Any],
        *,
        size: Callable[[Any], int],
        check: Check,
    ) -> Taken:
        """The weights of `keys[0]`, or of one of the deeper `keys` after it where those are at hand."""
        with self.scheduler.changed:
            at_hand = (i for i, key in enumerate(keys) if self.holds([key]))
            position = next(at_hand, 0)
        try:
            return self._weights(keys[position], lambda: make(position), size, check)
        except Cancelled:
            raise
        except Exception:
            if position == 0:
                raise
        # What failed may lie deeper than this query reads.
        return self._weights(keys[0], lambda: make(0), size, check)

    def _weights(
        self, key: Hashable, make: Callable[[], Any], size: Callable[[Any], int], check: Check
    ) -> Taken:
        return self.once(key, make, shelf=Shelf.WEIGHTS, size=size, check=check)

    # ------------------------------------------------------------ decodes

    def decode(
        self,
        identity: Hashable,
        ask: Ask,
        work: Callable[[Ask], Any],
        *,
        size: Callable[[Any], int],
        check: Check,
    ) -> Taken:
        """Features of exactly these frames of a segment, at the taps asked for or more.

        Another query's decode of them serves if it is deep enough; one that has not begun yet becomes deep
        enough, and is a tap of this one then.
        """
        key = (identity, ask.frames.tobytes())
        with self.scheduler.changed:
            decoding = self._join(key, ask)
            decoding.readers += 1
        try:
            made = self._land(key, decoding, work, size, check)
        finally:
            with self.scheduler.changed:
                decoding.readers -= 1
                if not decoding.readers and decoding.state is State.IDLE:
                    self._remove(key, decoding)
        if decoding.error is not None and decoding.ask.taps != ask.taps:
            # What failed may lie deeper than this query reads.
            with self.scheduler.device(check):
                return Taken(value=work(ask), made=True)
        return Taken(value=decoding.result(), made=made)

    def _join(self, key: Hashable, ask: Ask) -> Decoding:
        """The decode in flight, or in memory, that serves `ask`; else a new one."""
        decodings = self._decodings.setdefault(key, [])
        for decoding in decodings:
            if decoding.serves(ask):
                decoding.add(ask)
                self._shelves.get(decoding)
                return decoding
        decodings.append(Decoding(ask))
        return decodings[-1]

    def _land(
        self,
        key: Hashable,
        decoding: Decoding,
        work: Callable[[Ask], Any],
        size: Callable[[Any], int],
        check: Check,
    ) -> bool:
        """Waits for `decoding`, or carries it out as soon as the device is free; whether it did that."""
        if not self._lead(decoding, check, device=True):
            return False
        ask = decoding.ask
        try:
            value = self._carry_out(decoding, lambda: work(ask))
        except Exception:
            with self.scheduler.changed:
                self._remove(key, decoding)
            return False  # every reader finds the error there
        finally:
            self.scheduler.free_device()
        with self.scheduler.changed:
            self._remove(key, decoding)
            decoding.ask = replace(ask, handle=None)  # its weights are kept for themselves
            if self.scheduler.crowded:
                self._decodings.setdefault(key, []).append(decoding)
                self._keep(
                    decoding,
                    value,
                    shelf=Shelf.FEATURES,
                    size=size,
                    dropped=lambda: self._remove(key, decoding),
                )
        return True

    def _remove(self, key: Hashable, decoding: Decoding) -> None:
        left = [other for other in self._decodings.get(key, []) if other is not decoding]
        self._decodings[key] = left
        if not left:
            del self._decodings[key]

    # ------------------------------------------------------------ flights

    def _lead(self, flight: Flight, check: Check, *, device: bool) -> bool:
        """Waits until `flight` has landed (False) or is this thread's to carry out (True)."""
        with self.scheduler.changed:
            while not flight.landed:
                check()
                if flight.state is State.IDLE and not (device and self.scheduler.busy):
                    flight.state = State.RUNNING
                    self.scheduler.busy |= device
                    return True
                self.scheduler.changed.wait(POLL_SECONDS)
            return False

    def _carry_out(self, flight: Flight, make: Callable[[], Any]) -> Any:
        state = State.IDLE  # of a flight whose own query ends here: the next reader takes it over
        try:
            flight.value = make()
            state = State.DONE
        except Cancelled:
            raise
        except Exception as cause:
            flight.error, state = cause, State.FAILED
            raise
        finally:
            with self.scheduler.changed:
                flight.state = state
                self.scheduler.changed.notify_all()
        return flight.value

    def _keep(
        self,
        key: Hashable,
        value: Any,
        *,
        shelf: Shelf,
        size: Callable[[Any], int],
        dropped: Callable[[], None],
    ) -> None:
        if shelf is Shelf.WEIGHTS or self.scheduler.crowded:
            self._shelves.put(key, value, shelf=shelf, size_bytes=size(value), dropped=dropped)


def _nothing() -> None:
    pass
