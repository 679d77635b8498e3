"""Cuts: every tail continues the whole model exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nvpstore.errors import TaskError
from nvpstore.tasks.cuts import CutBackbone
from nvpstore.tasks.registry import builtin_spec, load


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


class Small(nn.Module):
    """Residual blocks, and a head that reads the batch size off the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList([Residual(8), Residual(8), Residual(8)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.size(0)
        y = self.stem(x)
        for block in self.blocks:
            y = block(y)
        return self.head(y.mean((2, 3)).view(batch, -1))


class AllAtOnce(nn.Module):
    """Three paths side by side: nothing of at most two tensors separates input from output."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = nn.ModuleList(nn.Conv2d(3, 4, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        parts = [path(x) for path in self.paths]
        return torch.cat([p.mean((2, 3)) for p in parts], dim=1)


def randomised(model: nn.Module) -> nn.Module:
    """With BatchNorm statistics that folding can get wrong."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.eval()


def test_every_tail_of_a_residual_net_continues_it_exactly() -> None:
    model = randomised(Small())
    x = torch.randn(3, 3, 16, 16)
    expected = model(x)
    backbone = CutBackbone(model, (3, 16, 16))
    names = [cut.name for cut in backbone.cuts]
    assert {"blocks.0", "blocks.1", "blocks.2"} <= set(names)
    features, output = backbone.features(x, names)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    for name in names:
        assert tuple(f.shape[1:] for f in features[name]) == backbone.cut(name).shapes
        torch.testing.assert_close(backbone.tail(name)(*features[name]), output)


def test_labels_backbone_is_cut_after_every_block_and_tails_are_exact() -> None:
    backbone = load(builtin_spec("labels")).backbone
    names = [cut.name for cut in backbone.cuts]
    assert {f"blocks.{i}" for i in range(16)} <= set(names)
    x = torch.randn(1, *backbone.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features, output = backbone.features(x, names)
        for name in names:
            assert float((backbone.tail(name)(*features[name]) - output).abs().max()) <= 1e-5


def test_tails_get_cheaper_from_cut_to_cut() -> None:
    backbone = load(builtin_spec("labels")).backbone
    blocks = [backbone.tail_gflops(f"blocks.{i}") for i in range(16)]
    assert blocks == sorted(blocks, reverse=True)
    assert blocks[0] < backbone.whole_gflops()


def test_a_model_that_cannot_be_cut_says_so() -> None:
    with pytest.raises(TaskError, match="pixel and source routes only"):
        CutBackbone(AllAtOnce(), (3, 16, 16))


def test_an_unknown_cut_is_named_with_those_there_are() -> None:
    backbone = CutBackbone(randomised(Small()), (3, 16, 16))
    with pytest.raises(TaskError, match=r"'layer9'.*blocks\.1"):
        backbone.cut("layer9")
