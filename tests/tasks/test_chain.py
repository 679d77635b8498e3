"""Backbones given as blocks: cut between them, exact tails, tokens and pathways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nvpstore.errors import TaskError
from nvpstore.tasks.backbone import Uncut
from nvpstore.tasks.backbones.model import Model
from nvpstore.tasks.chain import Block, ChainBackbone, Maps, Pathways, Tokens
from nvpstore.tasks.registry import cut_backbone


class Embed(nn.Module):
    """Pictures [b, 3, 8, 12] → tokens [b, 2 + 6, 5], positions added."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 5, 4, 4)
        self.first = nn.Parameter(torch.randn(1, 2, 5))
        self.position = nn.Parameter(torch.randn(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return torch.cat([self.first.expand(len(x), -1, -1), patches], dim=1)


class Mix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(5, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.attention(x, x, x)[0]
        return out


class First(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class Split(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [x[:, :, ::4], x]


class Spoil(nn.Module):
    """Changes the list that it is given, as some published blocks do."""

    def forward(self, state: list[Tensor]) -> list[Tensor]:
        state[0] = state[0] * 2 + state[1].mean((1, 2, 3, 4), keepdim=True)
        return state


class Join(nn.Module):
    def forward(self, state: list[Tensor]) -> Tensor:
        return torch.stack([x.mean((1, 2, 3, 4)) for x in state], dim=1)


def tokens_chain() -> ChainBackbone:
    torch.manual_seed(0)
    embed = Embed()

    def form() -> Tokens:
        return Tokens((2, 3), first=2, position=lambda: embed.position)

    mixes = [Block(name=f"mix.{i}", run=Mix(), form=form()) for i in range(3)]
    return ChainBackbone(
        [Block(name="embed", run=embed, form=form()), *mixes, Block(name="first", run=First())], (3, 8, 12)
    )


def test_tokens_are_cut_into_a_map_without_positions_and_tokens_without_a_place() -> None:
    backbone = tokens_chain()
    assert [cut.name for cut in backbone.cuts] == ["embed", "mix.0", "mix.1", "mix.2"]
    assert {cut.shapes for cut in backbone.cuts} == {((5, 2, 3), (5, 2))}
    assert backbone.cuts[0].grids == ((2, 3),)
    x = torch.randn(6, 3, 8, 12)
    features, output = backbone.features(x, ["embed", "mix.1"])
    embed = backbone.blocks[0].run
    assert isinstance(embed, Embed)
    torch.testing.assert_close(features["embed"][0], embed.patch(x))
    torch.testing.assert_close(output, backbone.whole(x))
    for name in ("embed", "mix.1"):
        torch.testing.assert_close(backbone.tail(name)(*features[name]), output)


def test_a_tail_is_cheaper_the_later_it_begins() -> None:
    backbone = tokens_chain()
    costs = [backbone.tail_gflops(cut.name) for cut in backbone.cuts]
    assert backbone.whole_gflops() > costs[0] > costs[1] > costs[2] > costs[3] == 0
    assert backbone.parameters == sum(p.numel() for p in backbone.model.parameters())


def test_pathways_are_cut_into_one_volume_each() -> None:
    backbone = ChainBackbone(
        [
            Block(name="split", run=Split(), form=Pathways()),
            Block(name="spoil", run=Spoil(), form=Pathways()),
            Block(name="join", run=Join()),
        ],
        (3, 8, 4, 4),
    )
    assert backbone.cuts[0].shapes == ((3, 2, 4, 4), (3, 8, 4, 4))
    x = torch.randn(2, 3, 8, 4, 4)
    for name in ("split", "spoil"):
        features, output = backbone.features(x, [name])
        torch.testing.assert_close(backbone.tail(name)(*features[name]), output)


def test_unknown_cuts_are_named_with_those_there_are() -> None:
    with pytest.raises(TaskError, match=r"cut 'mix.9': this backbone has embed, mix.0"):
        tokens_chain().cut("mix.9")


class Stubborn(nn.Module):
    """Cannot be traced: what it does hangs on what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            x = x * 2
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def test_a_model_that_cannot_be_cut_still_answers_as_a_whole() -> None:
    model = Stubborn()
    backbone = cut_backbone(Model(net=model, answers=model), (3, 8, 8), device="cpu")
    assert isinstance(backbone, Uncut)
    assert backbone.cuts == ()
    assert "cannot be traced" in backbone.why
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(backbone.whole(x), torch.cat([model(part) for part in x.split(4)]))
    assert backbone.features(x, [])[0] == {}
    with pytest.raises(TaskError, match="cut 'head': this backbone has none"):
        backbone.tail("head")


def test_maps_are_their_own_state() -> None:
    x = torch.randn(1, 2, 3, 3)
    assert Maps().split(x) == (x,)
    assert Maps()(x) is x
