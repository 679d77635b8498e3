"""Chosen frames of an original, in any order of asking: what a source route reads."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from nvpstore.types import SourceScan
from nvpstore.video.converter import Converter
from nvpstore.video.decoder import open_decoder
from nvpstore.video.source import Stamped, checked_frames, fingerprint

_FAR_FRAMES = 250  # where a file has no index: about the longest distance between keyframes


class FrameReader:
    """One open file. Goes on decoding from where it stands, or seeks where a keyframe lies on the way.

    Only frames that are asked for are converted to RGB. Not for several threads at once; close it.
    """

    def __init__(self, scan: SourceScan) -> None:
        """Raises SourceError where the file is missing or no video. Every pts is checked against `scan`'s."""
        self.scan = scan
        self._frames: Generator[Stamped] | None = None
        self._next = 0  # the frame that comes out next
        self._converter: Converter | None = None
        with open_decoder(scan.info.path) as decoder:
            self._keyframes = decoder.indexed_keyframes()
            self._file = fingerprint(scan.info.path)

    def read(self, frames: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Frames [t], ascending, as uint8 [t, h, w, 3], as shown.

        Raises SourceError for damage and where the file is not the one that was scanned, ValueError for
        frames that it does not have.
        """
        info = self.scan.info
        if len(frames) and not 0 <= frames[0] <= frames[-1] < self.scan.frames:
            raise ValueError(f"frames {frames[0]} to {frames[-1]} of {self.scan.frames}")
        rgb_thwc = np.empty((len(frames), info.height, info.width, 3), dtype=np.uint8)
        for target, frame in zip(rgb_thwc, frames.tolist(), strict=True):
            self._go_to(frame)
            assert self._frames is not None, "_go_to opens the file"
            _, picture = next(self._frames)
            self._next = frame + 1
            if self._converter is None:
                self._converter = Converter(info.path, picture, info)
            target[:] = self._converter.rgb(picture)
        return rgb_thwc

    @property
    def current(self) -> bool:
        """Whether the file that is open is still the one at its path."""
        try:
            return fingerprint(self.scan.info.path) == self._file
        except OSError:
            return False

    def nearness(self, frame: int) -> tuple[bool, int]:
        """Greater for readers that reach `frame` sooner."""
        return (self._next <= frame, self._next)

    def close(self) -> None:
        if self._frames is not None:
            self._frames.close()
            self._frames = None

    def _go_to(self, frame: int) -> None:
        if self._frames is None or frame < self._next or self._seeking_pays(frame):
            self.close()
            self._frames, self._next = checked_frames(self.scan.info.path, frame, self.scan), frame
        while self._next < frame:
            next(self._frames)
            self._next += 1

    def _seeking_pays(self, frame: int) -> bool:
        """Whether decoding can begin at a keyframe between here and there."""
        if frame == self._next:
            return False
        if not self._keyframes:
            return frame - self._next >= _FAR_FRAMES
        here, there = int(self.scan.pts[self._next]), int(self.scan.pts[frame])
        # The index is in decoding order: a keyframe is shown a little later than it says.
        return bisect_right(self._keyframes, here) < bisect_right(self._keyframes, there)


class IdleReaders:
    """Readers that nobody uses now: the next batch of a video goes on where the last one ended."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._idle: list[tuple[str, FrameReader]] = []
        self._lock = threading.Lock()

    def take(self, video_id: str, frame: int) -> FrameReader | None:
        """The one of this video that reads `frame` soonest, to be given back or closed.

        None if all are in use, or of a file that is another by now.
        """
        with self._lock:
            places = [place for place, (owner, _) in enumerate(self._idle) if owner == video_id]
            if not places:
                return None
            best = max(places, key=lambda place: self._idle[place][1].nearness(frame))
            _, found = self._idle.pop(best)
        if found.current:
            return found
        found.close()
        return None

    def give_back(self, video_id: str, reader: FrameReader) -> None:
        """The longest idle one is closed where there are too many."""
        with self._lock:
            self._idle.append((video_id, reader))
            too_many = [self._idle.pop(0)[1] for _ in range(len(self._idle) - self._most)]
        for old in too_many:
            old.close()
