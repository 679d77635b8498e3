"""One open video stream: demuxed and decoded once, front to back, with everything that can be wrong with a
file.

Produced by `open_decoder`, consumed by `video.source`. `video.converter` makes RGB of its frames.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import av
from av.codec.context import ThreadType
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from nvpstore.errors import SourceError
from nvpstore.video.matroska import declared_bytes

_FALLBACK_FPS = Fraction(25)  # FFmpeg's own, for streams that say nothing

# Containers whose duration is what the muxer wrote, not what FFmpeg found in the file.
_MATROSKA = "matroska,webm"
_DECLARE_DURATION = (_MATROSKA, "flv")

# Their frames lie in other files, which the digest does not cover and the caller may not be allowed to read.
_PLAYLISTS = ("hls", "dash", "concat", "imf")

_UNDECODABLE_LEAD_IN = 8

_COVERING = ("audio", "subtitle")  # streams of which a container counts the length, too

# A stream may change its size at any frame, and pictures are allocated before anybody has looked at them.
MOST_PIXELS = 2**26


class Decoder:
    """Decodes one video stream, once, front to back. Made by `open_decoder`, which closes the container."""

    def __init__(self, path: str, container: InputContainer, stream: VideoStream) -> None:
        self.path = path
        self.container = container
        self.stream = stream
        self.time_base = stream.time_base or Fraction(1, av.time_base)
        self.fps = stream.average_rate or stream.guessed_rate or _FALLBACK_FPS
        # Counted before decoding: the index of a fragmented file grows while it is read.
        self.declared_frames = _indexed_frames(container, stream)
        self.decoded = 0
        self._packets = 0
        self._covered_seconds = 0.0
        self._anchor = (0, 0)  # the last frame whose pts was given, and that pts

    @property
    def frame_interval(self) -> Fraction:
        """One frame at the average rate, in time base units."""
        return 1 / (self.fps * self.time_base)

    def frames(self) -> Iterator[tuple[int, VideoFrame]]:
        """(pts, frame) in the order shown. Missing pts are filled in at the average frame rate.

        Raises SourceError where the data is damaged.
        """
        # Others are demuxed too: they show how far the file reaches where video stops earlier.
        streams = [s for s in self.container.streams if s is self.stream or s.type in _COVERING]
        try:
            for packet in self.container.demux(streams):
                self._note(packet)
                if packet.stream.index == self.stream.index:
                    for frame in self.stream.decode(packet):
                        yield self._stamp(frame), frame
        except av.FFmpegError as error:
            raise self.damaged(error.strerror or str(error)) from error

    def packets(self) -> Iterator[tuple[int | None, bool]]:
        """(pts, whether decoding can start there) of every packet of the stream, in decoding order.

        Nothing is decoded; each counts as a frame. Raises SourceError where the container is damaged.
        """
        streams = [s for s in self.container.streams if s is self.stream or s.type in _COVERING]
        try:
            for packet in self.container.demux(streams):
                self._note(packet)
                if packet.stream.index == self.stream.index and packet.size > 0 and not packet.is_discard:
                    self.decoded += 1
                    yield packet.pts, bool(packet.is_keyframe)
        except av.FFmpegError as error:
            raise self.damaged(error.strerror or str(error)) from error

    def indexed_keyframes(self) -> list[int]:
        """Decoding times of keyframes, ascending; empty where the container has no index."""
        return sorted(entry.timestamp for entry in self.stream.index_entries if entry.is_keyframe)

    def seek(self, pts: int) -> None:
        """Continue at the nearest keyframe at or before `pts`, as far as the container's index can tell."""
        try:
            self.container.seek(pts, stream=self.stream)
        except av.FFmpegError as error:
            raise SourceError(f"{self.path}: cannot seek to pts {pts}: {error.strerror}") from error

    def check_complete(self) -> None:
        """After `frames` ended: raise SourceError if the container declares more than there was."""
        # Every indexed packet must be there, but streams that were cut without re-encoding may begin with
        # frames whose reference is gone.
        if self._packets < self.declared_frames or self.decoded < self.declared_frames - _UNDECODABLE_LEAD_IN:
            raise self.damaged("the file is truncated or damaged")
        declared = self._declared_seconds()
        # Muxers differ in whether the last frame's duration counts.
        slack = max(3 / float(self.fps), min(0.5, declared / 10))
        if self._covered_seconds < declared - slack:
            raise self.damaged(f"it ends after {self._covered_seconds:.1f} s of {declared:.1f} s")
        if self.container.format.name == _MATROSKA and os.path.getsize(self.path) < declared_bytes(self.path):
            raise self.damaged("the file is truncated")
        if self.decoded == 0:
            raise self.no_frames()

    def no_frames(self) -> SourceError:
        return SourceError(f"{self.path}: its video stream has no frames; at least one is needed")

    def damaged(self, reason: str) -> SourceError:
        declared = self.declared_frames or round(self._declared_seconds() * self.fps)
        of = f" of {declared}" if declared else ""
        return SourceError(
            f"{self.path}: {self.decoded}{of} frames could be decoded: {reason}; "
            "a whole, undamaged file is needed"
        )

    def _note(self, packet: Packet[Any]) -> None:
        if packet.is_corrupt:
            raise self.damaged("the file ends or breaks inside a packet")
        start = packet.pts if packet.pts is not None else packet.dts
        if start is not None:
            end = float((start + (packet.duration or 0)) * packet.time_base)
            self._covered_seconds = max(self._covered_seconds, end)
        if packet.stream.index == self.stream.index and packet.size > 0 and not packet.is_discard:
            self._packets += 1

    def _stamp(self, frame: VideoFrame) -> int:
        if frame.is_corrupt:
            raise self.damaged(f"frame {self.decoded} is damaged")
        if frame.pts is not None:
            self._anchor = (self.decoded, frame.pts)
        anchor_frame, anchor_pts = self._anchor
        pts = anchor_pts + round((self.decoded - anchor_frame) * self.frame_interval)
        self.decoded += 1
        return pts

    def _declared_seconds(self) -> float:
        if self.container.format.name not in _DECLARE_DURATION:
            return 0.0
        return (self.container.duration or 0) / av.time_base


