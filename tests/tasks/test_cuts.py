"""Cuts: every tail continues the whole model exactly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvpstore.errors import TaskError
from nvpstore.tasks.cuts import CutBackbone
from nvpstore.tasks.flops import gflops
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
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
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


def exact(backbone: CutBackbone, x: Tensor, expected: Tensor) -> list[str]:
    """The names of all cuts; each one's tail continues what is in front of it, for any number of units."""
    names = [cut.name for cut in backbone.cuts]
    features, output = backbone.features(x, names)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    for cut in backbone.cuts:
        assert tuple(tuple(f.shape[1:]) for f in features[cut.name]) == cut.shapes
        for units in (len(x), 1):
            again = backbone.tail(cut.name)(*(f[:units] for f in features[cut.name]))
            torch.testing.assert_close(again, output[:units], atol=1e-5, rtol=1e-5)
    costs = [backbone.tail_gflops(name) for name in names]
    assert costs == sorted(costs, reverse=True)
    return names


def test_a_plain_sequence_is_cut_once_a_layer_behind_its_activation() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(nn.Conv2d(8, 8, 3, 2, 1), nn.Hardswish(inplace=True), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(8, 6, 3, 1, 1), nn.SiLU(inplace=True)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)),
    )
    x = torch.randn(3, 3, 32, 48)
    expected = randomised(model)(x)
    backbone = CutBackbone(model, (3, 32, 48))
    assert exact(backbone, x, expected) == ["0", "3", "5", "6"]
    features, _ = backbone.features(x, ["0"])
    assert float(features["0"][0].min()) == 0, "behind the ReLU"


