"""Upscaled frames of a scene by number: from wherever somebody begins, the same pictures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nvpstore.upscaling.recurrence import Stretch, stretches
from nvpstore.upscaling.upscaler import FrameUpscaler

IDLE_PLAYERS = 2  # stretches that stay open between batches; each holds five frames and their flow

Read = Callable[[int, int], Iterator[NDArray[np.uint8]]]  # frames [first, end), uint8 [h, w, 3] each


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Frames [start, end) of a video, and how they are read. `key` names video, factor and weights."""

    key: Hashable
    start: int
    end: int
    read: Read


class _Player:
    """One stretch on its way: its pictures one after the other."""

    def __init__(self, upscaler: FrameUpscaler, scene: Scene, stretch: Stretch) -> None:
        self.begins = (scene.key, stretch.read_from)
        self.next = stretch.read_from
        read_to = min(scene.end, stretch.read_to)
        self._pictures = upscaler.bytes_of(scene.read(stretch.read_from, read_to))

    def picture(self, frame: int) -> NDArray[np.uint8]:
        while True:
            found = next(self._pictures)
            self.next += 1
            if self.next > frame:
                return found


class Playback:
    """Keeps the stretches that were read last, so that the next batch goes on where one ended."""

    def __init__(self) -> None:
        self._idle: list[_Player] = []
        self._lock = threading.Lock()

    def pictures(
        self, upscaler: FrameUpscaler, scene: Scene, frames: NDArray[np.int64]
    ) -> Iterator[NDArray[np.uint8]]:
        """uint8 [H, W, 3] of each of `frames` [t], ascending, all of the scene."""
        at = 0
        while at < len(frames):
            first = int(frames[at])
            whole = next(stretches(first, scene.end, scene_start=scene.start, scene_end=scene.end))
            player = self._take((scene.key, whole.read_from), first)
            player = player or _Player(upscaler, scene, whole)
            while at < len(frames) and frames[at] < whole.keep_to:
                yield player.picture(int(frames[at]))
                at += 1
            if player.next < whole.keep_to:
                self._give_back(player)

    def _take(self, begins: tuple[Hashable, int], frame: int) -> _Player | None:
        with self._lock:
            for place, player in enumerate(self._idle):
                if player.begins == begins and player.next <= frame:
                    return self._idle.pop(place)
        return None

    def _give_back(self, player: _Player) -> None:
        with self._lock:
            self._idle = [*self._idle, player][-IDLE_PLAYERS:]


def play(upscaler: FrameUpscaler, scene: Scene, first: int, end: int) -> Iterator[NDArray[np.uint8]]:
    """Frames [first, end) of the scene in order."""
    for stretch in stretches(first, end, scene_start=scene.start, scene_end=scene.end):
        with closing(_pictures(upscaler, scene, stretch)) as pictures:
            yield from pictures


def _pictures(upscaler: FrameUpscaler, scene: Scene, stretch: Stretch) -> Generator[NDArray[np.uint8]]:
    found = upscaler.bytes_of(scene.read(stretch.read_from, stretch.read_to))
    for frame, picture in enumerate(found, start=stretch.read_from):
        if stretch.keep_from <= frame < stretch.keep_to:
            yield picture
