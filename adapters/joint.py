"""A task's share in fitting a segment: an adapter, its targets, and the frozen tail behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from nvpstore.adapters.losses import composite_loss
from nvpstore.adapters.micro import FeatureScale, MicroAdapter

OutputLoss = Callable[[Tensor, Tensor], Tensor]


class AdapterTerm:
    """Feature and task term of one route while its segment is fitted (a codec.fit.JointTerm).

    `targets` are the cut's tensors [n, c, h, w] and `reference` the backbone's output [n, …] on the
    n frames that the term sees; `positions` [n] are these frames' positions in the segment.
    """

    def __init__(
        self,
        *,
        choice: str,
        adapter: MicroAdapter,
        tail: fx.GraphModule,
        targets: Sequence[Tensor],
        reference: Tensor,
        positions: Tensor,
        frames: int,
        output_loss: OutputLoss,
        device: str,
    ) -> None:
        self.choice, self.stages = choice, adapter.stages
        self.scales = [FeatureScale(t.to(device)) for t in targets]
        self.adapter = adapter.to(device)
        self.tail = tail.to(device)
        self.targets = [s.normalise(t.to(device)) for s, t in zip(self.scales, targets, strict=True)]
        self.reference = reference.to(device)
        self.output_loss = output_loss
        self.row = torch.full((frames,), -1, dtype=torch.long, device=device)
        self.row[positions.to(device)] = torch.arange(len(positions), device=device)
        self.positions = positions.to(device)

    def parameters(self) -> Sequence[nn.Parameter]:
        return list(self.adapter.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.adapter.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> object:
        return self.adapter.load_state_dict(state)

    def sees(self, frames: Tensor) -> Tensor:
        return self.row[frames] >= 0

    def losses(
        self, taps: Mapping[str, Tensor], frames: Tensor, *, with_task: bool
    ) -> tuple[Tensor, Tensor | None]:
        rows = self.row[frames]
        adapted = self.adapter(taps)
        feature = torch.stack(
            [composite_loss(a, t[rows]) for a, t in zip(adapted, self.targets, strict=True)]
        ).mean()
        if not with_task:
            return feature, None
        output = self.tail(*(s.restore(a) for s, a in zip(self.scales, adapted, strict=True)))
        return feature, self.output_loss(output, self.reference[rows])

    def partners(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        rows = self.row[frames]
        step = torch.randint(0, 2, rows.shape, generator=generator).to(rows.device) * 2 - 1
        return self.positions[(rows + step).clamp(0, len(self.positions) - 1)]

    def mixed_loss(
        self, taps: Mapping[str, Tensor], frames: Tensor, partners: Tensor, share: float
    ) -> Tensor:
        output = self.tail(*(s.restore(a) for s, a in zip(self.scales, self.adapter(taps), strict=True)))
        own, other = (self.output_loss(output, self.reference[self.row[f]]) for f in (frames, partners))
        return (1 - share) * own + share * other
