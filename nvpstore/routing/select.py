"""Which INR stage should feed which cut: every pair ranked by CKA and by what it saves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvpstore.codec.build import Architecture, stage_gflops
from nvpstore.codec.grids import WHOLE, Region, moving, on_grid
from nvpstore.routing.cka import RidgeFit, choose_positions, linear_cka, ridge, sample_grid
from nvpstore.tasks.backbone import Backbone, Cut, Features
from nvpstore.types import RGB_STAGE

POSITIONS_PER_UNIT = 32
# A tail above the first share saves too little to be worth an adapter; one below the second leaves so little
# of the backbone that the adapter would have to hold the answers themselves.
TAIL_SHARES = (0.5, 0.1)
# Above this share of the backbone's parameters an adapter is not micro. That of a small backbone may have as
# many as that of one with 4 million, up to the second share.
ADAPTER_SHARE, ADAPTER_LEAST, SMALL_SHARE = 0.01, 40_000, 0.1
FIRST_STAGE = 1  # the stem is a pointwise map of the latent's few channels: it cannot span a cut's features
NEAR = 1.25  # times the smallest error of answers: as good as the nearest
HELD_OUT_EVERY = 4  # of the units that tasks may see, every fourth judges the ridge fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A stage × cut pair. `stages` are the adapter's taps: the stage and all before it (decoded anyway).

    `gflops`: one unit's decode + adapter + tail. `score` = CKA × share of the pixel route's GFLOPs saved.
    """

    stages: tuple[str, ...]
    cut: str
    cka: float
    gflops: float
    score: float

    @property
    def stage(self) -> str:
        return self.stages[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """What a backbone answers for at once: `frames` pictures, of which it is shown `region`."""

    frames: int = 1
    region: Region = WHOLE


ONE_PICTURE = Units()
Samples = tuple[Tensor, ...]  # of each map or volume of a cut, [u·k, c]


def cut_samples(features: Mapping[str, Features], *, seed: int) -> dict[str, Samples]:
    """Cut features {cut: tensors [u, c, …]} → samples {cut: [u·k, c] each} at a fixed choice of positions."""
    return {
        cut: tuple(sample_grid(x, _positions(x.shape[2:], seed)) for x in tensors if x.ndim > 3)
        for cut, tensors in features.items()
    }


def stage_samples(
    taps: Mapping[str, Tensor],
    grid: tuple[int, ...],
    *,
    units: Units = ONE_PICTURE,
    motion: bool = False,
    seed: int,
) -> dict[str, Tensor]:
    """Stage outputs {stage: [u·t, c, h, w]} → samples {stage: [u·k, c or 2c]} on one of a cut's grids."""
    positions = _positions(grid, seed)
    return {
        stage: sample_grid(
            on_grid(x, grid, region=units.region, frames=units.frames, motion=motion), positions
        )
        for stage, x in taps.items()
    }


def rank_pairs(
    taps: Mapping[str, Tensor],
    samples: Mapping[str, Samples],
    *,
    arch: Architecture,
    backbone: Backbone,
    units: Units = ONE_PICTURE,
    seed: int,
) -> tuple[Candidate, ...]:
    """All stage × cut pairs that keep to the shares above and cost less than the pixel route, best first.

    `taps` and `samples` are of the same units, all of them seen by task terms.
    """
    decode = {
        stage: units.frames * each for stage, each in zip(arch.stage_names, stage_gflops(arch), strict=True)
    }
    pixel = decode[RGB_STAGE] + backbone.whole_gflops()
    ranked = []
    for cut in worthwhile_cuts(backbone):
        placed = [
            stage_samples(taps, grid, units=units, motion=moves, seed=seed)
            for grid, moves in zip(cut.grids, moving(cut.grids), strict=True)
        ]
        for i, stage in enumerate(arch.stage_names[:-1]):
            stages = arch.stage_names[: i + 1]
            cost = decode[stage] + adapter_gflops(arch, stages, cut) + backbone.tail_gflops(cut.name)
            parameters = adapter_parameters(arch, stages, cut)
            if i < FIRST_STAGE or cost >= pixel or parameters > most_parameters(backbone):
                continue
            alike = [linear_cka(x[stage], y) for x, y in zip(placed, samples[cut.name], strict=True)]
            cka = sum(alike) / len(alike)
            ranked.append(
                Candidate(stages=stages, cut=cut.name, cka=cka, gflops=cost, score=cka * (1 - cost / pixel))
            )
    return tuple(sorted(ranked, key=lambda c: (-c.score, c.gflops, c.cut)))


def most_parameters(backbone: Backbone) -> float:
    """How many an adapter may have."""
    return max(ADAPTER_SHARE * backbone.parameters, min(ADAPTER_LEAST, SMALL_SHARE * backbone.parameters))


def worthwhile_cuts(backbone: Backbone) -> tuple[Cut, ...]:
    """Cuts whose tail is within TAIL_SHARES of the backbone's GFLOPs; all of them where none is."""
    most, least = (share * backbone.whole_gflops() for share in TAIL_SHARES)
    within = tuple(cut for cut in backbone.cuts if least <= backbone.tail_gflops(cut.name) <= most)
    return within or backbone.cuts


def ridge_for(
    candidate: Candidate,
    taps: Mapping[str, Tensor],
    samples: Samples,
    cut: Cut,
    *,
    units: Units = ONE_PICTURE,
    seed: int,
) -> tuple[RidgeFit, ...]:
    """The ridge optimum of each of a candidate's 1×1 convolutions; R² on every fourth unit, held out."""
    return tuple(
        _ridge({s: taps[s] for s in candidate.stages}, own, grid, units=units, motion=moves, seed=seed)
        for own, grid, moves in zip(samples, cut.grids, moving(cut.grids), strict=True)
    )


def _ridge(
    taps: Mapping[str, Tensor],
    samples: Tensor,
    grid: tuple[int, ...],
    *,
    units: Units,
    motion: bool,
    seed: int,
) -> RidgeFit:
    x = torch.cat(list(stage_samples(taps, grid, units=units, motion=motion, seed=seed).values()), dim=1)
    count = next(iter(taps.values())).shape[0] // units.frames
    held = held_out(count).repeat_interleave(len(x) // count)
    if held.all():  # too few units to hold any out: R² is then of the fit itself
        return ridge(x, samples, x, samples)
    return ridge(x[~held], samples[~held], x[held], samples[held])


def held_out(count: int) -> Tensor:
    """Which of so many units judge what is fitted to the others, bool [count]; all where they are few."""
    held = torch.arange(count) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return held if held.any() else torch.ones(count, dtype=torch.bool)


def short_list(ranked: Sequence[Candidate], count: int) -> tuple[Candidate, ...]:
    """At most `count` candidates, best first: as many of each stage, then others."""
    turns: dict[str, int] = {}
    places = []
    for place, candidate in enumerate(ranked):
        turn = turns[candidate.stage] = turns.get(candidate.stage, -1) + 1
        places.append((turn, place))
    kept = sorted(place for _, place in sorted(places)[:count])
    return tuple(ranked[place] for place in kept)


def decided(errors: Mapping[Candidate, float], count: int) -> tuple[Candidate, ...]:
    """`count` of the candidates whose answers' errors are known: of those that nothing cheaper beats the
    nearest to the reference first, then the cheapest, then one that saves much for little; then by rank.

    `errors` is in order of rank.
    """
    front = [c for c in errors if not any(_beats(errors, other, c) for other in errors)]
    nearest = min(front, key=lambda c: errors[c])
    # Rounding makes an error of nothing negative.
    near = [c for c in front if max(errors[c], 0) <= NEAR * max(errors[nearest], 0)]
    wanted = [nearest, min(front, key=lambda c: c.gflops), min(near, key=lambda c: c.gflops)]
    return tuple(dict.fromkeys([*wanted, *front, *errors]))[:count]


def _beats(errors: Mapping[Candidate, float], other: Candidate, one: Candidate) -> bool:
    no_worse = errors[other] <= errors[one] and other.gflops <= one.gflops
    return no_worse and (errors[other] < errors[one] or other.gflops < one.gflops)


def adapter_gflops(arch: Architecture, stages: Sequence[str], cut: Cut) -> float:
    """GFLOPs (2 × MAC) of one unit through an adapter's convolutions; resizing is left out (it is small)."""
    return sum(2 * inputs * math.prod(shape) / 1e9 for inputs, shape in _maps(arch, stages, cut))


def adapter_parameters(arch: Architecture, stages: Sequence[str], cut: Cut) -> int:
    """Of an adapter from `stages` to `cut`."""
    convs = sum((inputs + 1) * shape[0] for inputs, shape in _maps(arch, stages, cut))
    return convs + sum(3 * math.prod(shape) for shape in cut.shapes if len(shape) == 2)


def _maps(arch: Architecture, stages: Sequence[str], cut: Cut) -> list[tuple[int, tuple[int, ...]]]:
    """(input channels of its convolution, shape) of each map and volume of a cut."""
    channels = sum(arch.stage_shape(s)[0] for s in stages)
    maps = [shape for shape in cut.shapes if len(shape) > 2]
    return [(channels * (1 + moves), s) for moves, s in zip(moving(cut.grids), maps, strict=True)]


def _positions(grid: Sequence[int], seed: int) -> Tensor:
    return choose_positions(math.prod(grid), POSITIONS_PER_UNIT, seed)
