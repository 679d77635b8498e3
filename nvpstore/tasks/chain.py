"""Cutting a backbone that its family gives as a list of blocks, one after another.

For models that a trace does not get through, or whose state between blocks is more than feature maps: tokens
(ViT), several pathways (SlowFast), a decoder that reads an encoder (DETR, BLIP).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nvpstore.tasks.backbone import Backbone, Cut, Features


class Maps(nn.Module):
    """State between blocks that is one feature map [b, c, h, w] or volume [b, c, t, h, w] already."""

    def split(self, state: Tensor) -> Features:
        return (state,)

    def forward(self, features: Tensor) -> Tensor:
        return features


class Pathways(nn.Module):
    """State that is a list of volumes, one a pathway (Feichtenhofer et al., "SlowFast", ICCV 2019)."""

    def split(self, state: Sequence[Tensor]) -> Features:
        return tuple(state)

    def forward(self, *features: Tensor) -> list[Tensor]:
        return list(features)


class Tokens(nn.Module):
    """State that is tokens [b, n + h·w, c], the first n without a place (class, distillation).

    Split into a map [b, c, h, w], less the model's own position embedding, and tokens [b, c, n]: an adapter
    need not learn what a position is. `position` gives it [h·w, c] as it is after the weights were loaded;
    None where the model has no additive one.
    """

    def __init__(
        self, grid: tuple[int, int], *, first: int, position: Callable[[], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.grid, self.first, self.position = grid, first, position

    def split(self, state: Tensor) -> Features:
        patches = state[:, self.first :]
        if self.position is not None:
            patches = patches - self.position()
        # BxNxC -> BxCxN -> BxCxHxW
        grid = patches.transpose(1, 2).unflatten(2, self.grid)
        return (grid, state[:, : self.first].transpose(1, 2)) if self.first else (grid,)

    def forward(self, grid: Tensor, *tokens: Tensor) -> Tensor:
        # BxCxHxW -> BxNxC
        patches = grid.flatten(2).transpose(1, 2)
        if self.position is not None:
            patches = patches + self.position()
        return torch.cat([*(t.transpose(1, 2) for t in tokens), patches], dim=1)


Form = Maps | Pathways | Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A step of a chain: `run` maps state to state. `form` says how the state after it is cut, if at all."""

    name: str
    run: nn.Module
    form: Form | None = None


class _Tail(nn.Module):
    def __init__(self, form: Form, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.form, self.blocks = form, nn.ModuleList(blocks)

    def forward(self, *features: Tensor) -> Any:
        state = self.form(*features)
        for block in self.blocks:
            state = block(state)
        return state


class _Between(_Tail):
    def __init__(self, form: Form, blocks: Sequence[nn.Module], later: Form) -> None:
        super().__init__(form, blocks)
        self.later = later

    def forward(self, *features: Tensor) -> Features:
        return self.later.split(super().forward(*features))


class ChainBackbone(Backbone):
    """A frozen backbone given as blocks; the last one's state is the output [b, …]."""

    def __init__(self, blocks: Sequence[Block], input_shape: tuple[int, ...], *, device: str = "cpu") -> None:
        super().__init__(input_shape, device=device)
        self.blocks = tuple(blocks)
        self.model = nn.ModuleList(
            part for block in blocks for part in (block.run, block.form) if part is not None
        )
        self.model.eval().requires_grad_(False).to(device)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        with torch.no_grad():
            self.cuts = tuple(self._shapes(torch.zeros(1, *input_shape, device=device)))

    def _shapes(self, x: Tensor) -> list[Cut]:
        found = []

        def note(block: Block, features: Features) -> None:
            found.append(Cut(name=block.name, shapes=tuple(tuple(f.shape[1:]) for f in features)))

        self._run(x, note)
        return found

    def _run(self, x: Tensor, note: Callable[[Block, Features], None] | None = None) -> Tensor:
        state: Any = x
        for block in self.blocks:
            state = block.run(state)
            if note is not None and block.form is not None:
                note(block, block.form.split(state))
        assert isinstance(state, Tensor), "a backbone answers with one tensor"
        return state

    def _whole(self, x: Tensor) -> Tensor:
        return self._run(x)

    def _features(self, x: Tensor, cuts: tuple[str, ...]) -> tuple[list[Features], Tensor]:
        found: dict[str, Features] = {}

        def note(block: Block, features: Features) -> None:
            if block.name in cuts:
                found[block.name] = features

        output = self._run(x, note)
        return [found[name] for name in cuts], output

    def _run_counted(self, x: Tensor, spent: Callable[[], int]) -> dict[str, int]:
        before: dict[str, int] = {}

        def note(block: Block, _: Features) -> None:
            before[block.name] = spent()

        self._run(x, note)
        return before

    def _make_tail(self, cut: Cut) -> nn.Module:
        at, form = self._place(cut)
        return _Tail(form, [block.run for block in self.blocks[at + 1 :]])

    def _make_between(self, cut: Cut, later: Cut) -> nn.Module:
        (at, form), (end, last) = self._place(cut), self._place(later)
        return _Between(form, [block.run for block in self.blocks[at + 1 : end + 1]], last)

    def _place(self, cut: Cut) -> tuple[int, Form]:
        at = next(i for i, block in enumerate(self.blocks) if block.name == cut.name)
        form = self.blocks[at].form
        assert form is not None, "cuts follow blocks that have a form"
        return at, form