@contextmanager
def open_decoder(path: str) -> Iterator[Decoder]:
    """Open the first video stream that is not a cover picture. Raises SourceError; always closes the file."""
    with open_container(path) as container:
        stream = _video_stream(path, container)
        stream.thread_type = ThreadType.AUTO
        stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
        yield Decoder(path, container, stream)


def open_container(path: str) -> InputContainer:
    """Open one local media file and nothing it points to. Raises SourceError; the caller closes it."""
    _check_file(path)
    try:
        # Absolute, or FFmpeg takes what stands before a colon for a protocol.
        container = av.open(
            os.path.abspath(path), "r", metadata_errors="replace", options={"protocol_whitelist": "file"}
        )
    except av.FFmpegError as error:
        raise SourceError(
            f"{path}: not a video that FFmpeg can open ({error.strerror}); "
            "it may be cut short or another kind of file, a whole video is needed"
        ) from error
    if container.format.name in _PLAYLISTS:
        container.close()
        raise SourceError(
            f"{path}: is a playlist ({container.format.name}); a file that holds the video is needed"
        )
    return container


def unreadable(path: str, error: OSError) -> SourceError:
    return SourceError(f"{path}: cannot be read: {error.strerror}; the path of a video file is needed")


def _check_file(path: str) -> None:
    try:
        status = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise SourceError(f"{path}: is {kind}; the path of a video file is needed")
    if status.st_size == 0:
        raise SourceError(f"{path}: is empty (0 bytes); a video file is needed")


def _video_stream(path: str, container: InputContainer) -> VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise SourceError(f"{path}: no decoder for its video stream; allowed is what FFmpeg decodes")
            return stream
    found = ", ".join(sorted({s.type for s in container.streams})) or "no streams"
    raise SourceError(f"{path}: found {found} in {container.format.name}, but no video stream; one is needed")


def _indexed_frames(container: InputContainer, stream: VideoStream) -> int:
    """How many frames an MP4 or MOV must give; 0 where no container says so exactly.

    The index, not the header's sample count: an edit list may leave samples out.
    """
    if not container.format.name.startswith("mov") or stream.frames == 0:
        return 0
    return sum(entry.size > 0 and not entry.is_discard for entry in stream.index_entries)
