"""From one cut of a backbone to a later one: with the tail behind it, the same as the tail alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nvpstore.tasks.backbone import Backbone
from nvpstore.tasks.chain import Block, ChainBackbone, Maps, Tokens
from nvpstore.tasks.cuts import CutBackbone


class Residual(nn.Module):
    """Convolutions, one of them beside a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.third, self.last = nn.Conv2d(4, 6, 3, 2, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = x + self.second(x).relu_()
        out: Tensor = self.last(self.third(x).mean((2, 3)))
        return out


class Embedding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :, :1, 0].transpose(1, 2), x.flatten(2).transpose(1, 2)], dim=1)


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def on_its_graph() -> Backbone:
    return CutBackbone(Residual(), (3, 16, 16))


def along_its_blocks() -> Backbone:
    blocks = (
        Block(name="stem", run=nn.Conv2d(3, 4, 4, 4), form=Maps()),
        Block(name="tokens", run=Embedding(), form=Tokens((4, 4), first=1)),
        Block(name="mixed", run=nn.Linear(4, 4), form=Tokens((4, 4), first=1)),
        Block(name="head", run=Pooled()),
    )
    return ChainBackbone(blocks, (3, 16, 16))


@pytest.mark.parametrize("make", [on_its_graph, along_its_blocks])
def test_every_cut_leads_to_every_later_one(make: object) -> None:
    torch.manual_seed(0)
    backbone: Backbone = make()  # type: ignore[operator]
    x = torch.rand(2, 3, 16, 16)
    names = [cut.name for cut in backbone.cuts]
    assert len(names) > 1
    with torch.no_grad():
        found, output = backbone.features(x, names)
        for i, cut in enumerate(names):
            for later in names[i:]:
                there = backbone.between(cut, later)(*found[cut])
                for own, right in zip(there, found[later], strict=True):
                    torch.testing.assert_close(own, right)
                torch.testing.assert_close(backbone.tail(later)(*there), output)
