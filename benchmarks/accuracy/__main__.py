"""python -m benchmarks.accuracy FOLDER [--nets NETS_FOLDER] [--bpp 0.1 …] [--clips 4] [--frames 240]
[--epochs 60] [--codec hnerv …] [--device auto] [--out FILE]: how right answers from the store are.

On unseen clips of the labelled world, for each net (benchmarks/nets/weights; python -m benchmarks.nets trains
them): on source frames; on what x264, x265 and AV1 make of them at the same bytes, also at half size; from
cached features at 8 and 4 bit; from stored answers; constant and held answers; and ours, fitted jointly with
the nets, or fitted for reconstruction alone with adapters trained behind it on half of the frames (adapter
only) or on a tenth of the frames (a task that nobody knew when the video was fitted). Accuracy in three
columns: over the frames that training saw, over those it did not, and for the unknown task. Differences from
source frames come with the bootstrap interval of clips. Every row that is done lies in FOLDER/rows: a rerun
goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.accuracy import cached, ours
from benchmarks.accuracy.answers import Answer, accuracy, agreement, kl, steadiness
from benchmarks.accuracy.clips import TestClip, ask, load_clip, truth_of, units_of
from benchmarks.accuracy.codecs import ENCODERS, at_bytes
from benchmarks.accuracy.summary import summarised, table
from benchmarks.machine import ROOT, write_result
from benchmarks.nets import WEIGHTS
from benchmarks.nets.__main__ import trained
from benchmarks.nets.families import FAMILIES
from nvpstore.api.output import TextOutput, aligned
from nvpstore.tasks.registry import LoadedTask

BPP = (0.1,)
HELD = 25  # units for which a held answer stands
ADAPTER_ONLY_SHARE = 0.5

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nets", type=Path, default=WEIGHTS)
    parser.add_argument("--bpp", type=float, nargs="+", default=list(BPP))
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--frames", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=ours.BASE.epochs)
    parser.add_argument("--codec", nargs="+", choices=("hnerv", "nerv"), default=["hnerv"])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/accuracy.json")
    args = parser.parse_args(arguments)
    run = Run(args)
    for seed in range(args.clips):
        run.clip(seed)
    rows = run.rows()
    summary = summarised(rows)
    settings = {name: getattr(args, name) for name in ("bpp", "clips", "frames", "epochs", "codec")}
    nets = {name: task.spec.weights_sha256 for name, task in run.nets.items()}
    write_result(
        args.out, {"question": "accuracy", **settings, "nets": nets, "summary": summary, "rows": rows}
    )
    output = TextOutput()
    for text in aligned(*table(summary)):
        output.text(text)


class Run:
    """All rows of one run, each kept in a file when it is done."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.nets = {name: trained(name, family, args.nets) for name, family in FAMILIES.items()}
        # Rows and archives of other nets, or of longer fits, lie beside these.
        named = [args.epochs, *(task.spec.version for task in self.nets.values())]
        self.key = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:12]
        self.kept: Path = args.folder / "rows" / self.key
        self.kept.mkdir(parents=True, exist_ok=True)

    def clip(self, seed: int) -> None:
        """Every artefact of one clip."""
        clip = load_clip(self.args.folder / "clips", seed=seed, frames=self.args.frames)
        said = {
            name: ask(task, clip.rgb, units_of(task.spec, clip.frames)) for name, task in self.nets.items()
        }
        one = ClipRun(self, clip, said)
        one.once()
        for bpp in self.args.bpp:
            for codec in self.args.codec:
                one.stored(codec, bpp)
            one.encoded(bpp)

    def row(self, clip: TestClip, artefact: str, make: Callable[[], list[Row]]) -> None:
        """Make a clip's rows of one artefact, unless they are there."""
        path = self.kept / f"{clip.name}-{artefact.replace(' ', '_')}.json"
        if path.exists():
            return
        rows = [{"clip": clip.name, "artefact": artefact, **row} for row in make()]
        part = path.with_suffix(".part")
        part.write_text(json.dumps(rows))
        part.replace(path)
        for row in rows:
            sys.stderr.write(f"{clip.name} {artefact} {row['net']}: {np.mean(row['accuracy']):.3f}\n")

    def rows(self) -> list[Row]:
        return [row for path in sorted(self.kept.glob("*.json")) for row in json.loads(path.read_text())]


