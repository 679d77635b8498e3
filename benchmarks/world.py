"""python -m benchmarks.world OUT_FOLDER [--split train|test] [--clips 4] [--frames 600] [--seed 0]: labelled
video.

A moving world, rendered from a seed and written as real H.264 (320×240, 25 fps): photographs of packages as
the ground and on the objects (other ones in `train` than in `test`), a camera that pans, zooms and turns, 1
to 6 objects of 24 classes (a shape × a finish) that occlude each other, sensor noise, compression. The first
object acts out one of ten scripts, then makes room for another. Beside each clip lies its truth (JSON): for
every frame the class of the first object, the box of every object, the script and a caption. Pairs of shape
and script that captions have in `test` but never in `train` are marked as unseen.
"""

from __future__ import annotations

import argparse
import colorsys
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.footage import PHOTOGRAPHS

Split = Literal["train", "test"]
Box = tuple[str, float, float, float, float]  # class, x0, y0, x1, y1

HEIGHT, WIDTH, FPS = 240, 320, 25
FINISHES = ("striped", "checked", "dotted")
ACTIONS = (
    *("circles", "sways", "bounces", "spins", "grows"),
    *("shrinks", "crosses", "shakes", "pulses", "rests"),
)
MOST_OBJECTS = 6
TEXTURE = 96  # pixels of an object's own picture
SCRIPT_FRAMES = (64, 128)  # a script's length
SHOWN = 0.3  # of an object must be seen for its box to count
FILLED = 1.6  # pixels that an object covers for each of its half side's square, about
NOISE = (2.0, 6.0)  # 8-bit levels, standard deviation
RIM = 0.9  # how far out an object's dark edge begins
GROUND_CONTRAST = 0.7  # of the photographs that lie behind
CRF = "20"
_GROUNDS: Mapping[Split, tuple[int, ...]] = {"train": (0, 2, 4, 6, 8, 10), "test": (1, 3, 5, 7, 9, 11)}


# ---------------------------------------------------------------- what there is to see


def _polar(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return (x * x + y * y).sqrt(), torch.atan2(y, x)


def _polygon(x: Tensor, y: Tensor, corners: int) -> Tensor:
    radius, angle = _polar(x, y)
    part = 2 * math.pi / corners
    return radius * torch.cos(torch.remainder(angle + part / 2, part) - part / 2)


def _star(x: Tensor, y: Tensor) -> Tensor:
    radius, angle = _polar(x, y)
    return radius / (0.72 + 0.28 * torch.cos(5 * angle))


def _heart(x: Tensor, y: Tensor) -> Tensor:
    x, y = 1.25 * x, -1.2 * y + 0.25
    return 0.75 * (x * x + (y - x.abs().clamp_min(1e-6).sqrt() * 0.75) ** 2).sqrt()


# How far out a point is, 1 on the rim: of x, y in −1 … 1.
SHAPES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": lambda x, y: _polar(x, y)[0],
    "square": lambda x, y: torch.maximum(x.abs(), y.abs()) * 1.2,
    "triangle": lambda x, y: _polygon(x, y, 3) * 1.9,
    "hexagon": lambda x, y: _polygon(x, y, 6) * 1.1,
    "star": _star,
    "cross": lambda x, y: torch.maximum(
        torch.minimum(x.abs(), y.abs()) * 2.8, torch.maximum(x.abs(), y.abs()) * 1.1
    ),
    "ring": lambda x, y: 1 + (_polar(x, y)[0] - 0.7).abs() - 0.28,
    "heart": _heart,
}
CLASSES = tuple(f"{finish} {shape}" for shape in SHAPES for finish in FINISHES)


def _finish(kind: str, x: Tensor, y: Tensor) -> Tensor:
    """Brightness of a surface, about 0.55 … 1.25."""
    if kind == "striped":
        return 0.9 + 0.35 * torch.sign(torch.sin(14 * x))
    if kind == "checked":
        return 0.9 + 0.35 * torch.sign(torch.sin(10 * x) * torch.sin(10 * y))
    return 1.2 - 0.65 * ((torch.sin(11 * x) * torch.sin(11 * y)).abs() > 0.6).float()


