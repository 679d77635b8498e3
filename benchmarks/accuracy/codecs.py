"""What users would store instead, at the same bytes: x264, x265, AV1, also at half size."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FPS = 25
TOLERANCE = 0.02  # of the bytes that are asked for
TRIES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """One of FFmpeg's, steered by `knob` (greater means fewer bytes) between `low` and `high`."""

    name: str
    library: str
    knob: str
    low: float
    high: float
    options: Mapping[str, str]
    whole: bool = False  # the knob takes whole numbers only


ENCODERS = (
    Encoder(name="x264", library="libx264", knob="crf", low=8, high=51, options={"preset": "veryslow"}),
    Encoder(name="x265", library="libx265", knob="crf", low=8, high=51, options={"preset": "slower"}),
    Encoder(
        name="av1",
        library="libsvtav1",
        knob="crf",
        low=8,
        high=63,
        options={"preset": "4"},
        whole=True,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """`stored_bytes` of the elementary stream's packets, and the pictures that come back, at source size."""

    stored_bytes: int
    knob: float
    rgb: Tensor


def at_bytes(encoder: Encoder, rgb: Tensor, wanted_bytes: int, *, scale: int = 1) -> Encoded:
    """The best quality that needs at most `wanted_bytes` (+ TOLERANCE), of pictures uint8 [t, 3, h, w] that
    are stored at 1 / `scale` of their size.
    """
    small = _scaled(rgb, scale)

    @cache
    def packets(knob: float) -> tuple[bytes, int]:
        return _as_before(lambda: _encode(encoder, small, knob))

    low, high = encoder.low, encoder.high
    for _ in range(TRIES):
        middle = (low + high) / 2
        size = packets(round(middle) if encoder.whole else middle)[1]
        if abs(size - wanted_bytes) <= TOLERANCE * wanted_bytes / 2:
            low = high = middle
            break
        low, high = (low, middle) if size <= wanted_bytes else (middle, high)
    knob = float(round(high)) if encoder.whole else high
    data, size = packets(knob)
    shown = _decode(data)
    back = F.interpolate(shown.float(), rgb.shape[2:], mode="bicubic", antialias=True) if scale > 1 else shown
    return Encoded(stored_bytes=size, knob=knob, rgb=back.clamp(0, 255).round().byte())


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """As `Encoded`, with the seconds that each direction took."""

    stored_bytes: int
    rgb: Tensor
    encode_seconds: float
    decode_seconds: float


def encode_at(encoder: Encoder, rgb: Tensor, knob: float) -> Timed:
    """Pictures uint8 [t, 3, h, w] encoded at one quality, and decoded again."""
    began = time.perf_counter()
    data, size = _as_before(lambda: _encode(encoder, rgb, knob))
    encoded = time.perf_counter()
    shown = _decode(data)
    decoded = time.perf_counter()
    return Timed(
        stored_bytes=size, rgb=shown, encode_seconds=encoded - began, decode_seconds=decoded - encoded
    )


def _scaled(rgb: Tensor, scale: int) -> Tensor:
    if scale == 1:
        return rgb
    size = [side // scale // 2 * 2 for side in rgb.shape[2:]]
    small = F.interpolate(rgb.float(), size, mode="bicubic", antialias=True)
    return small.clamp(0, 255).round().byte()


def _encode(encoder: Encoder, rgb: Tensor, knob: float) -> tuple[bytes, int]:
    """(a Matroska file, bytes of its packets)."""
    file, size = io.BytesIO(), 0
    value = str(int(knob)) if encoder.whole else f"{knob:.3f}"
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream(
            encoder.library, rate=FPS, options={**encoder.options, encoder.knob: value}
        )
        stream.height, stream.width, stream.pix_fmt = rgb.shape[2], rgb.shape[3], "yuv420p"
        for i, picture in enumerate(rgb):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(picture.permute(1, 2, 0).numpy()), format="rgb24"
            )
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            for packet in stream.encode(frame):
                size += packet.size
                container.mux(packet)
        for packet in stream.encode():
            size += packet.size
            container.mux(packet)
    return file.getvalue(), size


def _decode(data: bytes) -> Tensor:
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


def _as_before(encode: Callable[[], tuple[bytes, int]]) -> tuple[bytes, int]:
    """SVT-AV1 makes its caller's thread a real-time one, and leaves it so: put back what was."""
    policy, param = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        return encode()
    finally:
        os.sched_setscheduler(0, policy, param)
