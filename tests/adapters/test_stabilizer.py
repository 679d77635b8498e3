"""Fusion against a plain numpy loop: all variants, how they begin, gradients, state as a value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from nvpstore.adapters.stabilizer import (
    LIGHT,
    LIGHT_TAIL,
    PAPER,
    VARIANTS,
    Place,
    Shape,
    Stabilizer,
    State,
    fuse,
)

Array = NDArray[np.float64]
PLACES = (Place(name="a", channels=4), Place(name="b", channels=6))


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loop(z: Array, memory: Array, logits: Array, kernel: int, gap: float) -> Array:
    """The paper's equations, element by element."""
    batch, channels, height, width = z.shape
    out = np.empty_like(z)
    half = kernel // 2
    for b, c, i, j in np.ndindex(batch, channels, height, width):
        powers = np.exp(np.append(logits[b, c, :, i, j], 0.0))
        eta = powers / powers.sum()
        share = eta[:-1].sum()
        eta[:-1] *= share**gap / share
        eta[-1] = 1 - share**gap
        total = eta[-1] * z[b, c, i, j]
        for n, (di, dj) in enumerate(np.ndindex(kernel, kernel)):
            at = np.clip(i + di - half, 0, height - 1), np.clip(j + dj - half, 0, width - 1)
            total += eta[n] * memory[b, c, at[0], at[1]]
        out[b, c, i, j] = total
    return out


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("gap", [1.0, 3.0])
def test_fusion_is_the_papers_equation(kernel: int, gap: float) -> None:
    z, memory = seeded(2, 3, 5, 6), seeded(2, 3, 5, 6, seed=1)
    logits = seeded(2, 3, kernel**2, 5, 6, seed=2)
    expected = by_loop(z.numpy(), memory.numpy(), logits.numpy(), kernel, gap)
    np.testing.assert_allclose(fuse(z, memory, logits, kernel=kernel, gap=gap).numpy(), expected, atol=1e-12)


@given(st.floats(-6, 6), st.integers(1, 6))
def test_a_gap_is_as_many_equal_frames(logit: float, gap: int) -> None:
    z, memory = seeded(1, 2, 3, 3), seeded(1, 2, 3, 3, seed=1)
    logits = torch.full((1, 1, 1, 1, 1), logit, dtype=torch.float64)
    one_by_one = memory
    for _ in range(gap):
        one_by_one = fuse(z, one_by_one, logits, kernel=1)
    torch.testing.assert_close(fuse(z, memory, logits, kernel=1, gap=gap), one_by_one)


def test_a_constant_stays_a_constant() -> None:
    same = torch.full((1, 2, 4, 4), 3.0)
    torch.testing.assert_close(fuse(same, same, torch.randn(1, 2, 9, 4, 4), kernel=3), same)


def made(shape: Shape, *, seed: int = 0, random: bool = True) -> Stabilizer:
    """One whose last layers say something, unless it is to be as it begins."""
    torch.manual_seed(seed)
    stabilizer = Stabilizer(shape, PLACES).double().eval()
    if random:
        for parameter in stabilizer.parameters():
            nn.init.normal_(parameter, std=0.3)
    return stabilizer


def run(
    stabilizer: Stabilizer, pictures: Tensor, a: Tensor, b: Tensor, state: State | None = None
) -> tuple[list[tuple[Tensor, Tensor]], State]:
    """Places a and b fused in every frame of [t, 1, c, h, w]."""
    state, outputs = state or State(), []
    for picture, z_a, z_b in zip(pictures, a, b, strict=True):
        step = stabilizer.begin(picture, state)
        outputs.append((step.fuse("a", z_a), step.fuse("b", z_b)))
        state = step.done()
    return outputs, state