def surface(label: str, ground: Tensor, chance: random.Random) -> Tensor:
    """An object's own picture [4, TEXTURE, TEXTURE]: RGB 0 … 255 and coverage 0 … 1."""
    finish, shape = label.split(" ")
    line = torch.linspace(-1, 1, TEXTURE)
    y, x = torch.meshgrid(line, line, indexing="ij")
    top, left = (chance.randrange(size - TEXTURE) for size in ground.shape[1:])
    photo = ground[:, top : top + TEXTURE, left : left + TEXTURE].mean(0)
    paint = colorsys.hsv_to_rgb(chance.random(), chance.uniform(0.35, 0.9), chance.uniform(150, 250))
    turn = chance.uniform(-0.5, 0.5)
    across, down = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
    out = SHAPES[shape](x * 1.08, y * 1.08)
    grain = 0.65 + 0.35 * photo / photo.mean().clamp_min(1)
    lit = torch.tensor(paint)[:, None, None] * grain * _finish(finish, across, down)
    lit = lit * (1 - 0.75 * ((out - RIM) * TEXTURE / 4 + 0.5).clamp(0, 1))
    covered = ((1 - out) * TEXTURE / 4 + 0.5).clamp(0, 1)
    return torch.cat([lit.clamp(0, 255), covered[None]])


# ---------------------------------------------------------------- how it moves


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """Where an object is: centre and half its side in pixels, angle in radians."""

    x: float
    y: float
    half: float
    angle: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One action of the object in front: `frames` of it from `start` on, around a place."""

    label: str
    action: str
    start: int
    frames: int
    x: float
    y: float
    half: float
    tempo: float

    def pose(self, frame: int) -> Pose:
        """At `frame`, which is within the script."""
        done = (frame - self.start) / self.frames
        beat = 2 * math.pi * self.tempo * (frame - self.start) / FPS
        x, y, half, angle = self.x, self.y, self.half, 0.0
        if self.action == "circles":
            x, y = x + 45 * math.cos(beat), y + 40 * math.sin(beat)
        elif self.action == "sways":
            x, angle = x + 60 * math.sin(beat), 0.25 * math.cos(beat)
        elif self.action == "bounces":
            y = y + 35 - 80 * abs(math.sin(beat / 2))
        elif self.action == "spins":
            angle = 1.6 * beat
        elif self.action in ("grows", "shrinks"):
            half *= 0.6 + 0.8 * (done if self.action == "grows" else 1 - done)
        elif self.action == "crosses":
            x = 40 + (WIDTH - 80) * (done if self.tempo > 0.55 else 1 - done)
        elif self.action == "shakes":
            x, y = x + 5 * math.sin(6 * beat), y + 5 * math.cos(7.3 * beat)
        elif self.action == "pulses":
            half *= 1 + 0.3 * math.sin(1.5 * beat)
        return Pose(x=x, y=y, half=half, angle=angle)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How the other objects move: slow waves around a place."""

    x: float
    y: float
    half: float
    waves: tuple[float, float, float]

    def pose(self, frame: int) -> Pose:
        """At any frame."""
        a, b, c = (math.sin(wave * frame / FPS + i) for i, wave in enumerate(self.waves))
        return Pose(x=self.x + 50 * a, y=self.y + 35 * b, half=self.half * (1 + 0.15 * c), angle=0.6 * c)


def unseen(label: str, action: str) -> bool:
    """Whether a pair of shape and script is kept for `test`: every fifth one."""
    return (list(SHAPES).index(label.split(" ")[1]) + 2 * ACTIONS.index(action)) % 5 == 0


