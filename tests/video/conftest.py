"""Small files made with PyAV itself, each with one property that real files have."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from nvpstore.video.subtitles import STYLE


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What to write; the defaults are 60 frames of H.264 with B-frames and one keyframe."""

    name: str = "clip.mp4"
    frames: int = 60
    width: int = 96
    height: int = 64
    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    options: dict[str, str] = field(default_factory=lambda: {"bf": "3", "g": "250", "preset": "veryfast"})
    container_options: dict[str, str] = field(default_factory=dict)
    container_format: str | None = None
    fps: Fraction = Fraction(25)
    time_base: Fraction = Fraction(1, 12800)
    pts: Sequence[int] | None = None
    pixel_aspect: Fraction | None = None
    rotate_counterclockwise: int = 0
    mirror: bool = False
    audio: str | None = None
    colorspace: int | None = None
    color_range: int | None = None
    color_trc: int | None = None
    color_primaries: int | None = None
    subtitles: str | None = None
    transparent: bool = False


def picture(index: int, width: int, height: int) -> NDArray[np.uint8]:
    """uint8 [h, w, 3]: soft colored texture that drifts to the left, another pixel each frame."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    x = x + index
    waves = [np.sin(x / 7 + y / 11), np.sin(x / 13 - y / 5 + 1), np.cos(x / 9 + y / 17 + 2)]
    return (127 + 90 * np.stack(waves, axis=-1)).astype(np.uint8)


def write_clip(folder: Path, clip: Clip) -> Path:
    """As `_write_clip`. SVT-AV1, run by root, makes its caller's thread a real-time one (SCHED_FIFO, 99) for
    good, and threads inherit that: two that spin then starve the whole machine.
    """
    try:
        return _write_clip(folder, clip)
    finally:
        if hasattr(os, "sched_setscheduler"):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _write_clip(folder: Path, clip: Clip) -> Path:
    path = folder / clip.name
    with av.open(
        str(path), "w", format=clip.container_format, options=dict(clip.container_options)
    ) as container:
        stream = container.add_stream(clip.codec, rate=clip.fps, options=dict(clip.options))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, clip.pixel_format
        stream.time_base = stream.codec_context.time_base = clip.time_base
        if clip.pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = clip.pixel_aspect
        if clip.colorspace is not None:
            stream.codec_context.colorspace = clip.colorspace
        if clip.color_range is not None:
            stream.codec_context.color_range = clip.color_range
        if clip.color_trc is not None:
            stream.codec_context.color_trc = clip.color_trc
        if clip.color_primaries is not None:
            stream.codec_context.color_primaries = clip.color_primaries
        if clip.rotate_counterclockwise or clip.mirror:
            stream.set_display_rotation(clip.rotate_counterclockwise, hflip=clip.mirror)
        sound = container.add_stream(clip.audio, rate=48_000) if clip.audio else None
        lines = _add_lines(container, clip.subtitles) if clip.subtitles else None
        for index in range(clip.frames):
            frame = _frame(picture(index, clip.width, clip.height), clip)
            frame.pts = int(clip.pts[index] if clip.pts else index / (clip.fps * clip.time_base))
            frame.time_base = clip.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if isinstance(sound, av.AudioStream):
            write_tone(container, sound, seconds=float(clip.frames / clip.fps))
        if lines is not None:
            _write_lines(container, lines)
    return path


def _frame(rgb_hwc: NDArray[np.uint8], clip: Clip) -> av.VideoFrame:
    """With the declared colors also on the frame: encoders believe it, and not their context."""
    if clip.transparent:
        alpha = np.linspace(0, 255, clip.width, dtype=np.uint8)[None, :, None]
        rgba = np.concatenate([rgb_hwc, np.broadcast_to(alpha, (*rgb_hwc.shape[:2], 1))], axis=2)
        return av.VideoFrame.from_ndarray(np.ascontiguousarray(rgba), format="rgba")
    frame = av.VideoFrame.from_ndarray(rgb_hwc, format="rgb24")
    if clip.color_trc is not None:
        frame.color_trc = clip.color_trc
    if clip.color_primaries is not None:
        frame.color_primaries = clip.color_primaries
    return frame


# (start, length in seconds, text) of what `Clip.subtitles` says
LINES = (
    (Fraction(1, 5), Fraction(2, 5), "a gate, opened"),
    (Fraction(6, 5), Fraction(1, 2), "two\nlines, ä"),
)


def _add_lines(container: av.container.OutputContainer, codec: str) -> av.stream.Stream:
    if codec == "mov_text":
        stream = container.add_stream(codec)
        stream.codec_context.subtitle_header = STYLE
    else:
        stream = container.add_mux_stream(codec)
    stream.time_base = Fraction(1, 1000)
    stream.metadata["language"] = "swe"
    return stream


def _write_lines(container: av.container.OutputContainer, stream: av.stream.Stream) -> None:
    for start, seconds, text in LINES:
        data = text.encode()
        if stream.codec_context is not None:
            data = len(data).to_bytes(2, "big") + data
        packet = av.Packet(data)
        packet.stream, packet.time_base = stream, Fraction(1, 1000)
        packet.pts = packet.dts = int(start * 1000)
        packet.duration = int(seconds * 1000)
        container.mux(packet)


def write_tone(container: av.container.OutputContainer, stream: av.AudioStream, *, seconds: float) -> None:
    sample_format = "s16" if stream.codec_context.name.startswith("pcm") else "fltp"
    for start in range(0, round(seconds * 48_000), 1024):
        wave = np.sin(2 * np.pi * 440 * np.arange(start, start + 1024) / 48_000)
        samples = (wave * 20_000).astype(np.int16) if sample_format == "s16" else wave.astype(np.float32)
        planes = samples.repeat(2)[None] if sample_format == "s16" else np.stack([samples, samples])
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(planes), format=sample_format, layout="stereo"
        )
        frame.sample_rate, frame.pts, frame.time_base = 48_000, start, Fraction(1, 48_000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


MakeClip = Callable[..., Path]


@pytest.fixture
def make_clip(tmp_path: Path) -> MakeClip:
    """`make_clip(**fields of Clip)` writes it into the test's own folder."""
    return lambda **fields: write_clip(tmp_path, Clip(**fields))


@pytest.fixture
def cut_short() -> Callable[[Path, float], Path]:
    """`cut_short(path, share)` writes the first `share` of a file's bytes as a new file beside it."""

    def cut(path: Path, share: float) -> Path:
        short = path.with_name(f"short-{path.name}")
        data = path.read_bytes()
        short.write_bytes(data[: int(len(data) * share)])
        return short

    return cut
