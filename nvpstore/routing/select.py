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
AS_NEAR, NEAR = 1.05, 1.25  # times the smallest error of answers
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
Place = tuple[tuple[int, ...], bool]  # a grid, and whether motion belongs to it


def cut_samples(features: Mapping[str, Features], *, seed: int) -> dict[str, Samples]:
    """Cut features {cut: tensors [u, c, …]} → samples {cut: [u·k, c] each} at a fixed choice of positions."""
    return {
        cut: tuple(sample_grid(x, _positions(x.shape[2:], seed)) for x in tensors if x.ndim > 3)
        for cut, tensors in features.items()
    }


def places(cut: Cut) -> tuple[Place, ...]:
    """Where a cut's maps and volumes want stages laid out."""
    return tuple(zip(cut.grids, moving(cut.grids), strict=True))


def stage_samples(
    taps: Mapping[str, Tensor], place: Place, *, units: Units = ONE_PICTURE, seed: int
) -> dict[str, Tensor]:
    """Stage outputs {stage: [u·t, c, h, w]} → samples {stage: [u·k, c or 2c]} at one of a cut's places."""
    grid, moves = place
    positions = _positions(grid, seed)
    return {
        stage: sample_grid(
            on_grid(x, grid, region=units.region, frames=units.frames, motion=moves), positions
        )
        for stage, x in taps.items()
    }


def rank_pairs(
    placed: Mapping[Place, Mapping[str, Tensor]],
    samples: Mapping[str, Samples],
    *,
    arch: Architecture,
    backbone: Backbone,
    units: Units = ONE_PICTURE,
) -> tuple[Candidate, ...]:
    """All stage × cut pairs that keep to the shares above and cost less than the pixel route, best first.

    `placed` is what `stage_samples` gives at each place of a cut, `samples` what `cut_samples` gives, both of
    the same units, all of them seen by task terms.
    """
    decode = {
        stage: units.frames * each for stage, each in zip(arch.stage_names, stage_gflops(arch), strict=True)
    }
    pixel = decode[RGB_STAGE] + backbone.whole_gflops()
    ranked = []
    for cut in worthwhile_cuts(backbone):
        for i, stage in enumerate(arch.stage_names[:-1]):
            stages = arch.stage_names[: i + 1]
            cost = decode[stage] + adapter_gflops(arch, stages, cut) + backbone.tail_gflops(cut.name)
            parameters = adapter_parameters(arch, stages, cut)
            if i < FIRST_STAGE or cost >= pixel or parameters > most_parameters(backbone):
                continue
            both = zip(places(cut), samples[cut.name], strict=True)
            alike = [linear_cka(placed[place][stage], y) for place, y in both]
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
    placed: Mapping[Place, Mapping[str, Tensor]],
    samples: Samples,
    cut: Cut,
    *,
    fitted: Tensor,
    held: Tensor,
) -> tuple[RidgeFit, ...]:
    """The ridge optimum of each of a candidate's 1×1 convolutions, of the units that `fitted` marks; R² and
    the ridge's strength by those that `held` marks (both bool [u]).
    """
    fits = []
    for place, y in zip(places(cut), samples, strict=True):
        x = torch.cat([placed[place][stage] for stage in candidate.stages], dim=1)
        own, others = (mask.repeat_interleave(len(y) // len(mask)) for mask in (fitted, held))
        fits.append(ridge(x[own], y[own], x[others], y[others]))
    return tuple(fits)


def held_out(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Of units `frames` [u, t] those to fit to, and those that judge what is fitted; both bool [u].

    Pictures: every fourth judges. Clips: the last quarter judges, and those that share no picture with it are
    fitted to. Where that leaves none of either, all do both, and what is judged flatters.
    """
    held = torch.arange(len(frames)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    fitted = ~held
    if frames.shape[1] > 1:
        first, last = frames.amin(1), frames.amax(1)
        held = first >= first.float().quantile(1 - 1 / HELD_OUT_EVERY)
        fitted = last < first[held].min()
    if held.any() and fitted.any():
        return fitted, held
    everything = torch.ones(len(frames), dtype=torch.bool)
    return everything, everything


def short_list(ranked: Sequence[Candidate], count: int) -> tuple[Candidate, ...]:
    """At most `count` candidates, best first: the cheapest, then as many of each stage, then others."""
    turns: dict[str, int] = {}
    order = []
    cheapest = min(ranked, key=lambda c: c.gflops, default=None)
    for place, candidate in enumerate(ranked):
        turn = turns[candidate.stage] = turns.get(candidate.stage, -1) + 1
        order.append((candidate != cheapest, turn, place))
    kept = sorted(place for _, _, place in sorted(order)[:count])
    return tuple(ranked[place] for place in kept)


def decided(errors: Mapping[Candidate, float], count: int) -> tuple[Candidate, ...]:
    """`count` of the candidates whose answers' errors are known: the cheapest that is as near to the
    reference as the nearest; the cheapest of all, which is the same pair in every segment, so that each has
    one at the same cut; one that saves much for little. Then others that nothing cheaper beats, then by rank.

    `errors` is in order of rank.
    """
    front = [c for c in errors if not any(_beats(errors, other, c) for other in errors)]
    nearest = min(max(errors[c], 0) for c in front)  # rounding makes an error of nothing negative
    as_near, near = (
        min((c for c in front if max(errors[c], 0) <= share * nearest), key=lambda c: c.gflops)
        for share in (AS_NEAR, NEAR)
    )
    cheapest = min(front, key=lambda c: c.gflops)
    return tuple(dict.fromkeys([as_near, cheapest, near, *front, *errors]))[:count]


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
