"""What a task's backbone says about a segment's source frames: what routes are trained and judged by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nvpstore.routing.select import cut_samples, worthwhile_cuts
from nvpstore.tasks.registry import LoadedTask

TRAIN_EVERY = 2  # task terms see every second frame of the video; fidelity is measured on the others


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """`output` [t, …] for all frames of the segment; the rest only for the frames that task terms see.

    `seen` bool [t]; `inputs` [n, 3, H, W] preprocessed; `samples` {cut: [n·k, c]} for CKA and ridge.
    """

    task: LoadedTask
    seen: Tensor
    output: Tensor
    inputs: Tensor
    samples: dict[str, Tensor]

    @property
    def positions(self) -> Tensor:
        """Positions of the seen frames in the segment."""
        return self.seen.nonzero().squeeze(1)

    @property
    def unseen(self) -> Tensor:
        return (~self.seen).nonzero().squeeze(1)

    @torch.inference_mode()
    def targets(self, cut: str) -> tuple[Tensor, ...]:
        """The cut's tensors [n, c, h, w] for the seen frames."""
        parts = [self.task.backbone.features(x, [cut])[0][cut] for x in self.inputs.split(8)]
        return (torch.cat(parts).clone(),)


class ReferenceBuilder:
    """Collects references batch by batch: frames need not be in memory together."""

    def __init__(self, task: LoadedTask, *, start_frame: int, seed: int) -> None:
        self.task, self.seed = task, seed
        self.next_frame = start_frame
        self.cuts = [cut.name for cut in worthwhile_cuts(task.backbone)]
        self.parts: list[tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]] = []

    @torch.inference_mode()
    def add(self, rgb_tchw: Tensor) -> None:
        """Source frames uint8 [t, 3, h, w], in order."""
        frames = torch.arange(self.next_frame, self.next_frame + len(rgb_tchw))
        self.next_frame += len(rgb_tchw)
        seen = frames % TRAIN_EVERY == 0
        x = self.task.spec.preprocessing.apply(rgb_tchw.to(self.task.backbone.device))
        features, output = self.task.backbone.features(x, self.cuts)
        samples = cut_samples({cut: f[seen] for cut, f in features.items()}, seed=self.seed)
        self.parts.append((seen, output, x[seen], samples))

    def build(self) -> References:
        seen, output, inputs, samples = zip(*self.parts, strict=True)
        return References(
            task=self.task,
            seen=torch.cat(seen),
            output=torch.cat(output).clone(),
            inputs=torch.cat(inputs).clone(),
            samples={cut: torch.cat([s[cut] for s in samples]).clone() for cut in self.cuts},
        )
