"""Stabilization adapters: a frame-by-frame network made steady by what it saw before.

"Instant video models: universal adapters for stabilizing image-based networks" (NeurIPS 2025,
arXiv 2512.03014). At chosen places a tensor z_t is fused with a memory of itself,

    z̃_t = β_t ⊙ z_t + (1 − β_t) ⊙ z̃_{t−1}                                  (an exponential moving average)
    β_t  = σ(h_i(g(x_t, x_{t−1}), z_t, z̃_{t−1}, z_{t−1}))                   (controlled)
    z̃_t = η₀ ⊙ z_t + Σ_j η_j ⊙ z̃_{t−1}[· + j],  η = softmax([k² logits, 0])  (spatial, j over k × k)

where g is shared by all places and h_i is a place's own head; the appended 0 is the current frame's logit.
The first frame passes through. Causal; all state is a value that goes in and comes out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Variant = Literal["fixed", "learned", "controlled", "spatial"]
VARIANTS: tuple[Variant, ...] = ("fixed", "learned", "controlled", "spatial")
SLOPE = 0.1  # of LeakyReLU below 0
CENTRE = 0.95  # of a neighbourhood's share, where one is given to a place


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a stabilizer is made.

    `beta`: the current frame's weight that "fixed" keeps and all others begin with. `kernel` (odd) is the
    neighbourhood of "spatial". g has `control` channels and 1 + `control_layers` convolutions; a head `head`
    channels and 1 + `head_layers`. With `squeeze` all that has more channels is looked at through a 1×1
    convolution of `squeeze` channels first, and weights are shared by `groups` groups of channels (0: each
    channel has its own). With `distances` a head also sees how far z_t, z_{t−1} and z̃_{t−1} are apart: what
    two frames agree on is a change, what one says alone a flicker.
    The current frame's weight is never below `floor`, so that no memory can freeze.
    """

    variant: Variant
    beta: float = 0.98
    kernel: int = 1
    control: int = 32
    control_layers: int = 6
    head: int = 64
    head_layers: int = 2
    squeeze: int = 0
    groups: int = 0
    distances: bool = False
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant {self.variant!r}: {', '.join(VARIANTS)} are allowed")
        if not 0 < self.beta < 1:
            raise ValueError(f"beta {self.beta}: above 0 and below 1")
        if not 0 <= self.floor < self.beta:
            raise ValueError(f"floor {self.floor}: at least 0 and below beta, {self.beta}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel}: an odd size of at least 1 is needed")
        if self.kernel > 1 and self.variant != "spatial":
            raise ValueError(f"kernel {self.kernel}: only the spatial variant looks around")

    @property
    def looks(self) -> bool:
        """Whether there is a controller."""
        return self.variant in ("controlled", "spatial")

    @property
    def neighbours(self) -> int:
        return self.kernel**2 if self.variant == "spatial" else 1

    @property
    def first_logit(self) -> float:
        """The memory's logits at the start: the current frame then has the weight `beta`."""
        share = (1 - self.beta) / (1 - self.floor)
        return math.log(share / (1 - share) / self.neighbours)


