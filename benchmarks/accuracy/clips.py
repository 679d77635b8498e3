"""The test clips, and which units of them a net is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy.answers import Answer, from_outputs
from benchmarks.nets.footage import clip_path, rendered
from benchmarks.nets.lessons import middle
from benchmarks.world import FrameTruth, read_truth
from nvpstore.tasks.registry import LoadedTask
from nvpstore.tasks.spec import TaskSpec
from nvpstore.video.source import read_frames

AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TestClip:
    """`rgb` uint8 [t, 3, h, w] as decoded from the source file, and what is true of each frame."""

    name: str
    path: Path
    rgb: Tensor
    truth: tuple[FrameTruth, ...]

    @property
    def frames(self) -> int:
        return len(self.truth)

    @property
    def pixels(self) -> int:
        """Of all frames."""
        return self.frames * int(self.rgb.shape[2]) * int(self.rgb.shape[3])


def load_clip(folder: Path, *, seed: int, frames: int) -> TestClip:
    """Clip `seed` of the `test` split; rendered where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    path = rendered(clip_path(folder, "test", seed, frames), seed=seed, split="test", frames=frames)
    truth = tuple(read_truth(path.with_suffix(".json")))
    return TestClip(name=path.stem, path=path, rgb=pictures(path), truth=truth)


def pictures(path: Path) -> Tensor:
    """Every frame of a file, uint8 [t, 3, h, w]."""
    rgb = np.concatenate([batch.rgb_thwc for batch in read_frames(str(path), batch_frames=32)])
    return torch.from_numpy(rgb).permute(0, 3, 1, 2).contiguous()


def units_of(spec: TaskSpec, frames: int) -> list[list[int]]:
    """Frames of each unit that queries ask about; of clips those that lie within the video."""
    if spec.clip is None:
        return [[frame] for frame in range(frames)]
    starts = range(0, frames - spec.clip.span + 1, spec.clip.span)
    return [list(range(start, start + spec.clip.span, spec.clip.stride)) for start in starts]


def truth_of(clip: TestClip, units: Sequence[Sequence[int]]) -> list[FrameTruth]:
    return [clip.truth[middle(unit)] for unit in units]


@torch.inference_mode()
def ask(task: LoadedTask, rgb: Tensor, units: Sequence[Sequence[int]]) -> list[Answer]:
    """What a net says of pictures uint8 or float [t, 3, h, w] in 0 … 255."""
    answers: list[Answer] = []
    for first in range(0, len(units), AT_ONCE):
        frames = [frame for unit in units[first : first + AT_ONCE] for frame in unit]
        x = task.spec.prepare(rgb[frames]).to(task.backbone.device)
        answers += from_outputs(task, task.backbone.whole(x))
    return answers
