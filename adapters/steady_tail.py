"""A tail with memory: at the tensors of a late cut, and at the answers, whatever route led to that cut.

Stage features mean something only within one segment's network, a late cut's tensors the same in all videos:
so the controller looks at these, and one stabilizer serves adapter, pixel and source routes alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nvpstore.adapters.stabilized import OUTPUT, Steady
from nvpstore.adapters.stabilizer import Place, Shape, Stabilizer, State, as_map
from nvpstore.tasks.backbone import Cut

AT_CUT = "cut"  # and the tensor's number


class SteadyTail(Steady):
    """`tail` takes a cut's tensors, here as one [b, n]: each flattened, one after another."""

    def __init__(self, tail: nn.Module, stabilizer: Stabilizer, cut: Cut) -> None:
        self.net, self.stabilizer, self.cut = tail, stabilizer, cut
        self.sizes = [math.prod(shape) for shape in cut.shapes]

    def step(self, x: Tensor, state: State, *, gap: float = 1.0) -> tuple[Tensor, State]:
        features = self.unpacked(x)
        step = self.stabilizer.begin(as_map(features[0]), state, gap=gap)
        known = self.stabilizer.names
        fused = [
            step.fuse(name, z) if (name := f"{AT_CUT}{i}") in known else z for i, z in enumerate(features)
        ]
        output: Tensor = self.net(*fused)
        if OUTPUT in known:
            output = step.fuse(OUTPUT, output)
        return output, step.done()

    def packed(self, features: Sequence[Tensor]) -> Tensor:
        """The cut's tensors [b, …] → [b, n]."""
        return torch.cat([z.flatten(1) for z in features], dim=1)

    def unpacked(self, x: Tensor) -> tuple[Tensor, ...]:
        """[b, n] → the cut's tensors, each [b, *shape]."""
        parts = x.split(self.sizes, dim=1)
        return tuple(z.unflatten(1, shape) for z, shape in zip(parts, self.cut.shapes, strict=True))


def tail_places(cut: Cut, output: Tensor, *, with_output: bool) -> tuple[Place, ...]:
    """Places at all tensors of a cut, and behind its tail, which answers with `output` [b, c, …]."""
    places = [Place(name=f"{AT_CUT}{i}", channels=channels) for i, channels in enumerate(cut.channels)]
    if with_output:
        places.append(Place(name=OUTPUT, channels=int(output.shape[1])))
    return tuple(places)


def new_tail(tail: nn.Module, cut: Cut, shape: Shape, *, with_output: bool, device: str) -> SteadyTail:
    """A tail, frozen, with a new stabilizer."""
    with torch.no_grad():
        output = tail(*(torch.zeros(1, *part, device=device) for part in cut.shapes))
    places = tail_places(cut, output, with_output=with_output)
    seen = as_map(torch.zeros(1, *cut.shapes[0])).shape[1]
    return SteadyTail(tail, Stabilizer(shape, places, picture_channels=seen).to(device), cut)
