"""python -m benchmarks.fitting [--clip bunny|bikes|FILE] [--frames 16] [--size 160x320] [--parameters 350000]
[--target 33] [--device cpu] [--folder F] [--out FILE]: how soon a fit reaches a PSNR, against HNeRV as
published.

Ours is the demo's widths and schedule. The baseline is HNeRV with its published widths, kernels, schedule and
batch, of as many parameters. Both run at each length of schedule (25, 50, 100, 300 epochs) until the target,
the baseline for at most 3.3 times as long as ours ever took; for each PSNR of a ladder the soonest schedule
counts. Then one change to ours at a time, at 100 epochs: widths, schedule, beginning with what an earlier
segment or another video ended with, free latents, learning rates, batches, half the size first, optimisers,
bfloat16, an average of the weights.

Seconds are those of the processor, of one thread, so that neighbours on the machine count little (on a GPU:
those of the clock). The target is met when an epoch's mean PSNR (of an average of weights: a decode of all
frames, counted too) reaches it; what is then stored, 8 bit, is measured beside it. Runs that are done are
kept in FOLDER: a rerun goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.fit import stored_quality
from benchmarks.machine import ROOT, write_result
from benchmarks.rate_distortion import load
from nvpstore.api.output import TextOutput, aligned
from nvpstore.codec.artifact import coded_frames
from nvpstore.codec.build import PRESETS, Preset, build_architecture, paper_kernels, paper_profile
from nvpstore.codec.fit import Diverged, SegmentFit
from nvpstore.codec.hnerv import Encoder, Head, on_device
from nvpstore.tasks.backbones.torchvision_ops import make_torchvision_importable

SEED = 0
SCHEDULES = (25, 50, 100, 300)
STRIDES = (5, 4, 2, 2)  # their product divides 160 and 320
BASELINE_LONGER = 3.3  # than the longest of ours: beyond it the question is answered
CHANGE_EPOCHS = 100
LADDER = (24.0, 27.0, 30.0)  # PSNRs, besides the target
EMA_DECAY = 0.98
LATENT_RATE = 10.0  # free latents, times the learning rate


Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One change. `preset` are fields of the preset; `start`: where the networks begin."""

    name: str
    base: str = "ours"
    preset: Mapping[str, Any] = field(default_factory=dict)
    optimiser: str = "adam"
    ema: bool = False
    coarse: float = 0.0  # share of the epochs at half the size
    free_latents: bool = False
    bf16: bool = False
    start: str = "scratch"  # or "earlier segment", "another video"


BASELINE = Variant(name="HNeRV as published", base="paper")
OURS = Variant(name="ours")
CHANGES = (
    Variant(name="published widths, our schedule", base="paper widths"),
    Variant(name="our widths, published schedule", base="paper schedule"),
    Variant(name="begun with the earlier segment", start="earlier segment"),
    Variant(name="begun with another video", start="another video"),
    Variant(name="free latents", free_latents=True),
    Variant(name="learning rate 8e-3", preset={"learning_rate": 8e-3}),
    Variant(name="batch 1", preset={"batch_frames": 1}),
    Variant(name="batch 4", preset={"batch_frames": 4}),
    Variant(name="half size first", coarse=0.3),
    Variant(name="Muon", optimiser="muon"),
    Variant(name="Adan", optimiser="adan"),
    Variant(name="SOAP", optimiser="soap"),
    Variant(name="bfloat16", bf16=True),
    Variant(name="average of weights", ema=True),
    Variant(name="learning rate 2e-3", preset={"learning_rate": 2e-3}),
    Variant(name="no clipping", preset={"clip_norm": math.inf}),
)