def write_scripts(frames: int, split: Split, chance: random.Random) -> list[Script]:
    """Scripts that follow one another over `frames`; pairs kept for `test` do not occur in `train`."""
    scripts: list[Script] = []
    start = 0
    while start < frames:
        length = min(chance.randint(*SCRIPT_FRAMES), frames - start)
        label = chance.choice(CLASSES)
        allowed = [action for action in ACTIONS if split == "test" or not unseen(label, action)]
        scripts.append(
            Script(
                label=label,
                action=chance.choice(allowed),
                start=start,
                frames=length,
                x=chance.uniform(100, WIDTH - 100),
                y=chance.uniform(85, HEIGHT - 85),
                half=chance.uniform(38, 58),
                tempo=chance.uniform(0.35, 0.8),
            )
        )
        start += length
    return scripts


# ---------------------------------------------------------------- truth


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameTruth:
    """`boxes` are (class, x0, y0, x1, y1) in pixels, of every object that is seen enough."""

    label: str
    action: str
    caption: str
    unseen: bool
    boxes: tuple[Box, ...]


def read_truth(path: Path) -> list[FrameTruth]:
    """What `write_clip` wrote, by frame."""
    return [
        FrameTruth(**{**row, "boxes": tuple(tuple(box) for box in row["boxes"])})
        for row in json.loads(path.read_text())
    ]


# ---------------------------------------------------------------- rendering


class World:
    """One clip: everything in it is decided when it is made; frames are rendered one by one."""

    def __init__(self, *, seed: int, split: Split, frames: int) -> None:
        chance = random.Random(f"{split} {seed}")
        self.frames, self.noise = frames, chance.uniform(*NOISE)
        self.generator = torch.Generator().manual_seed(chance.randrange(2**31))
        photos = {i: PHOTOGRAPHS[i].tile() for i in _GROUNDS[split]}
        tiles = [photos[i] for i in chance.sample(_GROUNDS[split], 4)]
        ground = torch.cat([torch.cat(tiles[:2], 2), torch.cat(tiles[2:], 2)], 1)
        mean = ground.mean((1, 2), keepdim=True)
        self.ground = mean + GROUND_CONTRAST * (ground - mean)
        self.camera = [chance.uniform(0.05, 0.4) for _ in range(4)]

        def painted(label: str) -> Tensor:
            return surface(label, photos[chance.choice(_GROUNDS[split])], chance)

        self.others = [chance.choice(CLASSES) for _ in range(chance.randint(0, MOST_OBJECTS - 1))]
        self.surfaces = [painted(label) for label in self.others]
        self.scripts = write_scripts(frames, split, chance)
        self.actors = [painted(script.label) for script in self.scripts]
        self.drifts = [
            Drift(
                x=chance.uniform(60, WIDTH - 60),
                y=chance.uniform(50, HEIGHT - 50),
                half=chance.uniform(16, 30),
                waves=(chance.uniform(0.2, 1), chance.uniform(0.2, 1), chance.uniform(0.2, 1)),
            )
            for _ in self.others
        ]

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], FrameTruth]]:
        """(RGB uint8 [HEIGHT, WIDTH, 3], truth) of every frame, in order."""
        return self.part(0, self.frames)

    def part(self, first: int, frames: int) -> Iterator[tuple[NDArray[np.uint8], FrameTruth]]:
        """So many frames from `first` on."""
        for frame in range(first, first + frames):
            at = next(i for i, s in enumerate(self.scripts) if frame < s.start + s.frames)
            script, labels = self.scripts[at], [self.scripts[at].label, *self.others]
            poses = [script.pose(frame), *(drift.pose(frame) for drift in self.drifts)]
            placed = [
                place(own, pose) for own, pose in zip([self.actors[at], *self.surfaces], poses, strict=True)
            ]
            yield self._picture(frame, placed), self._truth(script, boxes_of(labels, poses, placed))

    def _picture(self, frame: int, placed: Sequence[Tensor]) -> NDArray[np.uint8]:
        picture = self._backdrop(frame)
        for own in reversed(placed):
            picture = picture * (1 - own[3]) + own[:3] * own[3]
        flicker = 1 + 0.02 * math.sin(frame * 0.9)
        noise = torch.randn(3, HEIGHT, WIDTH, generator=self.generator) * self.noise
        shown = (picture * flicker + noise).round().clamp(0, 255).byte()
        return shown.permute(1, 2, 0).contiguous().numpy()

    def _backdrop(self, frame: int) -> Tensor:
        """What the camera sees of the ground, [3, HEIGHT, WIDTH]."""
        a, b, c, d = (math.sin(speed * frame / FPS + i) for i, speed in enumerate(self.camera))
        zoom, turn = 0.5 + 0.12 * c, 0.2 * d
        matrix = torch.tensor(
            [
                [zoom * math.cos(turn), -zoom * math.sin(turn), 0.3 * a],
                [zoom * math.sin(turn), zoom * math.cos(turn), 0.3 * b],
            ]
        )
        grid = F.affine_grid(matrix[None], [1, 3, HEIGHT, WIDTH], align_corners=False)
        return F.grid_sample(self.ground[None], grid, padding_mode="reflection", align_corners=False)[0]

    def _truth(self, script: Script, boxes: Sequence[Box]) -> FrameTruth:
        return FrameTruth(
            label=script.label,
            action=script.action,
            caption=caption([script.label, *self.others], script.action),
            unseen=unseen(script.label, script.action),
            boxes=tuple(boxes),
        )


