"""Damaged media files: small real clips in many containers and codecs, and what may happen to their bytes."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from benchmarks.soak.clips import HEIGHT, WIDTH, pictures

FRAMES = 8
_FIRST = 40  # the film begins in the dark
_RATE = 25
_SOUND_RATE = 48_000
_HEADER_BYTES = 1024
_OPTIONS = {"libx265": {"x265-params": "log-level=none"}}
_EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

Damage = Callable[[bytes, random.Random, Sequence[bytes]], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Specimen:
    """How a clip is written. `sound`: the codec of an audio stream beside it."""

    name: str
    codec: str
    pixel_format: str = "yuv420p"
    sound: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """File `number`: its bytes, what they are called, and what was done to them."""

    number: int
    name: str
    what: str
    data: bytes


SPECIMENS = (
    Specimen(name="h264.mp4", codec="libx264"),
    Specimen(name="h264-aac.mp4", codec="libx264", sound="aac"),
    Specimen(name="hevc.mp4", codec="libx265"),
    Specimen(name="mpeg4.mp4", codec="mpeg4"),
    Specimen(name="mjpeg.mov", codec="mjpeg", pixel_format="yuvj420p"),
    Specimen(name="h264.mkv", codec="libx264"),
    Specimen(name="ffv1.mkv", codec="ffv1"),
    Specimen(name="vp9.webm", codec="libvpx-vp9"),
    Specimen(name="vp8-opus.webm", codec="libvpx", sound="libopus"),
    Specimen(name="mpeg4.avi", codec="mpeg4"),
    Specimen(name="mjpeg.avi", codec="mjpeg", pixel_format="yuvj420p"),
    Specimen(name="h264-aac.ts", codec="libx264", sound="aac"),
    Specimen(name="mpeg2.mpg", codec="mpeg2video"),
    Specimen(name="flv1.flv", codec="flv"),
    Specimen(name="h264.3gp", codec="libx264"),
    Specimen(name="raw.y4m", codec="wrapped_avframe"),
)


def mutations(folder: Path, count: int, *, seed: int) -> Iterator[Mutation]:
    """`count` files, each decided by `seed` and its number alone."""
    folder.mkdir(parents=True)
    whole = {specimen.name: _written(folder / specimen.name, specimen) for specimen in SPECIMENS}
    # All of them whole first, but no more than a fifth of all.
    intact = min(len(SPECIMENS), max(1, count // 5))
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        name = SPECIMENS[number % len(SPECIMENS)].name
        what = "whole" if number < intact else rng.choice(sorted(_DAMAGES))
        data = whole[name] if what == "whole" else _damaged(what, whole, name, rng)
        yield Mutation(number=number, name=name, what=what, data=data)


def _damaged(what: str, whole: Mapping[str, bytes], name: str, rng: random.Random) -> bytes:
    return _DAMAGES[what](whole[name], rng, list(whole.values()))


# ---------------------------------------------------------------- what may happen to bytes


def _flip_some(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return _flipped(data, rng, range(len(data)))


def _flip_header(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return _flipped(data, rng, range(min(len(data), _HEADER_BYTES)))


def _flip_end(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return _flipped(data, rng, range(max(0, len(data) - _HEADER_BYTES), len(data)))


def _flipped(data: bytes, rng: random.Random, where: range) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 5, 20, 100))):
        changed[rng.choice(where)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut_off(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(1, len(data))]


def _cut_out(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start, end = sorted(rng.sample(range(len(data) + 1), 2))
    return data[:start] + data[end:] or data[:1]


def _cut_beginning(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return data[rng.randrange(1, len(data)) :]


def _blank(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start, end = sorted(rng.sample(range(len(data) + 1), 2))
    return data[:start] + bytes([rng.choice((0, 0xFF))]) * (end - start) + data[end:]


def _noise(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.randrange(1, 4096)) + data[at:]


def _extreme(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Numbers that are as large or small as their places hold: sizes, counts, times."""
    changed = bytearray(data)
    ends = [*range(min(len(data) - 8, _HEADER_BYTES)), *range(max(0, len(data) - 2048), len(data) - 8)]
    for _ in range(rng.choice((1, 1, 3, 10))):
        at, size = rng.choice(ends), rng.choice((1, 2, 4))
        order = rng.choice(("big", "little"))
        value = rng.choice(_EXTREMES) & (256**size - 1)
        changed[at : at + size] = value.to_bytes(size, order)  # type: ignore[arg-type]
    return bytes(changed)


def _exchange(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Two boxes of an MP4 change places, or two stretches of another file."""
    boxes = list(_boxes(data))
    if len(boxes) < 2:
        a, b, c = sorted(rng.sample(range(len(data) + 1), 3))
        return data[:a] + data[b:c] + data[a:b] + data[c:]
    first, second = rng.sample(range(len(boxes)), 2)
    boxes[first], boxes[second] = boxes[second], boxes[first]
    return b"".join(boxes)


def _drop_box(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    boxes = list(_boxes(data))
    if len(boxes) < 2:
        return _cut_out(data, rng, others)
    del boxes[rng.randrange(len(boxes))]
    return b"".join(boxes)


def _repeat(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    boxes = list(_boxes(data)) or [data]
    return data + rng.choice(boxes) * rng.choice((1, 2, 10))


def _join(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return data + rng.choice(others)


def _graft(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """The beginning of one file and the end of another."""
    other = rng.choice(others)
    return data[: rng.randrange(1, len(data))] + other[rng.randrange(len(other)) :]


_DAMAGES: Mapping[str, Damage] = {
    "bits flipped": _flip_some,
    "bits of the header flipped": _flip_header,
    "bits of the end flipped": _flip_end,
    "cut off": _cut_off,
    "cut out": _cut_out,
    "beginning cut": _cut_beginning,
    "blanked": _blank,
    "noise put in": _noise,
    "extreme numbers": _extreme,
    "boxes exchanged": _exchange,
    "box dropped": _drop_box,
    "box repeated": _repeat,
    "joined": _join,
    "grafted": _graft,
}


def _boxes(data: bytes) -> Iterator[bytes]:
    """The outermost boxes of an MP4; nothing for other files."""
    if data[4:8] != b"ftyp":
        return
    at = 0
    while at + 8 <= len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        end = at + size if size >= 8 else len(data)
        yield data[at:end]
        at = end


# ---------------------------------------------------------------- specimens


def _written(path: Path, specimen: Specimen) -> bytes:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(specimen.codec, rate=_RATE, options=_OPTIONS.get(specimen.codec, {}))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, specimen.pixel_format
        sound = container.add_stream(specimen.sound, rate=_SOUND_RATE) if specimen.sound else None
        for index, picture in enumerate(pictures(_FIRST + FRAMES)[_FIRST:]):
            picture = picture.reformat(format=specimen.pixel_format)
            picture.pts, picture.time_base = index, Fraction(1, _RATE)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
        if sound is not None:
            for frame in _hum():
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return path.read_bytes()


def _hum() -> Iterator[av.AudioFrame]:
    """As long as the pictures."""
    samples = np.sin(np.arange(_SOUND_RATE * FRAMES // _RATE) / 30).astype(np.float32)
    for first in range(0, len(samples), 1024):
        part = samples[first : first + 1024]
        frame = av.AudioFrame.from_ndarray(part[None].repeat(2, axis=0), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = _SOUND_RATE, first, Fraction(1, _SOUND_RATE)
        yield frame
