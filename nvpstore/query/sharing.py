"""What the queries of one `Operators` share: steps in flight are joined, what is in memory is taken.

Any reader of a step may be the one that carries it out, so that a cancelled query never takes another one
with it; an error in a shared step is every reader's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvpstore.query.flights import Ask, Flight, Part, Piece, State, Taken
from nvpstore.query.scheduler import POLL_SECONDS, SCHEDULER, Cancelled, Check, Scheduler
from nvpstore.query.shelves import Shelf, Shelves

LIMIT_BYTES = 512 << 20


class Sharing:
    """The steps of one `Operators`, by value: in flight, or still in memory."""

    def __init__(self, *, limit_bytes: int = LIMIT_BYTES, scheduler: Scheduler = SCHEDULER) -> None:
        self.scheduler = scheduler
        self._shelves = Shelves(limit_bytes)
        self._flights: dict[Hashable, Flight] = {}
        self._pieces: dict[Hashable, list[Piece]] = {}
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
        key: Hashable,
        ask: Ask,
        work: Callable[[Ask], Any],
        *,
        size: Callable[[Any], int],
        check: Check,
    ) -> tuple[list[Part], int]:
        """Features of `ask.frames` of the segment `key` in parts, and how many frames were decoded here.

        Frames that another query decodes, or has decoded, at these taps are its own; so are those that it
        is about to decode less deep: that becomes a tap of this one.
        """
        with self.scheduler.changed:
            chosen = self._cover(key, ask)
            for piece, _ in chosen:
                piece.readers += 1
        try:
            made = [self._land(key, piece, work, size, check) for piece, _ in chosen]
        finally:
            with self.scheduler.changed:
                for piece, _ in chosen:
                    piece.readers -= 1
                    if not piece.readers and piece.state is State.IDLE:
                        self._remove(key, piece)
        if any(piece.error is not None and not piece.is_for(ask) for piece, _ in chosen):
            # It failed for what others asked of it, deeper or on other frames.
            with self.scheduler.device(check):
                everything = np.arange(len(ask.frames))
                alone = Part(
                    features=work(ask), all_frames=ask.frames, positions=everything, frames=ask.frames
                )
            return [alone], len(ask.frames)
        return [piece.part(frames) for piece, frames in chosen], sum(made)

    def _cover(self, key: Hashable, ask: Ask) -> list[tuple[Piece, NDArray[np.int64]]]:
        """Pieces and the frames to take from each, all of `ask.frames` together; the new piece comes last."""
        chosen: list[tuple[Piece, NDArray[np.int64]]] = []
        left = ask.frames
        pieces = self._pieces.setdefault(key, [])
        for piece in [piece for piece in pieces if piece.serves(ask)]:
            inside = np.isin(left, piece.frames, assume_unique=True)
            if inside.any():
                chosen.append((piece, left[inside]))
                left = left[~inside]
                piece.deepen(ask)
                self._shelves.get(piece)
        if len(left):
            pieces.append(Piece(ask, left))
            chosen.append((pieces[-1], left))
        return chosen

    def _land(
        self,
        key: Hashable,
        piece: Piece,
        work: Callable[[Ask], Any],
        size: Callable[[Any], int],
        check: Check,
    ) -> int:
        """Waits for `piece`, or decodes it as soon as the device is free; how many frames that were."""
        if not self._lead(piece, check, device=True):
            return 0
        ask = replace(piece.ask, frames=piece.frames)
        try:
            value = self._carry_out(piece, lambda: work(ask))
        except Exception:
            with self.scheduler.changed:
                self._remove(key, piece)
            return 0  # every reader finds the error at the piece
        finally:
            self.scheduler.free_device()
        with self.scheduler.changed:
            self._remove(key, piece)
            piece.ask = replace(ask, handle=None)  # its weights are kept for themselves
            if self.scheduler.crowded:
                self._pieces.setdefault(key, []).append(piece)
                self._keep(
                    piece, value, shelf=Shelf.FEATURES, size=size, dropped=lambda: self._remove(key, piece)
                )
        return len(piece.frames)

    def _remove(self, key: Hashable, piece: Piece) -> None:
        pieces = [other for other in self._pieces.get(key, []) if other is not piece]
        self._pieces[key] = pieces
        if not pieces:
            del self._pieces[key]

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