def caption(labels: Sequence[str], action: str) -> str:
    """What a person would say: the first object and what it does, and how many there are beside it."""
    words = ("", " beside another shape", " beside two others", " among several others")
    return f"a {labels[0]} {action}{words[min(len(labels) - 1, 3)]}"


def place(surface_chw: Tensor, pose: Pose) -> Tensor:
    """An object's own picture on the frame, [4, HEIGHT, WIDTH]; nothing where it is not."""
    cos, sin = math.cos(pose.angle) / pose.half, math.sin(pose.angle) / pose.half
    # From the frame's −1 … 1 to the object's: pixels from the centre, turned back, over its half side.
    half_w, half_h = WIDTH / 2, HEIGHT / 2
    dx, dy = half_w - pose.x, half_h - pose.y
    matrix = torch.tensor(
        [
            [cos * half_w, sin * half_h, cos * dx + sin * dy],
            [-sin * half_w, cos * half_h, -sin * dx + cos * dy],
        ]
    )
    grid = F.affine_grid(matrix[None], [1, 4, HEIGHT, WIDTH], align_corners=False)
    return F.grid_sample(surface_chw[None], grid, align_corners=False)[0]


def boxes_of(labels: Sequence[str], poses: Sequence[Pose], placed: Sequence[Tensor]) -> list[Box]:
    """A box an object that is seen enough, the nearest first: its script must be seen, so it is in front."""
    boxes: list[Box] = []
    free = torch.ones(HEIGHT, WIDTH)  # where nothing in front hides what is behind
    for label, pose, (*_, coverage) in zip(labels, poses, placed, strict=True):
        if float((coverage * free).sum()) >= SHOWN * FILLED * pose.half**2:
            boxes.append((label, *extent(coverage)))
        free = free * (1 - coverage)
    return boxes


def extent(coverage: Tensor) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 in pixels of what is covered [HEIGHT, WIDTH], by objects in front too."""
    rows, columns = ((coverage > 0.5).any(dim).nonzero().squeeze(1) for dim in (1, 0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def write_clip(
    out: Path, *, seed: int, split: Split, frames: int, part: int | None = None
) -> list[FrameTruth]:
    """`out` (an .mp4) and its truth beside it, `out` with the suffix .json. `part`: so many
    frames in the middle of a world of `frames`.
    """
    truth = []
    shown = frames if part is None else part
    world = World(seed=seed, split=split, frames=frames)
    with av.open(str(out), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": CRF, "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i, (rgb, told) in enumerate(world.part((frames - shown) // 2, shown)):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(stream.encode(frame))
            truth.append(told)
        container.mux(stream.encode())
    out.with_suffix(".json").write_text(json.dumps([asdict(told) for told in truth]))
    return truth


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.world", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    for number in range(args.seed, args.seed + args.clips):
        name = args.out / f"{args.split}-{number:03}.mp4"
        write_clip(name, seed=number, split=args.split, frames=args.frames)


if __name__ == "__main__":
    main()
