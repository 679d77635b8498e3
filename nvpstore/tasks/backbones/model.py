"""What a provider builds: a network, how it is cut, and what it says in words."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from torch import Tensor, nn

from nvpstore.errors import TaskError
from nvpstore.tasks.chain import Block


class Words(Protocol):
    """The text side of a model of embeddings (CLIP)."""

    def embed(self, texts: Sequence[str]) -> Tensor:
        """[n, d], of unit length, in the space of the pictures' embeddings."""
        ...


class Writer(Protocol):
    """The text side of a model of captions."""

    def write(self, embedded: Tensor) -> list[str]:
        """A caption for each of the backbone's outputs [u, n, d]."""
        ...

    def tokens(self, embedded: Tensor) -> Tensor:
        """The caption of each output as token ids [u, l], padded; what `write` turns into text."""
        ...

    def logits(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        """What would be said after each of `tokens` [u, l] but the last: [u, l − 1, vocabulary]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """`net` holds all weights. It is cut along `blocks`, or where there are none on the graph of `answers`, a
    module of one picture tensor in and one tensor out. `own_names` is there where published weights are named
    otherwise than the net's: it gives them the net's names, or raises TaskError.
    """

    net: nn.Module
    blocks: tuple[Block, ...] = ()
    answers: nn.Module | None = None
    words: Words | None = None
    writer: Writer | None = None
    own_names: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None

    @property
    def whole(self) -> nn.Module:
        """What is cut where there are no blocks."""
        return self.net if self.answers is None else self.answers

    def run(self, x: Tensor) -> Any:
        """Units through all of it."""
        if not self.blocks:
            return self.whole(x)
        for block in self.blocks:
            x = block.run(x)
        return x


class Call(nn.Module):
    """Some of a network's methods one after another, as a block of a chain."""

    def __init__(self, net: nn.Module, *methods: str) -> None:
        super().__init__()
        self.net = net
        self.methods = methods

    def forward(self, x: Tensor) -> Tensor:
        for method in self.methods:
            x = getattr(self.net, method)(x)
        return x


def library(name: str, *, package: str, model: str) -> ModuleType:
    """An optional library; TaskError naming the package where it is absent."""
    try:
        return importlib.import_module(name)
    except ImportError as cause:
        raise TaskError(f"{model} needs {package}: pip install {package}") from cause
