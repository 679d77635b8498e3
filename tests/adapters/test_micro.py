"""Micro adapters: geometry, folding, losses, training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nvpstore.adapters.joint import AdapterTerm
from nvpstore.adapters.losses import composite_loss
from nvpstore.adapters.micro import FeatureScale, MicroAdapter, placed
from nvpstore.adapters.stored import load_adapter, store_adapter
from nvpstore.adapters.train import AdapterTraining, train_adapter
from nvpstore.codec.grids import WHOLE, Region
from nvpstore.tasks.cuts import CutBackbone


class Tiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.body = torch.nn.Conv2d(6, 6, 3, padding=1)
        self.head = torch.nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.body(torch.relu(self.stem(x))))
        return self.head(y.mean((2, 3)))


@pytest.fixture
def backbone() -> CutBackbone:
    torch.manual_seed(0)
    return CutBackbone(Tiny(), (3, 16, 16))


def squared(output: Tensor, reference: Tensor) -> Tensor:
    return (output - reference).square().mean()


def test_an_adapter_gives_the_cuts_shape_from_several_stages() -> None:
    adapter = MicroAdapter(("0", "2"), (5, 3), [(7, 4, 6)])
    taps = {"0": torch.randn(2, 5, 2, 3), "2": torch.randn(2, 3, 9, 12)}
    (out,) = adapter(taps)
    assert out.shape == (2, 7, 4, 6)
    by_hand = torch.einsum(
        "oc,tchw->tohw", adapter.convs[0].weight[:, :, 0, 0], placed(list(taps.values()), (4, 6))
    )
    torch.testing.assert_close(out, by_hand + adapter.convs[0].bias[:, None, None])


def test_a_folded_scale_gives_raw_features() -> None:
    torch.manual_seed(0)
    features = torch.randn(10, 7, 4, 6) * torch.arange(1, 8)[:, None, None] + 3
    scale = FeatureScale(features)
    normalised = scale.normalise(features)
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(7), atol=1e-5, rtol=0)
    torch.testing.assert_close(scale.restore(normalised), features, atol=1e-4, rtol=1e-5)
    adapter = MicroAdapter(("0",), (5,), [(7, 4, 6)])
    taps = {"0": torch.randn(2, 5, 2, 3)}
    torch.testing.assert_close(
        adapter.denormalised([scale])(taps)[0], scale.restore(adapter(taps)[0]), atol=1e-5, rtol=1e-5
    )


def test_a_silent_channel_does_not_blow_up() -> None:
    features = torch.randn(10, 3, 4, 4)
    features[:, 1] = 0.5
    scale = FeatureScale(features)
    assert torch.isfinite(scale.normalise(features)).all()
    assert float(scale.std[1]) >= 1e-3


def test_composite_loss_is_zero_only_for_equal_features() -> None:
    x = torch.randn(2, 5, 3, 3)
    assert float(composite_loss(x, x)) == pytest.approx(0, abs=1e-6)
    assert float(composite_loss(2 * x, x)) > 0.1  # same direction, other size
    assert float(composite_loss(-x, x)) > float(composite_loss(2 * x, x))


def test_training_brings_the_tails_output_to_the_reference(backbone: CutBackbone) -> None:
    torch.manual_seed(1)
    frames = torch.randn(24, 3, 16, 16)
    cut = backbone.cuts[0]
    features, reference = backbone.features(frames, [cut.name])
    mixing = torch.linalg.qr(torch.randn(8, 6))[0]
    taps = torch.einsum("ps,tshw->tphw", mixing, features[cut.name][0])  # a stage that holds the features
    start = MicroAdapter(("0",), (8,), cut.shapes)

    def error(adapter: MicroAdapter) -> float:
        with torch.no_grad():
            return float(squared(backbone.tail(cut.name)(*adapter({"0": taps})), reference))

    trained = train_adapter(
        start,
        start.inputs({"0": taps}),
        targets=features[cut.name],
        reference=reference,
        tail=backbone.tail(cut.name),
        output_loss=squared,
        settings=AdapterTraining(epochs=200, learning_rate=1e-2),
        seed=0,
    )
    assert error(trained) < 0.02 * error(start)


def test_a_term_knows_its_frames_and_gives_gradients_to_the_stages(backbone: CutBackbone) -> None:
    frames = torch.randn(4, 3, 16, 16)
    cut = backbone.cuts[0]
    features, reference = backbone.features(frames, [cut.name])
    positions = torch.tensor([0, 2, 4, 6])

    def answer(views: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        found, output = backbone.features(views, [cut.name])
        return found[cut.name], output

    term = AdapterTerm(
        choice="{}",
        adapter=MicroAdapter(("1",), (5,), cut.shapes),
        tail=backbone.tail(cut.name),
        targets=[features[cut.name][0].detach()],
        reference=reference.detach(),
        units=positions[:, None],
        frames=8,
        output_loss=squared,
        answer=answer,
        device="cpu",
    )
    batch = torch.tensor([1, 2, 6, 7])
    assert term.sees(batch).tolist() == [False, True, True, False]
    stage = torch.randn(2, 5, 4, 4, requires_grad=True)
    feature, task = term.losses({"1": stage}, torch.tensor([2, 6]))
    view_feature, view_task = term.view_losses({"1": stage}, frames[[1, 3]])
    torch.testing.assert_close(view_feature, feature)  # an unaltered view is the frame itself
    torch.testing.assert_close(view_task, task)
    for loss in (feature, task):
        (gradient,) = torch.autograd.grad(loss, stage, retain_graph=True)
        assert float(gradient.abs().sum()) > 0
    assert all(p.grad is None for p in backbone.graph.parameters())


def test_one_token_alone_has_a_scale() -> None:
    token = torch.randn(1, 8, 1)
    scale = FeatureScale(token)
    assert torch.isfinite(scale.std).all()
    torch.testing.assert_close(scale.restore(scale.normalise(token)), token)


def scales_of(shapes: list[tuple[int, ...]]) -> list[FeatureScale]:
    """Of features whose channels differ in mean and spread."""
    features = [torch.randn(9, *shape) for shape in shapes]
    ramps = [torch.arange(1, shape[0] + 1).reshape(-1, *(1,) * (len(shape) - 1)) for shape in shapes]
    return [FeatureScale(x * ramp + 3 * ramp) for x, ramp in zip(features, ramps, strict=True)]


CUTS: dict[str, tuple[list[tuple[int, ...]], int]] = {
    "map": ([(7, 4, 6)], 1),
    "pathways": ([(6, 2, 4, 5), (3, 8, 4, 5)], 8),
    "map and tokens": ([(8, 3, 4), (8, 2)], 1),
}


@pytest.mark.parametrize("motion", [False, True])
@pytest.mark.parametrize("region", [WHOLE, Region(left=-0.2, top=0.1, right=1.3, bottom=0.6)])
@pytest.mark.parametrize("cut", CUTS)
def test_raw_and_normalised_adapters_are_each_others_inverse(cut: str, region: Region, motion: bool) -> None:
    shapes, frames = CUTS[cut]
    adapter = MicroAdapter(("0",), (5,), shapes, region=region, frames=frames, motion=motion)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    scales = scales_of(shapes)
    raw = adapter.denormalised(scales)
    taps = {"0": torch.randn(2 * frames, 5, 3, 4)}
    with torch.no_grad():
        for found, own, scale in zip(raw(taps), adapter(taps), scales, strict=True):
            torch.testing.assert_close(found, scale.restore(own), atol=1e-4, rtol=1e-4)
    assert (raw.region, raw.frames, raw.shapes) == (region, frames, adapter.shapes)
    for name, value in raw.normalised(scales).state_dict().items():
        torch.testing.assert_close(value, adapter.state_dict()[name], atol=1e-4, rtol=1e-4)


def test_pathways_each_have_a_convolution_over_their_own_times() -> None:
    adapter = MicroAdapter(("0", "1"), (5, 3), [(6, 2, 4, 5), (3, 8, 4, 5)], frames=8)
    taps = {"0": torch.randn(16, 5, 2, 2), "1": torch.randn(16, 3, 6, 7)}
    slow, fast = adapter(taps)
    assert (slow.shape, fast.shape) == ((2, 6, 2, 4, 5), (2, 3, 8, 4, 5))
    # Slow grids lie at a clip's first and last picture, fast ones at every picture.
    every = placed(list(taps.values()), (4, 5)).unflatten(0, (2, 8))  # [u, t, c, h, w]
    own, other = (conv.weight[:, :, 0, 0] for conv in adapter.convolutions)
    by_hand = torch.einsum("oc,utchw->uothw", own, every[:, [0, 7]])
    torch.testing.assert_close(slow, by_hand + adapter.convs[0].bias[:, None, None, None])
    by_hand = torch.einsum("oc,utchw->uothw", other, every)
    torch.testing.assert_close(fast, by_hand + adapter.convs[1].bias[:, None, None, None])


def test_the_fast_pathway_sees_what_moves() -> None:
    shapes = [(6, 2, 4, 5), (3, 8, 4, 5)]
    adapter = MicroAdapter(("0", "1"), (5, 3), shapes, frames=8, motion=True)
    assert [conv.weight.shape[1] for conv in adapter.convolutions] == [8, 16]
    with torch.no_grad():
        for conv in adapter.convolutions:
            conv.bias.zero_()
        adapter.convolutions[1].weight[:, [*range(5), *range(10, 13)]] = 0  # motion is left
    still = torch.randn(2, 1, 5, 4, 5).expand(-1, 8, -1, -1, -1).flatten(0, 1)
    taps = {"0": still, "1": still[:, :3]}
    assert not adapter(taps)[1].any()
    moving = still * torch.arange(16.0)[:, None, None, None]
    fast = adapter({"0": moving, "1": moving[:, :3]})[1]
    assert fast.any()
    # Its channels stand beside those that they are of.
    own = adapter.convolutions[1].weight[:, 5:10, 0, 0]
    second = torch.einsum("oc,uchw->uohw", own, 4 * (moving[2::8] - moving[::8]) / 2)
    other = torch.einsum(
        "oc,uchw->uohw",
        adapter.convolutions[1].weight[:, 13:, 0, 0],
        4 * (moving[2::8] - moving[::8])[:, :3] / 2,
    )
    torch.testing.assert_close(fast[:, :, 1], second + other, atol=1e-4, rtol=1e-4)
    stored = store_adapter(adapter)
    back = load_adapter(stored, ("0", "1"), shapes, frames=8)
    assert back.motion
    for again, own in zip(back(taps), adapter(taps), strict=True):
        torch.testing.assert_close(again, own, atol=0.1, rtol=0.1)
    without = MicroAdapter(("0", "1"), (5, 3), shapes, frames=8)
    assert not load_adapter(store_adapter(without), ("0", "1"), shapes, frames=8).motion


def test_a_class_token_begins_as_the_mean_and_learns_where_to_look() -> None:
    torch.manual_seed(0)
    adapter = MicroAdapter(("0",), (4,), [(4, 5, 5), (4, 1)])
    with torch.no_grad():
        adapter.convolutions[0].weight.copy_(torch.eye(4)[:, :, None, None])
        adapter.convolutions[0].bias.zero_()
        assert not adapter({"0": torch.randn(3, 4, 5, 5)})[1].any()
    taps = 3 * torch.randn(64, 4, 5, 5)
    # The token is what stands where the first channel is largest: no mean of the map says that.
    best = taps[:, 0].flatten(1).argmax(1)
    wanted = taps.flatten(2)[torch.arange(64), :, best][:, :, None]
    optimiser = torch.optim.Adam(adapter.attentions[0].parameters(), lr=0.1)
    start = float((adapter({"0": taps})[1] - wanted).square().mean())
    for _ in range(150):
        loss = (adapter({"0": taps})[1] - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss) < 0.1 * start
    query = adapter.attentions[0].query.detach()[0]
    assert float(query[0]) > 5 * float(query[1:].abs().max())


def test_where_the_region_reaches_outside_an_adapter_is_told() -> None:
    letterbox = Region(top=-0.5, bottom=1.5)
    adapter = MicroAdapter(("0",), (5,), [(7, 4, 6)], region=letterbox)
    (x,) = adapter.inputs({"0": torch.randn(2, 5, 8, 8)})
    assert x.shape == (2, 6, 4, 6)
    assert adapter.convolutions[0].in_channels == 6
    assert x[:, 5].flatten(2).mean(-1).tolist() == [[1, 0, 0, 1]] * 2
    inside = MicroAdapter(("0",), (5,), [(7, 4, 6)], region=Region(left=0.2, right=0.6))
    assert inside.convolutions[0].in_channels == 5
