"""A network with memory at its modules: the network itself stays what it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from nvpstore.adapters.stabilized import INPUT, OUTPUT, places_of, stabilized
from nvpstore.adapters.stabilizer import LIGHT, PAPER, Shape, State
from nvpstore.errors import TaskError

NAMES = (INPUT, "0", "2", OUTPUT)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 1, 1))


def frames(count: int = 6, batch: int = 2) -> Tensor:
    return torch.rand(count, batch, 3, 12, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [*PAPER.values(), *LIGHT.values()], ids=lambda s: f"{s.variant}-{s.head}")
def test_the_network_is_not_touched(shape: Shape) -> None:
    net = network()
    before, x = copy.deepcopy(net.state_dict()), frames()
    plain = net(x[0])
    steady = stabilized(net, NAMES, shape, x[0])
    steady.clip(x)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(net(x[0]), plain)
    assert not any(module._forward_hooks for module in net.modules())


def test_places_have_the_channels_of_a_run() -> None:
    assert [(p.name, p.channels) for p in places_of(network(), NAMES, frames()[0])] == [
        (INPUT, 3),
        ("0", 8),
        ("2", 4),
        (OUTPUT, 4),
    ]


def test_a_clip_may_be_cut_anywhere() -> None:
    x = frames()
    steady = stabilized(network(), NAMES, PAPER["fixed"], x[0])
    whole, _ = steady.clip(x)
    head, state = steady.clip(x[:3])
    rest, _ = steady.clip(x[3:], state)
    assert torch.equal(torch.cat([head, rest]), whole)
    again, _ = steady.clip(x[3:])  # a scene cut: nothing is remembered
    assert not torch.equal(again, rest)
    assert torch.equal(again[0], steady.net(x[3]))


def test_a_fixed_output_is_an_average_over_time() -> None:
    x = frames()
    steady = stabilized(network(), (OUTPUT,), PAPER["fixed"], x[0])
    found, _ = steady.clip(x)
    memory = steady.net(x[0])
    for t in range(1, len(x)):
        memory = 0.5 * steady.net(x[t]) + 0.5 * memory
        torch.testing.assert_close(found[t], memory)


def test_gaps_count_elapsed_frames() -> None:
    x = frames(2)
    steady = stabilized(network(), (OUTPUT,), PAPER["fixed"], x[0])
    found, _ = steady.clip(x, gaps=[1, 3])
    expected = (1 - 0.5**3) * steady.net(x[1]) + 0.5**3 * steady.net(x[0])
    torch.testing.assert_close(found[1], expected)


def test_gradients_go_through_all_of_time() -> None:
    x = frames(5, batch=1)
    steady = stabilized(network(), NAMES, LIGHT["spatial"], x[0])
    for parameter in steady.stabilizer.parameters():
        nn.init.normal_(parameter, std=0.2)
    grads = []
    for run in (lambda: steady.clip(x)[0], lambda: steady.trained_on(x)):
        steady.stabilizer.zero_grad()
        run()[-1].square().mean().backward()
        grads.append([p.grad.clone() for p in steady.stabilizer.parameters() if p.grad is not None])
    assert any(float(g.abs().max()) > 0 for g in grads[0])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed)
    assert all(p.grad is None for p in steady.net.parameters())


def test_a_state_without_its_past_has_no_gradient() -> None:
    x = frames(2, batch=1)
    steady = stabilized(network(), NAMES, LIGHT["controlled"], x[0])
    _, state = steady.clip(x)
    kept = state.detached()
    assert kept.picture is not None
    assert not any(z.requires_grad for z in (*kept.raw.values(), *kept.stable.values()))
    out, _ = steady.step(x[0], kept)
    assert out.requires_grad


def test_a_picture_of_its_own_may_lead() -> None:
    x = frames(2, batch=1)
    steady = stabilized(network(), (OUTPUT,), LIGHT["controlled"], x[0])
    nn.init.normal_(steady.stabilizer.heads["place0"].last.weight)  # type: ignore[union-attr, arg-type]
    _, state = steady.step(x[0], State())
    own, _ = steady.step(x[1], state)
    other, _ = steady.step(x[1], state, picture=torch.zeros_like(x[1]))
    assert not torch.equal(own, other)


def test_unknown_modules_are_named() -> None:
    with pytest.raises(TaskError, match=r"module '7': the network has none"):
        stabilized(network(), ("7",), PAPER["fixed"], frames()[0])
