"""Frames out, for people: H.264, lossless FFV1, or PNGs. Nothing is visible under its name before it is
whole.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nvpstore.errors import StoreError, UsageError
from nvpstore.types import FrameBatch
from nvpstore.video.audio import AudioCopy, open_audio

_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
_LOSSLESS_FORMATS = {".mkv": "matroska", ".mp4": "mp4"}
# swscale centers the chroma samples that it makes; without a note players take H.264's to lie on the left.
_H264 = {"crf": "16", "preset": "medium", "x264-params": "chromaloc=1"}
_FFV1 = {"level": "3", "slices": "4", "slicecrc": "1", "g": "1"}  # every frame alone, with checksums
_FFV1_TINY = {"g": "1"}  # where four slices would have no pixel each
_TINY = 4
_HD_HEIGHT = 720
_LARGEST_RATE_TERM = 1_000_000

_AVCOL_SPC = {Colorspace.ITU709: 1, Colorspace.SMPTE170M: 6}  # swscale's numbers to those of streams

_EXACT = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP | Interpolation.BITEXACT
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Encoding:
    """A codec, its options, and the pixels it is given. `matrix` is None for RGB."""

    codec: str
    options: Mapping[str, str]
    pixel_format: str
    matrix: Colorspace | None


def write_video(
    batches: Iterable[FrameBatch],
    out: str,
    *,
    width: int,
    height: int,
    time_base: Fraction,
    average_fps: Fraction,
    pixel_aspect: Fraction = Fraction(1),
    audio_from: str | None = None,
    lossless: bool = False,
    metadata: Mapping[str, str],
    start_pts: int = 0,
    overwrite: bool = False,
) -> int:
    """Encode all frames to `out` and return their number.

    H.264 in .mp4, .m4v, .mov or .mkv; `lossless` is FFV1 of the RGB values in .mkv or .mp4. In MP4 and MOV
    every pts, less `start_pts`, is kept exactly; Matroska rounds to milliseconds. Sound and subtitles of
    `audio_from` are copied where the container holds their codec, else encoded as AAC or rewritten as text it
    holds. `metadata` goes into the container's tags, `pixel_aspect` (a pixel's width over its height) to the
    stream, but for FFV1 in Matroska, where PyAV has no place for it.

    Raises StoreError where `out` cannot be written or exists, UsageError for a suffix that is not offered or
    no frames, SourceError where `audio_from` cannot be read.
    """
    encoding = _encoding(width, height, lossless=lossless)
    container_format = _container_format(out, lossless=lossless)
    wanted = _filled(batches, out)
    first = next(wanted)
    start_pts = min(start_pts, int(first.pts[0]))  # players drop what lies before 0
    with _part_file(out, overwrite=overwrite) as part, ExitStack() as stack:
        container = stack.enter_context(_open_output(part, container_format, time_base))
        container.metadata.update(metadata)
        stream = _add_video(container, encoding, width, height, time_base, average_fps)
        stream.codec_context.sample_aspect_ratio = pixel_aspect
        audio = stack.enter_context(open_audio(audio_from, container, shift_seconds=-start_pts * time_base))
        return _encode(
            chain([first], wanted), container, stream, audio, encoding=encoding, start_pts=start_pts
        )


def write_pngs(
    batches: Iterable[FrameBatch], folder: str, *, metadata: Mapping[str, str], overwrite: bool = False
) -> int:
    """Write `frame-<frame number in the source, 8 digits>.png` into `folder` and return how many.

    `metadata` goes into each file's text chunks. The folder is made if its parent exists. Raises StoreError
    where it cannot be written or holds such files already, UsageError for no frames.
    """
    target = Path(folder)
    if not overwrite and any(target.glob("frame-*.png")):
        raise StoreError(f"{folder}: holds frame-*.png already; choose another folder, or overwrite")
    text = PngInfo()
    for key, value in metadata.items():
        text.add_text(key, value)
    with _store_errors(folder), _part_folder(target) as part:
        names: list[str] = []
        for batch in _filled(batches, folder):
            for frame, rgb_hwc in enumerate(batch.rgb_thwc, start=batch.first_frame):
                names.append(f"frame-{frame:08d}.png")
                Image.fromarray(rgb_hwc).save(part / names[-1], pnginfo=text)
        for name in names:
            os.replace(part / name, target / name)
    return len(names)


def _filled(batches: Iterable[FrameBatch], out: str) -> Iterator[FrameBatch]:
    """`batches` without empty ones. Raises UsageError if none is left."""
    found = False
    for batch in batches:
        if len(batch):
            found = True
            yield batch
    if not found:
        raise UsageError(f"{out}: there are no frames to write; at least one is needed")


# ---------------------------------------------------------------- encoding


def _encoding(width: int, height: int, *, lossless: bool) -> _Encoding:
    if lossless:
        # The 8-bit RGB that FFV1 takes; the fourth byte is not stored.
        options = _FFV1 if min(width, height) >= _TINY else _FFV1_TINY
        return _Encoding(codec="ffv1", options=options, pixel_format="bgr0", matrix=None)
    # The matrix is written into the file; this choice is also what players that ignore it assume.
    matrix = Colorspace.ITU709 if height >= _HD_HEIGHT else Colorspace.SMPTE170M
    # 4:2:0 shares one chroma sample between 2x2 pixels, so libx264 takes even sizes only. Padding would
    # change the size; 4:4:4 keeps it, at the price of players that know the High 4:4:4 profile.
    pixel_format = "yuv444p" if width % 2 or height % 2 else "yuv420p"
    return _Encoding(codec="libx264", options=_H264, pixel_format=pixel_format, matrix=matrix)


def _container_format(out: str, *, lossless: bool) -> str:
    formats = _LOSSLESS_FORMATS if lossless else _FORMATS
    suffix = Path(out).suffix.lower()
    if suffix not in formats:
        kind = "lossless video" if lossless else "video"
        raise UsageError(
            f"{out}: {kind} is written as {', '.join(formats)}, not {suffix or 'without a suffix'}"
        )
    return formats[suffix]


def _open_output(part: Path, container_format: str, time_base: Fraction) -> OutputContainer:
    options: dict[str, str] = {}
    if container_format != "matroska":
        options = {
            # Keys other than Apple's own, and the index at the front so that a browser can start at once.
            "movflags": "use_metadata_tags+faststart",
            # Otherwise the muxer picks a multiple of its own, and pts would be scaled.
            "video_track_timescale": str(time_base.denominator),
        }
    return av.open(str(part), "w", format=container_format, options=options)


def _add_video(
    container: OutputContainer,
    encoding: _Encoding,
    width: int,
    height: int,
    time_base: Fraction,
    average_fps: Fraction,
) -> VideoStream:
    rate = Fraction(average_fps).limit_denominator(_LARGEST_RATE_TERM)
    stream = container.add_stream(encoding.codec, rate=rate, options=dict(encoding.options))
    assert isinstance(stream, VideoStream)
    stream.width, stream.height, stream.pix_fmt = width, height, encoding.pixel_format
    stream.time_base = stream.codec_context.time_base = time_base
    if encoding.matrix is not None:
        stream.codec_context.colorspace = _AVCOL_SPC[encoding.matrix]
        stream.codec_context.color_range = ColorRange.MPEG
    return stream


def _encode(
    batches: Iterable[FrameBatch],
    container: OutputContainer,
    stream: VideoStream,
    audio: AudioCopy | None,
    *,
    encoding: _Encoding,
    start_pts: int,
) -> int:
    reformatter, frames = VideoReformatter(), 0
    time_base = stream.codec_context.time_base
    for batch in batches:
        for rgb_hwc, pts in zip(batch.rgb_thwc, batch.pts.tolist(), strict=True):
            frame = _to_frame(rgb_hwc, stream, encoding, reformatter)
            frame.pts, frame.time_base = pts - start_pts, time_base
            container.mux(stream.encode(frame))
            frames += 1
        if audio is not None:
            # In step with the video, or the muxer holds all of one while it waits for the other.
            audio.write_until(float((int(batch.pts[-1]) - start_pts) * time_base))
    container.mux(stream.encode(None))
    if audio is not None:
        audio.write_rest()
    return frames


def _to_frame(
    rgb_hwc: NDArray[np.uint8], stream: VideoStream, encoding: _Encoding, reformatter: VideoReformatter
) -> VideoFrame:
    height, width, _ = rgb_hwc.shape
    if (width, height) != (stream.width, stream.height):
        raise ValueError(f"a frame of {width}x{height} in a video of {stream.width}x{stream.height}")
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(rgb_hwc), format="rgb24")
    if encoding.matrix is None:
        return reformatter.reformat(frame, format=encoding.pixel_format)
    return reformatter.reformat(
        frame,
        format=encoding.pixel_format,
        dst_colorspace=encoding.matrix,
        dst_color_range=ColorRange.MPEG,
        interpolation=_EXACT,
    )


# ---------------------------------------------------------------- files


@contextmanager
def _part_file(out: str, *, overwrite: bool) -> Iterator[Path]:
    """A path beside `out` that takes its place when the block ends, and is removed when it fails."""
    target = Path(out)
    if target.is_dir():
        raise StoreError(f"{out}: is a folder; the path of a file is needed")
    if not target.parent.is_dir():
        raise StoreError(f"{out}: the folder {target.parent} does not exist; make it first")
    # Absolute, or FFmpeg takes what stands before a colon for a protocol.
    part = target.absolute().with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with _store_errors(out):
            _refuse_existing(target, overwrite=overwrite)
            yield part
            _refuse_existing(target, overwrite=overwrite)
            os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _refuse_existing(target: Path, *, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise StoreError(f"{target}: exists already; choose another name, or overwrite")


@contextmanager
def _part_folder(target: Path) -> Iterator[Path]:
    """A hidden folder inside `target`; both are removed again if the block fails, `target` only if it was
    made here.
    """
    if not target.parent.is_dir():
        raise StoreError(f"{target}: the folder {target.parent} does not exist; make it first")
    if target.exists() and not target.is_dir():
        raise StoreError(f"{target}: is a file; the path of a folder is needed")
    made = not target.exists()
    target.mkdir(exist_ok=True)
    part = target / f".{secrets.token_hex(4)}.part"
    try:
        part.mkdir()
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        if made:
            with suppress(OSError):
                target.rmdir()
        raise
    part.rmdir()


@contextmanager
def _store_errors(out: str) -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise StoreError(f"{out}: cannot be written: {error.strerror or error}") from error
