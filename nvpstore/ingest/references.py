"""What a task's backbone says about a segment's source frames: what routes are trained and judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvpstore.ingest.units import Gathering, UnitPlan
from nvpstore.routing.select import Samples, Units, cut_samples, worthwhile_cuts
from nvpstore.tasks.backbone import Features
from nvpstore.tasks.registry import LoadedTask

OUTPUT_BYTES = 1 << 30  # of a segment's answers, all together: those of dense kinds are large


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
    def can_teach(self) -> bool:
        """There are cuts, and units to learn from."""
        return bool(self.seen.any()) and bool(self.task.backbone.cuts)

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


def affordable_units(task: LoadedTask) -> int:
    """How many units' answers fit into OUTPUT_BYTES."""
    nothing = torch.zeros(1, *task.spec.input_shape, device=task.backbone.device)
    return OUTPUT_BYTES // task.backbone.whole(nothing).nbytes


class ReferenceBuilder:
    """Collects references batch by batch: a segment's pictures need not be in memory together."""

    def __init__(self, task: LoadedTask, plan: UnitPlan, *, size: tuple[int, int], seed: int) -> None:
        """`size` is the source's (height, width), whatever that of the pictures."""
        self.task, self.plan, self.size, self.seed = task, plan, size, seed
        self.cuts = [cut.name for cut in worthwhile_cuts(task.backbone)]
        self._gathering = Gathering(plan)
        self._order: list[Tensor] = []
        self._parts: list[tuple[Tensor, Tensor, dict[str, Samples]]] = []

    def add(self, positions: Sequence[int], rgb_tchw: Tensor) -> None:
        """The pictures [t, 3, h, w] (0 … 255) at the segment's next `positions` (see `Gathering.add`)."""
        for units, pictures in self._gathering.add(positions, rgb_tchw):
            self._ask(units, pictures)

    @torch.inference_mode()
    def _ask(self, units: Tensor, pictures: Tensor) -> None:
        seen = self.plan.seen[units]
        x = self.task.spec.prepare(pictures.to(self.task.backbone.device), size=self.size)
        features, output = self.task.backbone.features(x, self.cuts)
        of_seen = {cut: tuple(f[seen] for f in tensors) for cut, tensors in features.items()}
        self._order.append(units)
        samples = cut_samples(of_seen, seed=self.seed)
        # Ranking is a few small products: not worth a device.
        on_cpu = {cut: tuple(s.float().cpu() for s in own) for cut, own in samples.items()}
        self._parts.append((output, x[seen], on_cpu))

    def build(self) -> References:
        """Of all units of the plan, whose pictures have all been added."""
        order = torch.cat(self._order)
        output, inputs, samples = zip(*self._parts, strict=True)
        return References(
            task=self.task,
            frames=self.plan.frames[order],
            seen=self.plan.seen[order],
            output=torch.cat(output),
            inputs=torch.cat(inputs),
            samples={
                cut: tuple(torch.cat(parts) for parts in zip(*(s[cut] for s in samples), strict=True))
                for cut in self.cuts
            },
            size=self.size,
        )
