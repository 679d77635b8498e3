"""One open video stream: demuxed and decoded once, front to back, with everything that can be wrong with a
file.

Produced by `open_decoder`, consumed by `video.source`. Frames leave as RGB as shown: rotated, at one size,
in the colours that the stream declares.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.buffer import Buffer
from av.codec.context import ThreadType
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from nvpstore.errors import SourceError
from nvpstore.types import SourceInfo
from nvpstore.video.matroska import declared_bytes

_FALLBACK_FPS = Fraction(25)  # FFmpeg's own, for streams that say nothing

# swscale's default conversion is fast, darker by 1.1 of 255 on average, and differs between CPUs. These flags
# make it unbiased and the same everywhere, for about 4 ms a 720p frame.
_EXACT = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
)

# Containers whose duration is what the muxer wrote, not what FFmpeg found in the file.
_MATROSKA = "matroska,webm"
_DECLARE_DURATION = (_MATROSKA, "flv")

# Their frames lie in other files, which the digest does not cover and the caller may not be allowed to read.
_PLAYLISTS = ("hls", "dash", "concat", "imf")

_UNDECODABLE_LEAD_IN = 8

# A stream may change its size at any frame, and pictures are allocated before anybody has looked at them.
MOST_PIXELS = 2**26


@dataclass(frozen=True, slots=True, kw_only=True)
class Orientation:
    """How a stored frame is turned to be shown: transpose, then mirror left-right, then top-bottom."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @property
    def rotation_degrees(self) -> int:
        """Clockwise turn from stored to shown: 0, 90, 180 or 270. A mirrored picture's turn leaves the mirror
        out.
        """
        if self.transpose:
            return 90 if self.mirror_x else 270
        return 180 if self.mirror_y else 0

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """[h, w, c] -> [h, w, c], or [w, h, c] where it transposes. A view."""
        if self.transpose:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]


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
        # Audio is demuxed too: it shows how far the file reaches where video stops earlier.
        streams = [s for s in self.container.streams if s is self.stream or s.type == "audio"]
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
        streams = [s for s in self.container.streams if s is self.stream or s.type == "audio"]
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


class Converter:
    """Decoded frames to RGB as shown. All frames come out at the first one's size and orientation."""

    def __init__(self, path: str, first: VideoFrame, info: SourceInfo | None = None) -> None:
        """`info` where the video's first frame is known, and `first` may be a later one."""
        self._path = path
        self.orientation = _orientation(path, first)
        self._stored = (first.width, first.height)
        if info is not None:
            turned = self.orientation.transpose
            self._stored = (info.height, info.width) if turned else (info.width, info.height)
        self._to_rgb = VideoReformatter()
        self._to_thumbnail = VideoReformatter()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) as shown."""
        width, height = self._stored
        return (height, width) if self.orientation.transpose else (width, height)

    def rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """uint8 [h, w, 3] as shown, full range. A view; valid while it is held.

        Matrix and range are those that the frame declares. Where it declares none they are FFmpeg's defaults:
        BT.601, limited. Frames after a change of size are scaled to the first one's, as FFmpeg does.
        """
        width, height = self._stored
        return self.orientation.apply(self._reformat(self._to_rgb, frame, (width, height), "rgb24", _EXACT))

    def thumbnail(self, frame: VideoFrame, width: int, height: int) -> NDArray[np.uint8]:
        """uint8 [3, height, width], YUV, as stored (not turned)."""
        return self._reformat(self._to_thumbnail, frame, (width, height), "yuv444p", Interpolation.AREA)

    def _reformat(
        self,
        reformatter: VideoReformatter,
        frame: VideoFrame,
        size: tuple[int, int],
        pixel_format: str,
        flags: int,
    ) -> NDArray[np.uint8]:
        width, height = size
        try:
            out = reformatter.reformat(frame, width, height, pixel_format, interpolation=flags)
        except av.FFmpegError as error:
            raise SourceError(
                f"{self._path}: pixel format {frame.format.name} in color space {frame.colorspace} cannot be "
                f"converted to RGB ({error.strerror}); allowed is what FFmpeg's swscale reads"
            ) from error
        return out.to_ndarray().astype(np.uint8, copy=False)


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


def _orientation(path: str, frame: VideoFrame) -> Orientation:
    """From the frame's display matrix: shown (x, y) = (a·p + c·q, b·p + d·q) for the stored (p, q)."""
    # PyAV's annotation of `side_data` knows motion vectors only.
    side_data = cast(Mapping[SideDataType, Buffer], frame.side_data)
    matrix = side_data.get(SideDataType.DISPLAYMATRIX)
    if matrix is None:
        return Orientation()
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), dtype=np.int32).tolist()
    if a and d and not b and not c:
        return Orientation(mirror_x=a < 0, mirror_y=d < 0)
    if b and c and not a and not d:
        return Orientation(transpose=True, mirror_x=c < 0, mirror_y=b < 0)
    if not (a or b or c or d):
        return Orientation()
    raise SourceError(f"{path}: is shown turned by {frame.rotation} degrees; allowed are 0, 90, 180 and 270")
