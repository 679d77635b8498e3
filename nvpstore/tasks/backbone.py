"""A frozen backbone that can be entered in the middle: what cut backbones of all families have in common.

A unit is what the backbone gives one answer for: a picture [3, H, W], or a clip [3, T, H, W].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nvpstore.errors import TaskError
from nvpstore.tasks.flops import counting

# Early layers of more frames than this fall out of a CPU's caches and take twice as long a frame.
CPU_FRAMES = 4
WHOLE = ""  # among the names of cuts

Features = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """`name` is the path of the block that the cut follows; `shapes` its tensors' shapes for one unit: maps
    [c, h, w], volumes [c, t, h, w], or tokens without a place [c, n], which stand after the map that goes
    with them. `nodes` are the tensors' names in the backbone's graph, where it has one.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    nodes: tuple[str, ...] = ()

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(shape[0] for shape in self.shapes)

    @property
    def grids(self) -> tuple[tuple[int, ...], ...]:
        """The grids of its maps and volumes."""
        return tuple(shape[1:] for shape in self.shapes if len(shape) > 2)


class Backbone(ABC):
    """Runs whole, up to any cut, and from any cut. Inputs [b, *input_shape] must be on `device`.

    `cuts` are in order of execution; without any, the backbone can be used by pixel and source routes only.
    """

    cuts: tuple[Cut, ...]
    parameters: int

    def __init__(self, input_shape: tuple[int, ...], *, device: str) -> None:
        self.input_shape, self.device = input_shape, device
        self._tails: dict[str, nn.Module] = {}
        self._parts_between: dict[tuple[str, str], nn.Module] = {}
        self._gflops: dict[str, float] = {}

    @abstractmethod
    def _whole(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _features(self, x: Tensor, cuts: tuple[str, ...]) -> tuple[list[Features], Tensor]: ...

    @abstractmethod
    def _run_counted(self, x: Tensor, spent: Callable[[], int]) -> dict[str, int]:
        """Run all of it: what was `spent` when each cut was reached."""

    @abstractmethod
    def _make_tail(self, cut: Cut) -> nn.Module: ...

    @abstractmethod
    def _make_between(self, cut: Cut, later: Cut) -> nn.Module: ...

    def cut(self, name: str) -> Cut:
        for cut in self.cuts:
            if cut.name == name:
                return cut
        raise TaskError(f"cut {name!r}: this backbone has {', '.join(c.name for c in self.cuts) or 'none'}")

    def whole(self, x: Tensor) -> Tensor:
        """Preprocessed units [b, *input_shape] → output [b, …]."""
        return torch.cat([self._whole(part) for part in self._parts(x)])

    def features(self, x: Tensor, cuts: Sequence[str]) -> tuple[dict[str, Features], Tensor]:
        """The tensors [b, …] of each of `cuts`, and the output, in one run."""
        runs = [self._features(part, tuple(cuts)) for part in self._parts(x)]
        found = {
            name: tuple(torch.cat(tensors) for tensors in zip(*(run[0][i] for run in runs), strict=True))
            for i, name in enumerate(cuts)
        }
        return found, torch.cat([out for _, out in runs])

    def tail(self, cut: str) -> nn.Module:
        """The backbone from `cut` to its output: takes the cut's tensors in the order of its shapes."""
        if cut not in self._tails:
            self._tails[cut] = self._make_tail(self.cut(cut))
        return self._tails[cut]

    def between(self, cut: str, later: str) -> nn.Module:
        """The backbone from `cut` to a `later` one: takes the cut's tensors, gives a tuple of the later's."""
        if (cut, later) not in self._parts_between:
            self._parts_between[cut, later] = (
                _Same() if cut == later else self._make_between(self.cut(cut), self.cut(later))
            )
        return self._parts_between[cut, later]

    def tail_gflops(self, cut: str) -> float:
        """GFLOPs (2 × MAC) of one unit through the tail."""
        return self._costs()[self.cut(cut).name]

    def whole_gflops(self) -> float:
        """GFLOPs (2 × MAC) of one unit through all of it."""
        return self._costs()[WHOLE]

    def _costs(self) -> dict[str, float]:
        """GFLOPs of the whole and of every tail, counted in one run."""
        if not self._gflops:
            with counting() as spent:
                before = self._run_counted(torch.zeros(1, *self.input_shape, device=self.device), spent)
                total = spent()
            self._gflops = {cut: (total - flops) / 1e9 for cut, flops in {WHOLE: 0, **before}.items()}
        return self._gflops

    def _parts(self, x: Tensor) -> Sequence[Tensor]:
        return (x,) if self.device != "cpu" else x.split(CPU_FRAMES if x.ndim == 4 else 1)


class _Same(nn.Module):
    def forward(self, *features: Tensor) -> Features:
        return features


class Uncut(Backbone):
    """A model that cannot be cut: it only runs whole. `why` says what stood in the way."""

    def __init__(
        self, model: nn.Module, input_shape: tuple[int, ...], *, why: str, device: str = "cpu"
    ) -> None:
        super().__init__(input_shape, device=device)
        self.model = model.eval().requires_grad_(False).to(device)
        self.why = why
        self.cuts = ()
        self.parameters = sum(p.numel() for p in model.parameters())

    def _whole(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out

    def _features(self, x: Tensor, cuts: tuple[str, ...]) -> tuple[list[Features], Tensor]:
        assert not cuts, "nothing can be cut here"
        return [], self._whole(x)

    def _run_counted(self, x: Tensor, spent: Callable[[], int]) -> dict[str, int]:
        self._whole(x)
        return {}

    def _make_tail(self, cut: Cut) -> nn.Module:
        raise TaskError(f"this backbone has no cuts: {self.why}")

    def _make_between(self, cut: Cut, later: Cut) -> nn.Module:
        return self._make_tail(cut)