# The published widths; ours, at most a twentieth of the base's parameters and a tenth of its time. Ours have
# a floor: a step of training that brings the weight near 0 leaves next to no gradient to come back by, and
# the first frame would be repeated for ever (benchmarks/results/stability.json, "repeating").
PAPER: Mapping[Variant, Shape] = {
    "fixed": Shape(variant="fixed", beta=0.5),
    "learned": Shape(variant="learned"),
    "controlled": Shape(variant="controlled"),
    "spatial": Shape(variant="spatial", kernel=3),
}
LIGHT: Mapping[Variant, Shape] = {
    "fixed": PAPER["fixed"],
    "learned": PAPER["learned"],
    "controlled": Shape(
        variant="controlled",
        control=8,
        control_layers=2,
        head=8,
        head_layers=1,
        squeeze=8,
        groups=8,
        floor=0.05,
    ),
    "spatial": Shape(
        variant="spatial",
        kernel=3,
        control=8,
        control_layers=2,
        head=8,
        head_layers=1,
        squeeze=8,
        groups=8,
        floor=0.05,
    ),
}
# Of answers, which have no neighbourhood to see a change in: their controller is told.
LIGHT_TAIL: Mapping[Variant, Shape] = {
    **LIGHT,
    "controlled": replace(LIGHT["controlled"], distances=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a tensor is fused: a module's name, or any other that callers agree on; its channels."""

    name: str
    channels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is remembered from the frame before: its picture x_{t−1}, and of each place z_{t−1} and z̃_{t−1}.

    Empty before the first frame, and again at a scene cut.
    """

    picture: Tensor | None = None
    raw: Mapping[str, Tensor] = field(default_factory=dict)
    stable: Mapping[str, Tensor] = field(default_factory=dict)

    def detached(self) -> State:
        """The same without what led to it: gradients end here."""
        return State(
            picture=None if self.picture is None else self.picture.detach(),
            raw={name: z.detach() for name, z in self.raw.items()},
            stable={name: z.detach() for name, z in self.stable.items()},
        )


class Step:
    """One frame in progress: places fuse their tensors in any order, `done` gives the state after it."""

    def __init__(self, stabilizer: Stabilizer, picture: Tensor, before: State, gap: float) -> None:
        self.stabilizer, self.picture, self.before, self.gap = stabilizer, picture, before, gap
        self.raw: dict[str, Tensor] = {}
        self.stable: dict[str, Tensor] = {}
        self.control = stabilizer.controlled(picture, before.picture)

    def fuse(self, name: str, z: Tensor) -> Tensor:
        """z_t [b, c, …] → z̃_t. A place that is met again within a frame keeps its last tensor."""
        memory = self.before.stable.get(name)
        fused = z
        if memory is not None:
            fused = self.stabilizer.fused(
                name, z, memory, self.before.raw[name], control=self.control, gap=self.gap
            )
        self.raw[name], self.stable[name] = z, fused
        return fused

    def done(self) -> State:
        return State(picture=self.picture, raw=self.raw, stable=self.stable)


class Stabilizer(nn.Module):
    """Fusion at all places of one network. `picture_channels` are those of x, which g looks at."""

    def __init__(self, shape: Shape, places: Sequence[Place], *, picture_channels: int = 3) -> None:
        super().__init__()
        self.shape, self.places, self.picture_channels = shape, tuple(places), picture_channels
        self.names = {place.name: f"place{i}" for i, place in enumerate(self.places)}
        if len(self.names) != len(self.places):
            raise ValueError(f"places {', '.join(p.name for p in self.places)}: each may stand there once")
        self.control: nn.Module | None = None
        self.glance: nn.Module = nn.Identity()
        if shape.looks:
            seen = picture_channels
            if 0 < shape.squeeze < picture_channels:
                seen, self.glance = shape.squeeze, nn.Conv2d(picture_channels, shape.squeeze, 1)
            self.control = _convolutions(2 * seen, shape.control, shape.control, shape.control_layers)
        self.heads = nn.ModuleDict({self.names[place.name]: _head(shape, place) for place in self.places})

    @torch.no_grad()
    def begin_with(self, name: str, beta: float) -> None:
        """Give the current frame this weight at a place, wherever its head has not learned otherwise. Of the
        memory's share nearly all goes to where the frame is itself: equal shares around it would blur."""
        head = self.heads[self.names[name]]
        bias = head.last.bias if isinstance(head, _Looking) else head.logits
        assert isinstance(bias, Tensor), "every head has one"
        k = self.shape.neighbours
        shares = torch.full((k,), (1 - CENTRE) / max(k - 1, 1))
        shares[k // 2] = CENTRE if k > 1 else 1.0
        total = replace(self.shape, beta=beta).first_logit + math.log(k)
        bias.copy_((total + shares.log()).repeat(len(bias) // k))

    def begin(self, picture: Tensor, before: State, *, gap: float = 1.0) -> Step:
        """A frame whose picture x_t is [b, c, h, w]. `gap` > 0: frames since the one remembered: what is
        remembered counts for less, as it would have after as many equal frames.
        """
        return Step(self, picture, before, gap)

    def controlled(self, picture: Tensor, before: Tensor | None) -> Tensor | None:
        """g(x_t, x_{t−1}); None without a controller, and for a first frame, which passes anyway."""
        if self.control is None or before is None:
            return None
        seen: Tensor = self.control(torch.cat([self.glance(picture), self.glance(before)], dim=1))
        return seen

    def fused(
        self, name: str, z: Tensor, memory: Tensor, before: Tensor, *, control: Tensor | None, gap: float
    ) -> Tensor:
        """z̃_t [b, c, …] from z_t, z̃_{t−1} and z_{t−1}."""
        shape = z.shape
        maps = [as_map(x) for x in (z, memory, before)]
        logits = self.heads[self.names[name]](*maps, control)
        fused = fuse(maps[0], maps[1], logits, kernel=self.shape.kernel, gap=gap, floor=self.shape.floor)
        return fused.reshape(shape)


def fuse(
    z: Tensor, memory: Tensor, logits: Tensor, *, kernel: int, gap: float = 1.0, floor: float = 0.0
) -> Tensor:
    """η₀ ⊙ z + Σ_j η_j ⊙ memory[· + j] for z and memory [b, c, h, w], logits [b, g, k², h or 1, w or 1]: each
    of g runs of channels has its own.

    η = softmax([logits, 0]) over the k² neighbours and the current frame; of the memory's share the part
    1 − `floor`. After a `gap` that share m becomes m^gap, divided among neighbours as before. Outside of the
    picture there is no memory: its share goes to the neighbours that are inside, since the edge is repeated.
    """
    groups = logits.shape[1]
    total = logits[:, :, 0] if logits.shape[2] == 1 else torch.logsumexp(logits, dim=2)
    share = (((1 - floor) * torch.sigmoid(total)) ** gap)[:, :, None]  # of the memory, Bxgx1xHxW
    if kernel == 1:
        remembered = share * memory.unflatten(1, (groups, -1))
    else:
        padded = F.pad(memory, [kernel // 2] * 4, mode="replicate")
        # Bx(C·k²)x(H·W) -> Bxgx(C/g)xk²xHxW
        around = F.unfold(padded, kernel).unflatten(1, (groups, -1, kernel**2)).unflatten(4, z.shape[2:])
        weights = logits.softmax(dim=2) * share
        remembered = (weights[:, :, None] * around).sum(3)
    fused: Tensor = (1 - share) * z.unflatten(1, (groups, -1)) + remembered
    return fused.flatten(1, 2)


# ---------------------------------------------------------------- parts


class _Constant(nn.Module):
    """Logits that do not depend on anything: fixed, or learned a channel."""

    def __init__(self, shape: Shape, channels: int) -> None:
        super().__init__()
        logits = torch.full((channels,), shape.first_logit)
        if shape.variant == "fixed":
            self.register_buffer("logits", logits)
        else:
            self.logits = nn.Parameter(logits)

    def forward(self, z: Tensor, memory: Tensor, before: Tensor, control: Tensor | None) -> Tensor:
        # C -> 1xCx1x1x1
        return self.logits.view(1, -1, 1, 1, 1)


class _Looking(nn.Module):
    """h_i: logits an element from g's output and what the place has now, had, and remembers."""

    def __init__(self, shape: Shape, channels: int) -> None:
        super().__init__()
        self.shape, self.channels = shape, channels
        self.groups = math.gcd(channels, shape.groups) if shape.groups else channels
        width = shape.squeeze or channels
        self.squeezes = nn.ModuleList(
            nn.Conv2d(channels, shape.squeeze, 1) for _ in range(3 if shape.squeeze else 0)
        )
        self.layers = _convolutions(shape.control + 3 * width, shape.head, shape.head, shape.head_layers)
        seen = shape.head + (3 if shape.distances else 0)
        self.last = nn.Conv2d(seen, self.groups * shape.neighbours, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None, "it has one"
        nn.init.constant_(self.last.bias, shape.first_logit)

    def forward(self, z: Tensor, memory: Tensor, before: Tensor, control: Tensor | None) -> Tensor:
        assert control is not None, "a place remembers only what a picture was seen with"
        size = z.shape[2:]
        inputs = [z, memory, before]
        apart = [_apart(z, memory, before)] if self.shape.distances else []
        if len(self.squeezes):
            inputs = [squeeze(x) for squeeze, x in zip(self.squeezes, inputs, strict=True)]
        seen = F.interpolate(control, size, mode="bilinear", align_corners=False)
        found = self.layers(torch.cat([seen, *inputs], dim=1))
        logits = self.last(torch.cat([found, *apart], dim=1))
        # Bx(g·k²)xHxW -> Bxgxk²xHxW
        each: Tensor = logits.unflatten(1, (self.groups, self.shape.neighbours))
        return each


def _apart(z: Tensor, memory: Tensor, before: Tensor) -> Tensor:
    """Bx3xHxW: log ‖z_t − z̃_{t−1}‖ and log ‖z_{t−1} − z̃_{t−1}‖, each less log ‖z_t − z_{t−1}‖, which itself
    comes last, as a share of both lengths. The first two rise when two frames agree, and memory does not.
    """
    change, far, farther = (
        (a - b).square().mean(1, keepdim=True).clamp_min(1e-12).sqrt()
        for a, b in ((z, before), (z, memory), (before, memory))
    )
    size = sum(x.square().mean(1, keepdim=True).clamp_min(1e-12).sqrt() for x in (z, before))
    small = 1e-3 * size
    ratios = [((x + small) / (change + small)).log() for x in (far, farther)]
    return torch.cat([*ratios, change / size], dim=1)


def _head(shape: Shape, place: Place) -> nn.Module:
    return _Looking(shape, place.channels) if shape.looks else _Constant(shape, place.channels)


def _convolutions(channels: int, first: int, others: int, layers: int) -> nn.Sequential:
    """1 + `layers` convolutions 3×3, each followed by LeakyReLU."""
    widths = [channels, first, *[others] * layers]
    made: list[nn.Module] = []
    for before, after in pairwise(widths):
        made += [nn.Conv2d(before, after, 3, padding=1), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*made)


def as_map(x: Tensor) -> Tensor:
    """[b, c, …] → [b, c, h, w]: what has no grid has one position, what has one more is laid side by side."""
    if x.ndim == 2:
        return x[:, :, None, None]
    if x.ndim == 3:
        return x[:, :, :, None]
    return x if x.ndim == 4 else x.flatten(3)