def clip(frames: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    return (
        seeded(frames, 1, 3, 8, 12),
        seeded(frames, 1, 4, 8, 12, seed=1),
        seeded(frames, 1, 6, 4, 6, seed=2),
    )


ALL = [
    *((f"paper-{name}", shape) for name, shape in PAPER.items()),
    *((f"light-{n}", s) for n, s in LIGHT.items()),
]


@pytest.fixture(params=[shape for _, shape in ALL], ids=[name for name, _ in ALL])
def shape(request: pytest.FixtureRequest) -> Shape:
    found: Shape = request.param
    return found


def test_the_first_frame_passes_through(shape: Shape) -> None:
    pictures, a, b = clip(1)
    ((first_a, first_b),), _ = run(made(shape), pictures, a, b)
    assert torch.equal(first_a, a[0])
    assert torch.equal(first_b, b[0])


def test_one_frame_at_a_time_equals_the_whole_clip(shape: Shape) -> None:
    stabilizer, (pictures, a, b) = made(shape), clip()
    whole, _ = run(stabilizer, pictures, a, b)
    head, state = run(stabilizer, pictures[:2], a[:2], b[:2])
    rest, _ = run(stabilizer, pictures[2:], a[2:], b[2:], state)
    for (own_a, own_b), (part_a, part_b) in zip(whole, head + rest, strict=True):
        assert torch.equal(own_a, part_a)
        assert torch.equal(own_b, part_b)


def test_videos_side_by_side_do_not_meet(shape: Shape) -> None:
    stabilizer, (pictures, a, b) = made(shape), clip()
    others = [seeded(*x.shape, seed=7) for x in (pictures, a, b)]
    alone, _ = run(stabilizer, pictures, a, b)
    both, _ = run(
        stabilizer, *(torch.cat(pair, dim=1) for pair in zip((pictures, a, b), others, strict=True))
    )
    for (own, _), (together, _) in zip(alone, both, strict=True):
        torch.testing.assert_close(together[:1], own)


def test_what_comes_later_changes_nothing_before(shape: Shape) -> None:
    stabilizer, (pictures, a, b) = made(shape), clip()
    before, _ = run(stabilizer, pictures, a, b)
    a[-1], pictures[-1] = 100.0, -3.0
    after, _ = run(stabilizer, pictures, a, b)
    for (own, _), (changed, _) in zip(before[:-1], after[:-1], strict=True):
        assert torch.equal(own, changed)


@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_a_stabilizer_begins_near_the_identity(variant: str) -> None:
    shape = {**PAPER, **LIGHT}[variant]  # type: ignore[index]
    stabilizer, (pictures, a, b) = made(shape, random=False), clip(2)
    (_, (second, _)), _ = run(stabilizer, pictures, a, b)
    memory = a[0] if shape.kernel == 1 else None
    away = (second - a[1]).abs().max() / (a[1] - a[0]).abs().max()
    assert away < 0.05
    if memory is not None:
        torch.testing.assert_close(second, shape.beta * a[1] + (1 - shape.beta) * memory)


def test_beta_towards_one_is_the_identity() -> None:
    stabilizer, (pictures, a, b) = made(Shape(variant="fixed", beta=1 - 1e-9), random=False), clip()
    outputs, _ = run(stabilizer, pictures, a, b)
    torch.testing.assert_close(torch.stack([own for own, _ in outputs]), a, atol=1e-7, rtol=0)


def test_a_fixed_one_learns_nothing_and_remembers_exponentially() -> None:
    stabilizer, (pictures, a, b) = made(PAPER["fixed"]), clip()
    assert not list(stabilizer.parameters())
    outputs, _ = run(stabilizer, pictures, a, b)
    memory = a[0].numpy()
    for z, (own, _) in zip(a[1:], outputs[1:], strict=True):
        memory = 0.5 * z.numpy() + 0.5 * memory
        np.testing.assert_allclose(own.numpy(), memory, atol=1e-12)


@pytest.mark.parametrize("variant", ["learned", "controlled", "spatial"])
def test_gradients_are_those_of_finite_differences(variant: str) -> None:
    small = {
        "learned": Shape(variant="learned"),
        "controlled": Shape(variant="controlled", control=2, control_layers=1, head=3, head_layers=0),
        "spatial": Shape(
            variant="spatial",
            kernel=3,
            control=2,
            control_layers=0,
            head=2,
            head_layers=0,
            squeeze=2,
            groups=2,
        ),
    }[variant]
    torch.manual_seed(0)
    stabilizer = Stabilizer(small, (Place(name="a", channels=2),)).double()
    for parameter in stabilizer.parameters():
        nn.init.normal_(parameter, std=0.3)
    parameters = list(stabilizer.parameters())
    pictures, z = seeded(3, 1, 3, 3, 4), seeded(3, 1, 2, 3, 4, seed=1)

    def loss(*values: Tensor) -> Tensor:
        names = [name for name, _ in stabilizer.named_parameters()]
        with _Replaced(stabilizer, dict(zip(names, values, strict=True))):
            state, total = State(), torch.zeros((), dtype=torch.float64)
            for picture, now in zip(pictures, z, strict=True):
                step = stabilizer.begin(picture, state)
                total = total + step.fuse("a", now).square().sum()
                state = step.done()
            return total

    assert torch.autograd.gradcheck(loss, [p.detach().requires_grad_() for p in parameters], atol=1e-6)


class _Replaced:
    """A module's parameters replaced for a while."""

    def __init__(self, module: nn.Module, values: dict[str, Tensor]) -> None:
        self.module, self.values = module, values

    def __enter__(self) -> None:
        self.kept = {name: self._owner(name)._parameters[name.rpartition(".")[2]] for name in self.values}
        for name, value in self.values.items():
            self._owner(name)._parameters[name.rpartition(".")[2]] = value  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        for name, value in self.kept.items():
            self._owner(name)._parameters[name.rpartition(".")[2]] = value

    def _owner(self, name: str) -> nn.Module:
        return self.module.get_submodule(name.rpartition(".")[0])


def test_vectors_and_tokens_are_fused_as_well() -> None:
    places = (Place(name="vector", channels=5), Place(name="tokens", channels=4))
    stabilizer = Stabilizer(LIGHT["controlled"], places).double()
    state = State()
    for t in range(3):
        step = stabilizer.begin(seeded(2, 3, 8, 8, seed=t), state)
        vector, tokens = seeded(2, 5, seed=t), seeded(2, 4, 7, seed=t)
        assert step.fuse("vector", vector).shape == vector.shape
        assert step.fuse("tokens", tokens).shape == tokens.shape
        state = step.done()


def test_what_two_frames_agree_on_is_told_from_a_flicker() -> None:
    torch.manual_seed(0)
    stabilizer = Stabilizer(LIGHT_TAIL["controlled"], (Place(name="a", channels=16),), picture_channels=16)
    head = stabilizer.heads["place0"]
    with torch.no_grad():  # listen to the first distance alone: the memory is far, the frame before is near
        head.last.weight[:, -3, 1, 1] = -2.0
    calm, other = torch.randn(1, 16), torch.randn(1, 16)

    def answers(*frames: Tensor) -> list[Tensor]:
        state, out = State(), []
        for frame in frames:
            step = stabilizer.begin(frame[:, :, None, None], state)
            out.append(step.fuse("a", frame))
            state = step.done()
        return out

    stabilizer.begin_with("a", 0.2)
    noise = [0.05 * torch.randn(1, 16) for _ in range(6)]
    flicker = answers(calm + noise[0], calm + noise[1], other, calm + noise[2])
    change = answers(calm + noise[0], calm + noise[1], other + noise[3], other + noise[4])
    assert (flicker[3] - calm).norm() < 0.4 * (flicker[2] - calm).norm() + 0.4 * calm.norm()
    assert (change[3] - other).norm() < 0.2 * (change[2] - other).norm()


@pytest.mark.parametrize("variant", ["learned", "controlled", "spatial"])
@pytest.mark.parametrize("beta", [0.3, 0.7])
def test_a_place_can_begin_with_another_weight(variant: str, beta: float) -> None:
    stabilizer = Stabilizer(LIGHT[variant], PLACES, picture_channels=4)  # type: ignore[index]
    stabilizer.begin_with("b", beta)
    first, second = torch.zeros(1, 6, 3, 3), torch.ones(1, 6, 3, 3)
    picture, state = torch.zeros(1, 4, 3, 3), State()
    for z in (first, second):
        step = stabilizer.begin(picture, state)
        fused = step.fuse("b", z)
        state = step.done()
    torch.testing.assert_close(fused, torch.full_like(fused, beta), atol=1e-5, rtol=0)


def test_ours_is_light() -> None:
    places = (Place(name="wide", channels=128),)

    def parameters(shape: Shape) -> int:
        return sum(p.numel() for p in Stabilizer(shape, places).parameters())

    assert parameters(LIGHT["spatial"]) * 20 < parameters(PAPER["spatial"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"variant": "magic"}, "fixed, learned, controlled, spatial are allowed"),
        ({"variant": "fixed", "beta": 1.0}, "above 0 and below 1"),
        ({"variant": "spatial", "kernel": 2}, "an odd size"),
        ({"variant": "learned", "kernel": 3}, "only the spatial variant"),
    ],
)
def test_impossible_shapes_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Shape(**wrong)  # type: ignore[arg-type]


def test_a_place_stands_once() -> None:
    twice: Sequence[Place] = [PLACES[0], PLACES[0]]
    with pytest.raises(ValueError, match="each may stand there once"):
        Stabilizer(PAPER["fixed"], twice)
