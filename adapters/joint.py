"""A task's share in fitting a segment: an adapter, its targets, and the frozen tail behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from nvpstore.adapters.losses import composite_loss
from nvpstore.adapters.micro import FeatureScale, MicroAdapter

OutputLoss = Callable[[Tensor, Tensor], Tensor]
Answer = Callable[[Tensor], tuple[Sequence[Tensor], Tensor]]


class AdapterTerm:
    """Feature and task term of one route while its segment is fitted (a codec.terms.JointTerm), of the task
    whose `version` is given.

    `targets` are the cut's tensors [n, c, …] and `reference` the backbone's output [n, …] on the
    n units that the term learns from; `units` [n, t] are their frames' positions in the segment, which has
    `frames`: single ones are seen where a batch has them, clips are asked for as a whole. `tail` and
    `answer` run on `device`; `answer` asks the backbone about other pictures [b, 3, h, w] in 0 … 1: (the
    cut's tensors, output).
    """

    def __init__(
        self,
        *,
        choice: str,
        version: str = "",
        adapter: MicroAdapter,
        tail: nn.Module,
        targets: Sequence[Tensor],
        reference: Tensor,
        units: Tensor,
        frames: int,
        output_loss: OutputLoss,
        answer: Answer,
        device: str,
    ) -> None:
        self.choice, self.version, self.stages = choice, version, adapter.stages
        self.scales = [FeatureScale(t.to(device)) for t in targets]
        self.adapter = adapter.to(device)
        self.tail = tail
        self.targets = [s.normalise(t.to(device)) for s, t in zip(self.scales, targets, strict=True)]
        self.reference = reference.to(device)
        self.output_loss, self.answer = output_loss, answer
        self.row = torch.full((frames,), -1, dtype=torch.long, device=device)
        self.clips = units if units.shape[1] > 1 else None
        if self.clips is None:
            self.row[units[:, 0].to(device)] = torch.arange(len(units), device=device)

    def parameters(self) -> Sequence[nn.Parameter]:
        return list(self.adapter.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.adapter.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> object:
        return self.adapter.load_state_dict(state)

    def sees(self, frames: Tensor) -> Tensor:
        return self.row[frames] >= 0

    def losses(self, taps: Mapping[str, Tensor], units: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.row[units] if self.clips is None else units
        return self._losses(taps, [t[rows] for t in self.targets], self.reference[rows])

    def view_losses(self, taps: Mapping[str, Tensor], views: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            features, reference = self.answer(views)
            targets = [s.normalise(f) for s, f in zip(self.scales, features, strict=True)]
        return self._losses(taps, targets, reference)

    def _losses(
        self, taps: Mapping[str, Tensor], targets: Sequence[Tensor], reference: Tensor
    ) -> tuple[Tensor, Tensor]:
        adapted = self.adapter(taps)
        feature = torch.stack([composite_loss(a, t) for a, t in zip(adapted, targets, strict=True)]).mean()
        output = self.tail(*(s.restore(a) for s, a in zip(self.scales, adapted, strict=True)))
        return feature, self.output_loss(output, reference)
