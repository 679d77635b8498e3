"""python -m benchmarks.nets FOLDER [NET …] [--stills 20000] [--clips 900] [--share 1.0] [--device auto]:
train the reduced nets on the labelled world, and say how right they are on source frames of its test clips.

Writes FOLDER/<net>.safetensors and FOLDER/nets.json; killed, it goes on where it was. `--share` trains fewer
steps. The nets see the `train` split (its photographs, its pairs of shape and script) and never the `test`
one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.answers import accuracy, as_answer, from_outputs
from benchmarks.machine import write_result
from benchmarks.nets.families import FAMILIES, Family
from benchmarks.nets.footage import WORLD_FRAMES, Footage, footage
from benchmarks.nets.lessons import EXTRA, middle
from benchmarks.nets.training import SEED, train
from nvpstore.tasks.registry import LoadedTask, load
from nvpstore.tasks.weights import digest_of

TEST_CLIPS = 8
TEST_EVERY = 8  # frames; clips of actions lie side by side
AT_ONCE = 16
CLIP_FRAMES = 36  # of a world that nets of clips learn from


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nets", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("nets", nargs="*", metavar="NET", help=f"of {', '.join(FAMILIES)}")
    parser.add_argument("--stills", type=int, default=20_000, help="worlds of a frame each")
    parser.add_argument("--clips", type=int, default=900, help="worlds that nets of clips learn from")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    args = parser.parse_args(arguments)
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    fresh = footage(args.folder / "footage", split="test", clips=TEST_CLIPS, frames=WORLD_FRAMES)
    for name in args.nets or list(FAMILIES):
        family = FAMILIES[name]
        clips, frames = (args.stills, 1) if family.clip is None else (args.clips, CLIP_FRAMES)
        seen = footage(args.folder / "footage", split="train", clips=clips, frames=frames)
        steps = max(1, round(family.steps * args.share))
        done = train(name, family, seen, args.folder, device=device, steps=steps, told=_tell)
        task = trained(name, family, args.folder, device)
        row = {
            "net": name,
            "kind": family.kind,
            "model": family.model,
            "parameters": sum(
                p.numel() for n, p in done.model.net.named_parameters() if not n.startswith(EXTRA)
            ),
            "steps": steps,
            "batch": family.batch,
            "loss": done.loss,
            "seconds": done.seconds,
            "clips": clips,
            "frames": frames,
            "seed": SEED,
            "test_clips": TEST_CLIPS,
            "test_score": test_score(task, family, fresh),
            "constant_score": constant_score(task, family, fresh),
        }
        _tell(f"{name}: {row['test_score']:.3f} on source frames of unseen clips")
        _keep(args.folder / "nets.json", row)


def trained(name: str, family: Family, folder: Path, device: str = "cpu") -> LoadedTask:
    """The net as a task, from the weights in `folder`."""
    weights = folder / f"{name}.safetensors"
    return load(family.spec(name, weights_sha256=digest_of(weights)), device, find=lambda _: weights)


@torch.inference_mode()
def test_score(task: LoadedTask, family: Family, clips: Footage) -> float:
    """The mean accuracy over units of all clips."""
    each = [
        accuracy(family, answer, told)
        for x, truth in _units(task, clips)
        for answer, told in zip(
            from_outputs(task, task.backbone.whole(x.to(task.backbone.device))), truth, strict=True
        )
    ]
    return sum(each) / len(each)


def constant_score(task: LoadedTask, family: Family, clips: Footage) -> float:
    """The mean accuracy of one answer, always: the best of those that are true of some unit."""
    truth = [told for _, units in _units(task, clips) for told in units]
    tried = {told.caption if family.kind == "caption" else told.boxes: told for told in truth}
    if family.labels and family.kind != "detection":
        tried = {told.action if family.kind == "action" else told.label: told for told in truth}
    return max(
        sum(accuracy(family, as_answer(family, one), told) for told in truth) / len(truth)
        for one in tried.values()
    )


def _units(task: LoadedTask, clips: Footage) -> Any:
    clip = task.spec.clip
    for number in range(clips.clips):
        if clip is None:
            units = [[frame] for frame in range(0, clips.frames, TEST_EVERY)]
        else:
            starts = range(0, clips.frames - clip.span + 1, clip.span)
            units = [list(range(start, start + clip.span, clip.stride)) for start in starts]
        for first in range(0, len(units), AT_ONCE):
            some = units[first : first + AT_ONCE]
            rgb = torch.cat([clips.at(number, frames) for frames in some])
            yield task.spec.prepare(rgb), [clips.truth[number][middle(frames)] for frames in some]


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _keep(path: Path, row: dict[str, Any]) -> None:
    """One file of all nets trained so far."""
    rows = json.loads(path.read_text())["nets"] if path.exists() else []
    rows = [*(other for other in rows if other["net"] != row["net"]), row]
    write_result(path, {"question": "nets", "nets": rows})


if __name__ == "__main__":
    main()
