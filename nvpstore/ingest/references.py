"""What a task's backbone says about a segment's source frames: what routes are trained and judged by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nvpstore.routing.select import Samples, Units, cut_samples, worthwhile_cuts
from nvpstore.tasks.backbone import Features
from nvpstore.tasks.registry import LoadedTask

TRAIN_EVERY = 2  # task terms see every second frame of the video; fidelity is measured on the others


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """`output` [u, …] for all units that were asked about; the rest only for those that task terms see.

    `frames` int64 [u, t]: positions in the segment of each unit's pictures. `seen` bool [u]; `inputs` [n, …]
    preprocessed; `samples` {cut: [n·k, c] a map} for CKA and ridge. `size` is the source's (height, width).
    """

    task: LoadedTask
    frames: Tensor
    seen: Tensor
    output: Tensor
    inputs: Tensor
    samples: dict[str, Samples]
    size: tuple[int, int]

    @property
    def positions(self) -> Tensor:
        """Positions in the segment of the seen units' pictures, [n·t]."""
        return self.frames[self.seen].flatten()

    @property
    def unseen(self) -> Tensor:
        """Which units were asked about only to measure by."""
        return (~self.seen).nonzero().squeeze(1)

    @property
    def units(self) -> Units:
        """What the backbone answers for, as parts of source pictures."""
        return Units(frames=self.task.spec.frames, region=self.task.spec.preprocessing.region(*self.size))

    @torch.inference_mode()
    def targets(self, cut: str) -> Features:
        """The cut's tensors [n, c, …] for the seen units."""
        parts = [self.task.backbone.features(x, [cut])[0][cut] for x in self.inputs.split(8)]
        return tuple(torch.cat(tensors).clone() for tensors in zip(*parts, strict=True))


class ReferenceBuilder:
    """Collects references batch by batch: frames need not be in memory together."""

    def __init__(self, task: LoadedTask, *, start_frame: int, seed: int) -> None:
        self.task, self.seed = task, seed
        self.start_frame = self.next_frame = start_frame
        self.cuts = [cut.name for cut in worthwhile_cuts(task.backbone)]
        self.parts: list[tuple[Tensor, Tensor, Tensor, dict[str, Samples]]] = []
        self.size = (0, 0)

    @torch.inference_mode()
    def add(self, rgb_tchw: Tensor) -> None:
        """Source frames uint8 [t, 3, h, w], in order."""
        self.size = (rgb_tchw.shape[2], rgb_tchw.shape[3])
        frames = torch.arange(self.next_frame, self.next_frame + len(rgb_tchw))
        self.next_frame += len(rgb_tchw)
        seen = frames % TRAIN_EVERY == 0
        x = self.task.spec.prepare(rgb_tchw.to(self.task.backbone.device))
        features, output = self.task.backbone.features(x, self.cuts)
        of_seen = {cut: tuple(f[seen] for f in tensors) for cut, tensors in features.items()}
        self.parts.append((seen, output, x[seen], cut_samples(of_seen, seed=self.seed)))

    def build(self) -> References:
        seen, output, inputs, samples = zip(*self.parts, strict=True)
        return References(
            task=self.task,
            frames=torch.arange(self.next_frame - self.start_frame)[:, None],
            seen=torch.cat(seen),
            output=torch.cat(output).clone(),
            inputs=torch.cat(inputs).clone(),
            samples={
                cut: tuple(torch.cat(parts).clone() for parts in zip(*(s[cut] for s in samples), strict=True))
                for cut in self.cuts
            },
            size=self.size,
        )
