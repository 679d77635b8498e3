"""Which INR stage should feed which cut: every pair ranked by CKA and by what it saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nvpstore.codec.build import Architecture, stage_gflops
from nvpstore.routing.cka import RidgeFit, choose_positions, linear_cka, ridge, sample_grid
from nvpstore.tasks.cuts import Cut, CutBackbone
from nvpstore.types import RGB_STAGE

POSITIONS_PER_FRAME = 32
# A tail above the first share saves too little to be worth an adapter; one below the second leaves so little
# of the backbone that the adapter would have to hold the answers themselves.
TAIL_SHARES = (0.5, 0.1)
ADAPTER_SHARE = 0.01  # of the backbone's parameters: above it, an adapter is not micro
FIRST_STAGE = 1  # the stem is a pointwise map of the latent's few channels: it cannot span a cut's features
HELD_OUT_EVERY = 4  # of the frames that tasks may see, every fourth judges the ridge fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A stage × cut pair. `stages` are the adapter's taps: the stage and all before it (decoded anyway).

    `gflops`: one frame's decode + adapter + tail. `score` = CKA × share of the pixel route's GFLOPs saved.
    """

    stages: tuple[str, ...]
    cut: str
    cka: float
    gflops: float
    score: float

    @property
    def stage(self) -> str:
        return self.stages[-1]


def cut_samples(features: Mapping[str, Tensor], *, seed: int) -> dict[str, Tensor]:
    """Cut features {cut: [t, c, h, w]} → samples {cut: [t·k, c]} at a fixed choice of positions."""
    return {cut: sample_grid(x, _positions(x.shape[2], x.shape[3], seed)) for cut, x in features.items()}


def stage_samples(taps: Mapping[str, Tensor], cut: Cut, *, seed: int) -> dict[str, Tensor]:
    """Stage outputs {stage: [t, c, h, w]} → samples {stage: [t·k, c]} on the cut's grid."""
    height, width = cut.shapes[0][1:]
    positions = _positions(height, width, seed)
    resized = {
        stage: F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
        for stage, x in taps.items()
    }
    return {stage: sample_grid(x, positions) for stage, x in resized.items()}


def rank_pairs(
    taps: Mapping[str, Tensor],
    samples: Mapping[str, Tensor],
    *,
    arch: Architecture,
    backbone: CutBackbone,
    seed: int,
) -> tuple[Candidate, ...]:
    """All stage × cut pairs that keep to the shares above and cost less than the pixel route, best first.

    `taps` and `samples` are of the same frames, all of them seen by task terms.
    """
    decode = dict(zip(arch.stage_names, stage_gflops(arch), strict=True))
    pixel = decode[RGB_STAGE] + backbone.whole_gflops()
    ranked = []
    for cut in worthwhile_cuts(backbone):
        on_grid = stage_samples(taps, cut, seed=seed)
        for i, stage in enumerate(arch.stage_names[:-1]):
            stages = arch.stage_names[: i + 1]
            cost = decode[stage] + _adapter_gflops(arch, stages, cut) + backbone.tail_gflops(cut.name)
            parameters = _adapter_parameters(arch, stages, cut)
            if i < FIRST_STAGE or cost >= pixel or parameters > ADAPTER_SHARE * backbone.parameters:
                continue
            cka = linear_cka(on_grid[stage], samples[cut.name])
            ranked.append(
                Candidate(stages=stages, cut=cut.name, cka=cka, gflops=cost, score=cka * (1 - cost / pixel))
            )
    return tuple(sorted(ranked, key=lambda c: (-c.score, c.gflops, c.cut)))


def worthwhile_cuts(backbone: CutBackbone) -> tuple[Cut, ...]:
    """Cuts whose tail is within TAIL_SHARES of the backbone's GFLOPs; all of them where none is."""
    most, least = (share * backbone.whole_gflops() for share in TAIL_SHARES)
    within = tuple(cut for cut in backbone.cuts if least <= backbone.tail_gflops(cut.name) <= most)
    return within or backbone.cuts


def ridge_for(
    candidate: Candidate, taps: Mapping[str, Tensor], samples: Tensor, cut: Cut, *, seed: int
) -> RidgeFit:
    """The ridge optimum of a candidate's 1×1 convolution; R² on every fourth frame, held out."""
    on_grid = stage_samples({s: taps[s] for s in candidate.stages}, cut, seed=seed)
    x = torch.cat([on_grid[s] for s in candidate.stages], dim=1)
    frames = next(iter(taps.values())).shape[0]
    held = torch.arange(frames) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    held = held.repeat_interleave(len(x) // frames)
    if not held.any():  # too few frames to hold any out: R² is then of the fit itself
        return ridge(x, samples, x, samples)
    return ridge(x[~held], samples[~held], x[held], samples[held])


def spread_top(ranked: Sequence[Candidate], count: int) -> tuple[Candidate, ...]:
    """The best `count` candidates, at most one for each cut: neighbours in rank differ little."""
    chosen: dict[str, Candidate] = {}
    for candidate in ranked:
        chosen.setdefault(candidate.cut, candidate)
    return tuple(chosen.values())[:count]


def _adapter_gflops(arch: Architecture, stages: Sequence[str], cut: Cut) -> float:
    channels = sum(arch.stage_shape(s)[0] for s in stages)
    return sum(2 * channels * c * h * w / 1e9 for c, h, w in cut.shapes)


def _adapter_parameters(arch: Architecture, stages: Sequence[str], cut: Cut) -> int:
    channels = sum(arch.stage_shape(s)[0] for s in stages)
    return sum((channels + 1) * c for c in cut.channels)


def _positions(height: int, width: int, seed: int) -> Tensor:
    return choose_positions(height, width, POSITIONS_PER_FRAME, seed)