def main(arguments: Sequence[str] | None = None) -> None:
    args = _arguments(arguments)
    torch.set_num_threads(1)
    bench = Bench(args)
    ours = [bench.row(OURS, epochs, math.inf) for epochs in SCHEDULES]
    limit = BASELINE_LONGER * max(row["seconds"] for row in ours)
    baseline = [bench.row(BASELINE, epochs, limit) for epochs in SCHEDULES]
    changes = [bench.row(change, CHANGE_EPOCHS, math.inf) for change in CHANGES[: args.changes]]
    targets = [_target(psnr, ours, baseline) for psnr in sorted({*LADDER, args.target})]
    result = {
        "question": "how soon a fit reaches a PSNR",
        "seed": SEED,
        "clip": args.clip,
        "shape_tchw": list(bench.frames.shape),
        "parameters": args.parameters,
        "device": args.device,
        "targets": targets,
        "rows": [*ours, *baseline, *changes],
    }
    write_result(args.out, result)
    output = TextOutput()
    for text in aligned(_HEADS, [_shown(row) for row in result["rows"]]):
        output.text(text)
    for text in aligned(_TARGET_HEADS, [_shown_target(target) for target in targets]):
        output.text(text)


class Bench:
    """All runs on one clip; those that are done are files in a folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        both = load(args.clip, args.size, 2 * args.frames)
        self.earlier, self.frames = both[: args.frames], both[args.frames :]
        args.folder.mkdir(parents=True, exist_ok=True)

    def row(self, variant: Variant, epochs: int, limit_seconds: float) -> dict[str, Any]:
        """One schedule of one variant, run to its end, the target or the limit."""
        path = self.args.folder / f"{variant.name.replace(' ', '-')}-{epochs}.json"
        if not path.exists():
            row = self._measured(variant, epochs, limit_seconds)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(row))
            part.replace(path)
            sys.stderr.write(
                f"{variant.name}, {epochs} epochs: {row['psnr']:.2f} dB in {row['seconds']:.0f} s\n"
            )
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def _measured(self, variant: Variant, epochs: int, limit_seconds: float) -> dict[str, Any]:
        trial = self._trial(variant, epochs, self.frames)
        if variant.start != "scratch":
            trial.start_with(self._start(variant))
        curve, stopped = trial.climb(self.args.target, limit_seconds)
        stored, stored_bytes = stored_quality(trial._fitted(), self.frames, self.args.device)
        return {
            "variant": variant.name,
            "epochs": epochs,
            "epochs_done": len(curve),
            "stopped": stopped,
            "seconds": curve[-1][0],
            "psnr": curve[-1][1],
            "psnr_stored": stored,
            "bytes_stored": stored_bytes,
            "learning_rate": trial.preset.learning_rate,
            "batch_frames": trial.preset.batch_frames,
            "curve": [[round(seconds, 2), round(psnr, 3)] for seconds, psnr in curve],
        }

    def _trial(self, variant: Variant, epochs: int, frames: Tensor) -> Trial:
        preset = replace(
            preset_of(variant.base, self.args.parameters, len(frames)), **{**variant.preset, "epochs": epochs}
        )
        arch = build_architecture(frames.shape[2], frames.shape[3], len(frames), preset)
        return Trial(
            coded_frames(frames, arch), arch, preset, device=self.args.device, seed=SEED, variant=variant
        )

    def _start(self, variant: Variant) -> dict[str, Any]:
        """Networks after the middle schedule on other frames, which are none of those measured."""
        path = self.args.folder / f"start-{variant.start.replace(' ', '-')}.pt"
        if not path.exists():
            other = {"bunny": "bikes"}.get(self.args.clip, "bunny")
            elsewhere = variant.start == "another video"
            frames = load(other, self.args.size, self.args.frames) if elsewhere else self.earlier
            trial = self._trial(OURS, SCHEDULES[1], frames)
            trial.climb(math.inf, math.inf)
            torch.save(trial.networks(), path)
        loaded: dict[str, Any] = torch.load(path, weights_only=True, map_location=self.args.device)
        return loaded


def preset_of(base: str, parameters: int, frames: int) -> Preset:
    paper = replace(
        PRESETS["hnerv-0.35m"],
        name="fitting-paper",
        parameters=parameters,
        strides=STRIDES,
        kernels=paper_kernels(len(STRIDES)),
        width_profile=paper_profile(len(STRIDES)),
        max_segment_frames=frames,
    )
    demo = PRESETS["demo"]
    schedule = {
        name: getattr(demo, name) for name in ("batch_frames", "learning_rate", "adam_beta2", "clip_norm")
    }
    ours = replace(
        paper,
        name="fitting-ours",
        kernels=demo.kernels,
        width_profile=demo.width_profile,
        min_width=demo.min_width,
    )
    return {
        "paper": paper,
        "paper widths": replace(paper, **schedule),
        "paper schedule": ours,
        "ours": replace(ours, **schedule),
    }[base]


class Trial(SegmentFit):
    """A fit with one thing changed."""

    def __init__(self, *args: Any, variant: Variant, **kwargs: Any) -> None:
        self.variant = variant
        super().__init__(*args, **kwargs)
        self.mixed = self.mixed or variant.bf16
        self.small = F.avg_pool2d(self.frames.float(), 2) if variant.coarse else None
        self.average: dict[str, Tensor] | None = None

    def climb(self, target: float, limit_seconds: float) -> tuple[list[tuple[float, float]], bool]:
        """([(seconds, PSNR)] after each epoch, whether it was stopped for being too slow)."""
        curve: list[tuple[float, float]] = []
        began = self._now()
        while self.epoch < self.epochs:
            try:
                self.run_epoch()
            except Diverged:
                return [*curve, (self._now() - began, 0.0)], True
            whole = not self._coarse  # else the error is that of smaller pictures
            self.epoch += 1
            psnr = self._averaged_psnr() if self.variant.ema else self.psnr
            curve.append((self._now() - began, psnr if whole else 0.0))
            psnr = curve[-1][1]
            if psnr >= target:
                break
            if curve[-1][0] > limit_seconds:
                return curve, True
        if self.average is not None:
            self.decoder.load_state_dict(self.average)
        return curve, False

    def _now(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def networks(self) -> dict[str, Any]:
        assert self.encoder is not None, "only free latents have none, and they are not begun with"
        return {"decoder": self.decoder.state_dict(), "encoder": self.encoder.state_dict()}

    def start_with(self, networks: Mapping[str, Any]) -> None:
        assert self.encoder is not None, "as above"
        self.decoder.load_state_dict(networks["decoder"])
        self.encoder.load_state_dict(networks["encoder"])

    # ------------------------------------------------------------ what is changed

    def _build_encoder(self) -> Encoder | None:
        if not self.variant.free_latents:
            return super()._build_encoder()
        shape = (len(self.frames), *self.arch.latent_shape)
        self.free = nn.Parameter(0.1 * torch.randn(shape, device=self.device))
        return None

    def _build_optimiser(self) -> torch.optim.Optimizer:
        optimiser = _OPTIMISERS[self.variant.optimiser](self)
        if self.variant.free_latents:
            optimiser.add_param_group({"params": [self.free], "factor": LATENT_RATE})
        if self.variant.coarse:
            self.half = on_device(Head(self.arch.widths[-2]), self.device)
            optimiser.add_param_group({"params": list(self.half.parameters())})
        return optimiser

    def _adam(self) -> torch.optim.Optimizer:
        return super()._build_optimiser()

    def _latents(self, frames: Tensor) -> Tensor:
        return self.free[frames] if self.variant.free_latents else super()._latents(frames)

    @property
    def _coarse(self) -> bool:
        return self.epoch < self.variant.coarse * self.epochs

    def _train_step(self, frames: Tensor) -> Tensor:
        error = self._half_step(frames) if self._coarse else super()._train_step(frames)
        if self.variant.ema:
            now = self.decoder.state_dict()
            if self.average is None:
                self.average = {name: value.clone() for name, value in now.items()}
            for name, value in now.items():
                self.average[name].lerp_(value, 1 - EMA_DECAY)
        return error

    def _half_step(self, frames: Tensor) -> Tensor:
        assert self.small is not None, "made for it"
        self._set_learning_rate()
        stage = self.decoder.names[-3]  # before the last block, which doubles both sides
        shown = self.half(self.decoder.taps(self._latents(frames), (stage,))[stage])
        error = F.mse_loss(shown, self.small[frames])
        self.optimiser.zero_grad(set_to_none=True)
        (100 * error).backward()
        nn.utils.clip_grad_norm_(self._parameters(), self.preset.clip_norm)
        self.optimiser.step()
        self.step += 1
        return error.detach() * len(frames)

    @torch.no_grad()
    def _averaged_psnr(self) -> float:
        assert self.average is not None, "there was a step"
        own = {name: value.clone() for name, value in self.decoder.state_dict().items()}
        self.decoder.load_state_dict(self.average)
        order = torch.arange(len(self.frames)).split(self.preset.batch_frames)
        errors = [F.mse_loss(self.decoder(self._latents(part)), self.frames[part].float()) for part in order]
        self.decoder.load_state_dict(own)
        return -10 * math.log10(float(torch.stack(errors).mean()))


def _adan(trial: Trial) -> torch.optim.Optimizer:
    make_torchvision_importable()
    from timm.optim.adan import Adan

    return Adan(trial._parameters(), lr=trial.learning_rate)


def _muon(trial: Trial) -> torch.optim.Optimizer:
    make_torchvision_importable()
    from timm.optim.muon import Muon

    return Muon(trial._parameters(), lr=trial.learning_rate)


def _soap(trial: Trial) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP

    # Kernels' largest sides are below its limit of 10,000, so each side is preconditioned.
    return SOAP(trial._parameters(), lr=trial.learning_rate, weight_decay=0.0, precondition_frequency=10)


_OPTIMISERS = {"adam": Trial._adam, "adan": _adan, "muon": _muon, "soap": _soap}


# ---------------------------------------------------------------- what is said

_HEADS = ("variant", "epochs", "seconds", "dB", "stored dB", "stored bytes", "s an epoch")
_TARGET_HEADS = ("target", "ours", "published", "times sooner")


def _target(psnr: float, ours: Sequence[Row], baseline: Sequence[Row]) -> dict[str, Any]:
    """The soonest schedule of each; of the baseline none, where none came so far in the time that it had."""
    own, theirs = _soonest(ours, psnr), _soonest(baseline, psnr)
    # A schedule that ended below the target never reaches it; one that was stopped might have, later.
    bound = theirs or min((row["seconds"] for row in baseline if row["stopped"]), default=None)
    return {
        "psnr": psnr,
        "ours_seconds": own,
        "baseline_seconds": theirs,
        "times_sooner": bound / own if own is not None and bound is not None else None,
        "at_least": theirs is None,
    }


def _soonest(rows: Sequence[Row], psnr: float) -> float | None:
    reached = [seconds for row in rows for seconds, found in row["curve"] if found >= psnr]
    return min(reached, default=None)


def _shown(row: Row) -> tuple[str, ...]:
    return (
        row["variant"],
        f"{row['epochs_done']} of {row['epochs']}",
        f"{row['seconds']:.1f}",
        f"{row['psnr']:.2f}",
        f"{row['psnr_stored']:.2f}",
        str(row["bytes_stored"]),
        f"{row['seconds'] / row['epochs_done']:.2f}",
    )


def _shown_target(target: Mapping[str, Any]) -> tuple[str, ...]:
    times = target["times_sooner"]
    least = "at least " if target["at_least"] else ""
    return (
        f"{target['psnr']:g} dB",
        *("no" if s is None else f"{s:.1f} s" for s in (target["ours_seconds"], target["baseline_seconds"])),
        "" if times is None else f"{least}{times:.2f}",
    )


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fitting", description=__doc__)
    parser.add_argument("--clip", default="bunny")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", default="160x320", metavar="HxW")
    parser.add_argument("--parameters", type=int, default=350_000)
    parser.add_argument("--target", type=float, default=33.0)
    parser.add_argument("--changes", type=int, default=len(CHANGES), help="how many of them, in order")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", type=Path, default=ROOT / "demo/fitting")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/fitting.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