class ClipRun:
    """One clip: `said` is what each net says of its source frames."""

    def __init__(self, run: Run, clip: TestClip, said: dict[str, list[Answer]]) -> None:
        self.run, self.clip, self.said = run, clip, said

    def once(self) -> None:
        """What has no bytes to choose."""
        row, clip = self.run.row, self.clip
        row(clip, "source", lambda: [self.scored(n, a, bpp=None) for n, a in self.said.items()])
        row(clip, "constant", lambda: [self.scored(n, cached.constant(a)) for n, a in self.said.items()])
        held = {name: HELD if self.run.nets[name].spec.clip is None else 2 for name in self.said}
        row(
            clip,
            "last answer held",
            lambda: [self.scored(n, cached.held(a, every=held[n])) for n, a in self.said.items()],
        )
        row(clip, "answers", lambda: [self.cached(n, cached.answers_alone(a)) for n, a in self.said.items()])
        for bits in (8, 4):
            row(clip, f"features {bits} bit", lambda bits=bits: self.features(bits))

    def features(self, bits: int) -> list[Row]:
        tasks = self.run.nets.items()
        return [self.cached(n, cached.features(t, self.clip.rgb, self.units(t), bits=bits)) for n, t in tasks]

    def cached(self, net: str, found: cached.Cached) -> Row:
        row = self.scored(net, found.answers, bpp=8 * found.stored_bytes / self.clip.pixels)
        return {**row, "what": found.what}

    def encoded(self, bpp: float) -> None:
        """Codecs at the bytes that ours has."""
        wanted = round(bpp * self.clip.pixels / 8)
        for encoder in ENCODERS:
            for scale in (1, 2):
                name = f"{encoder.name} {bpp:g}" + (" half size" if scale == 2 else "")
                self.run.row(
                    self.clip,
                    name,
                    lambda e=encoder, s=scale: self.shown(at_bytes(e, self.clip.rgb, wanted, scale=s)),
                )

    def shown(self, encoded: Any) -> list[Row]:
        """Every net on pictures that were decoded again."""
        error = (encoded.rgb.float() - self.clip.rgb.float()).square().mean()
        return [
            {
                **self.scored(
                    name,
                    ask(task, encoded.rgb, self.units(task)),
                    bpp=8 * encoded.stored_bytes / self.clip.pixels,
                ),
                "psnr": float(10 * torch.log10(255**2 / error)),
            }
            for name, task in self.run.nets.items()
        ]

    # ------------------------------------------------------------ ours

    def stored(self, codec: str, bpp: float) -> None:
        """Joint; then reconstruction alone, with adapters on half of the frames, and on a tenth."""
        args = self.run.args
        preset = ours.preset_for(bpp, pixels=self.clip.pixels, codec=codec, epochs=args.epochs)
        root = args.folder / "archives" / self.run.key / preset
        self.run.row(
            self.clip,
            f"{codec} joint {bpp:g}",
            lambda: self.fitted(root / "joint", preset, tasks=tuple(FAMILIES), share=None),
        )
        for what, share in (("adapter only", ADAPTER_ONLY_SHARE), ("task unknown", ours.LATER_SHARE)):
            self.run.row(
                self.clip,
                f"{codec} {what} {bpp:g}",
                lambda share=share: self.fitted(root / "alone", preset, tasks=(), share=share),
            )

    def fitted(self, root: Path, preset: str, *, tasks: Sequence[str], share: float | None) -> list[Row]:
        device = self.run.args.device
        archive = ours.open_archive(root, self.run.args.nets)
        stored = ours.store(archive, self.clip.path, preset=preset, tasks=tasks, device=device)
        if share is not None:
            for name in FAMILIES:
                ours.train(stored, name, share=share, device=device)
        return [self.ours(stored, name, route, share) for name in FAMILIES for route in ("adapter", "pixel")]

    def ours(self, stored: ours.Stored, net: str, route: str, share: float | None) -> Row:
        task = self.run.nets[net]
        units = self.units(task)
        seen = (
            ours.seen_at_ingest(task.spec, self.clip.frames, units)
            if share is None
            else ours.seen_later(task.spec, self.clip.frames, units, share=share)
        )
        routes = stored.route_bytes
        own = 8 * routes[net] / self.clip.pixels if route == "adapter" else 0.0
        alone = 8 * stored.network_bytes / self.clip.pixels
        return {
            **self.scored(net, ours.ask(stored, net, units, route=route), bpp=alone),
            "route": route,
            "psnr": stored.row["psnr"],
            "bpp_with_task": alone + own,
            "bpp_with_all": alone + 8 * sum(routes.values()) / self.clip.pixels,
            "fit_seconds": stored.row["fit_seconds"],
            "scope": "segment",
            "seen": seen,
        }

    # ------------------------------------------------------------ parts

    def units(self, task: LoadedTask) -> list[list[int]]:
        return units_of(task.spec, self.clip.frames)

    def scored(self, net: str, answers: Sequence[Answer], *, bpp: float | None = 0.0) -> Row:
        family, source = FAMILIES[net], self.said[net]
        told = truth_of(self.clip, self.units(self.run.nets[net]))
        apart = [kl(a, s) for a, s in zip(answers, source, strict=True)]
        known = [value for value in apart if value is not None]
        return {
            "net": net,
            "bpp": bpp,
            "accuracy": [accuracy(family, a, t) for a, t in zip(answers, told, strict=True)],
            "agreement": [agreement(a, s) for a, s in zip(answers, source, strict=True)],
            "kl": float(np.mean(known)) if known else None,
            "steadiness": steadiness(answers),
        }


if __name__ == "__main__":
    main()