class Resized(nn.Module):
    """Logits at the input's size, as torchvision's segmentation networks give them, from two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.blocks = nn.Sequential(Residual(4), nn.Conv2d(4, 6, 3, 2, 1), Residual(6), Residual(6))
        self.low, self.high = nn.Conv2d(4, 2, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        size, units = x.shape[-2:], x.shape[0]
        low = self.stem(x)
        high = self.blocks(low)
        height, width = low.shape[2], low.size(3)
        high = F.interpolate(self.high(high), (height, width), mode="bilinear")
        both = (high + self.low(low)).view(units, 2, height * width).view(-1, 2, height, width)
        full = F.interpolate(both, size, mode="bilinear").view(units, 2, -1) / x.size()[0] * units
        return full.to(dtype=x.dtype, device=x.device).view(units, 2, size[0], size[1])


def test_what_is_read_off_shapes_before_a_cut_is_constant_but_for_the_number_of_units() -> None:
    model = randomised(Resized())
    x = torch.randn(4, 3, 20, 28)
    backbone = CutBackbone(model, (3, 20, 28))
    names = exact(backbone, x, model(x))
    assert names == ["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "high", "low"]


def test_a_skip_past_whole_blocks_is_the_second_tensor_of_their_cuts() -> None:
    backbone = CutBackbone(randomised(Resized()), (3, 20, 28))
    assert backbone.cut("stem").shapes == ((4, 10, 14),)
    assert backbone.cut("blocks.2").shapes == ((4, 10, 14), (6, 5, 7))
    assert backbone.cut("blocks.2").grids == ((10, 14), (5, 7))


def norms_run(backbone: CutBackbone) -> int:
    """BatchNorms that the graph still runs."""
    called = [n.target for n in backbone.graph.graph.nodes if n.op == "call_module"]
    modules = [backbone.graph.get_submodule(str(target)) for target in called]
    return sum(isinstance(m, nn.BatchNorm2d | nn.BatchNorm3d) for m in modules)


class Volumes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 4, (3, 5, 5), (1, 2, 2), (1, 2, 2)), nn.BatchNorm3d(4), nn.ReLU()
        )
        self.body = nn.Sequential(nn.Conv3d(4, 6, 3, 2, 1), nn.BatchNorm3d(6), nn.ReLU())
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3, 4)))


def test_volumes_are_cut_too() -> None:
    model = randomised(Volumes())
    x = torch.randn(3, 3, 8, 16, 24)
    expected = model(x)
    backbone = CutBackbone(model, (3, 8, 16, 24))
    exact(backbone, x, expected)
    assert [cut.shapes for cut in backbone.cuts] == [((4, 8, 8, 12),), ((6, 4, 4, 6),)]
    assert norms_run(backbone) == 0, "they are folded"


class ChannelsLast(nn.Module):
    """Layer norm and linear maps over channels that come last, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.patch(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            y = y + block(y)
        return y.mean((1, 2))


def test_maps_with_channels_last_are_cut_with_channels_first() -> None:
    torch.manual_seed(0)
    model = ChannelsLast().eval()
    x = torch.randn(3, 3, 16, 24)
    backbone = CutBackbone(model, (3, 16, 24))
    exact(backbone, x, model(x))
    assert {cut.shapes for cut in backbone.cuts} == {((8, 4, 6),)}
    assert len(backbone.cuts) >= 4


class InPlace(nn.Module):
    """Works in place in all ways, results used or not, on a branch that later blocks read too."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 4, 3, 1, 1) for c in (3, 4, 4, 4))
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.convs[0](x))
        z = self.convs[1](y)
        z += y
        z.mul_(0.5)
        z = F.relu(self.convs[2](z), inplace=True) + z.sigmoid_()
        return self.convs[3](z).mean((2, 3))


def test_tensors_of_cuts_are_as_they_were_before_what_works_in_place() -> None:
    torch.manual_seed(0)
    model = InPlace().eval()
    x = torch.randn(2, 3, 8, 8)
    backbone = CutBackbone(model, (3, 8, 8))
    names = exact(backbone, x, model(x.clone()))
    features, output = backbone.features(x, names)
    first = features[names[0]][0]
    assert first.data_ptr() != x.data_ptr()
    before = first.clone()
    for _ in range(2):
        torch.testing.assert_close(backbone.tail(names[0])(first), output)
    assert torch.equal(first, before)


class Standardised(nn.Conv2d):
    """Weights are standardised whenever they are used: a BatchNorm cannot be folded into them."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.std()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class NormAndMore(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


def test_batch_norms_are_folded_only_where_that_changes_nothing() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), NormAndMore(4), Standardised(4, 4, 3), nn.BatchNorm2d(4)),
        *(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    x = torch.randn(2, 3, 24, 24)
    expected = randomised(model)(x)
    backbone = CutBackbone(model, (3, 24, 24))
    exact(backbone, x, expected)
    assert norms_run(backbone) == 2


class Shared(nn.Module):
    """One convolution for two scales, each with a BatchNorm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.norms[0](self.shared(self.stem(x)))
        second = self.norms[1](self.shared(F.max_pool2d(first, 2)))
        return self.last(second).mean((2, 3))


def test_a_shared_convolution_stays_what_it_is_for_all() -> None:
    torch.manual_seed(0)
    model = Shared()
    for norm in model.norms:
        assert isinstance(norm, nn.BatchNorm2d)
        norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    x = torch.randn(1, 3, 16, 16)
    expected = model.eval()(x)
    backbone = CutBackbone(model, (3, 16, 16))
    exact(backbone, x, expected)
    assert norms_run(backbone) == 2


def test_what_depends_on_the_batch_is_no_answer_about_a_unit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    with pytest.raises(TaskError, match="cannot be cut: its graph's output is"):
        CutBackbone(model, (3, 16, 16))


class Counting(nn.Module):
    """Its answer depends on how often it was asked: no graph says the same."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 4, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x).mean((2, 3)) * self.calls


class Several(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("model", "said"),
    [(Counting(), "its graph's output is .* off"), (Several(), "gives tuple, not one tensor")],
)
def test_a_graph_that_does_not_say_what_its_model_says_is_not_cut(model: nn.Module, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        CutBackbone(model, (3, 16, 16))


def test_attention_counts_in_gflops() -> None:
    attention = nn.MultiheadAttention(32, 2, batch_first=True).eval().requires_grad_(False)
    x = torch.zeros(1, 50, 32)
    by_hand = (2 * 50 * 32 * 32 * 4 + 4 * 50 * 50 * 32) / 1e9
    assert gflops(lambda x: attention(x, x, x, need_weights=False), x) == pytest.approx(by_hand)
    q = torch.zeros(1, 2, 50, 16)
    assert gflops(F.scaled_dot_product_attention, q, q, q) == pytest.approx(4 * 50 * 50 * 32 / 1e9)
