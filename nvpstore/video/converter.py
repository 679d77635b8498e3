"""Decoded frames to RGB as shown: turned, at one size, in the colours that the stream declares, in SDR.

HDR (PQ and HLG, ITU-R BT.2100) is mapped to BT.709 by FFmpeg's swscale; `refuse_hdr` is the door at which
somebody must have asked for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import av
import numpy as np
from av.buffer import Buffer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorTrc, Interpolation, VideoReformatter
from numpy.typing import NDArray

from nvpstore.errors import SourceError
from nvpstore.types import SourceInfo

# swscale's default conversion is fast, darker by 1.1 of 255 on average, and differs between CPUs. These flags
# make it unbiased and the same everywhere, for about 4 ms a 720p frame.
_EXACT = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
)


# Transfer characteristics whose values are no SDR picture's, by the names that people use.
_HDR: Mapping[int, str] = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}
_SDR: Mapping[str, Any] = {"dst_color_trc": ColorTrc.BT709, "dst_color_primaries": ColorPrimaries.BT709}


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


class Converter:
    """Decoded frames to RGB as shown. All frames come out at the first one's size and orientation."""

    def __init__(self, path: str, first: VideoFrame, info: SourceInfo | None = None) -> None:
        """`info` where the video's first frame is known, and `first` may be a later one."""
        self._path = path
        self.hdr = hdr_of(first)
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
        BT.601, limited. Frames after a change of size are scaled to the first one's, as FFmpeg does. HDR is
        mapped to BT.709.
        """
        shown = _SDR if hdr_of(frame) else {}
        return self.orientation.apply(
            self._reformat(self._to_rgb, frame, self._stored, "rgb24", _EXACT, **shown)
        )

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
        **colors: Any,
    ) -> NDArray[np.uint8]:
        width, height = size
        try:
            out = reformatter.reformat(frame, width, height, pixel_format, interpolation=flags, **colors)
        except av.FFmpegError as error:
            raise SourceError(
                f"{self._path}: pixel format {frame.format.name} in color space {frame.colorspace} cannot be "
                f"converted to RGB ({error.strerror}); allowed is what FFmpeg's swscale reads"
            ) from error
        return out.to_ndarray().astype(np.uint8, copy=False)


def hdr_of(frame: VideoFrame) -> str:
    """ "PQ" or "HLG" for a frame that is coded so, else empty."""
    return _HDR.get(frame.color_trc, "")


def refuse_hdr(path: str, hdr: str) -> None:
    """Raises SourceError for "PQ" and "HLG": an SDR picture of them is a choice, which somebody must make."""
    if hdr:
        raise SourceError(
            f"{path}: its pictures are HDR ({hdr}), and what is stored is 8-bit SDR; "
            "ask for it to be mapped to SDR (--tone-map, tone_map=True), or give an SDR file"
        )


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
