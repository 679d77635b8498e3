"""The stage × cut pairs of one segment and task: ranked, fitted by ridge regression, decided by answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nvpstore.adapters.micro import MicroAdapter
from nvpstore.codec.artifact import decode_taps
from nvpstore.codec.build import Architecture
from nvpstore.codec.hnerv import Decoder
from nvpstore.ingest.references import References
from nvpstore.routing.cka import RidgeFit
from nvpstore.routing.select import (
    Candidate,
    Units,
    decided,
    held_out,
    places,
    rank_pairs,
    ridge_for,
    short_list,
    stage_samples,
    worthwhile_cuts,
)
from nvpstore.types import RGB_STAGE

DECODE_BATCH = 16  # pictures decoded at a time
RANK_UNITS = 64  # units that pairs are looked at on, spread over those that tasks may see
SHORT_LIST = 8  # pairs whose answers are looked at before adapters are trained


class Pairs:
    """Looks at no more than RANK_UNITS of the units that task terms may see.

    What the stages say is sampled batch by batch: of large videos all stages of all units have no room.
    """

    def __init__(
        self, decoder: Decoder, latents: Tensor, refs: References, arch: Architecture, *, seed: int
    ) -> None:
        self.decoder, self.latents, self.refs, self.arch = decoder, latents, refs, arch
        content = arch.content_width / arch.coded_width, arch.content_height / arch.coded_height
        self.units = Units(frames=refs.units.frames, region=refs.units.region.within(*content))
        count = int(refs.seen.sum())
        rows = torch.linspace(0, count - 1, min(RANK_UNITS, count)).round().long()
        self.frames = refs.frames[refs.seen][rows]
        self.reference = refs.output[refs.seen][rows.to(refs.output.device)]
        self.fitted, self.held = held_out(self.frames)
        self.samples = {
            cut: tuple(s.reshape(count, -1, s.shape[1])[rows].flatten(0, 1) for s in samples)
            for cut, samples in refs.samples.items()
        }
        wanted = decoder.names[:-1] if decoder.names[-1] == RGB_STAGE else decoder.names
        grids = dict.fromkeys(place for cut in worthwhile_cuts(refs.task.backbone) for place in places(cut))
        parts = [
            {place: _on_cpu(stage_samples(taps, place, units=self.units, seed=seed)) for place in grids}
            for taps in taps_of_units(decoder, latents, self.frames, wanted)
        ]
        self.placed = {
            place: {stage: torch.cat([part[place][stage] for part in parts]) for stage in wanted}
            for place in grids
        }
        self._fits: dict[Candidate, tuple[RidgeFit, ...]] = {}

    def ranked(self) -> tuple[Candidate, ...]:
        """All pairs that may get an adapter, by CKA × saving."""
        return rank_pairs(
            self.placed, self.samples, arch=self.arch, backbone=self.refs.task.backbone, units=self.units
        )

    def decided(self, ranked: Sequence[Candidate], count: int) -> tuple[Candidate, ...]:
        """Which `count` of the pairs are worth an adapter, by the answers behind those that rank high."""
        errors = {candidate: self.answers_error(candidate) for candidate in short_list(ranked, SHORT_LIST)}
        return decided(errors, count) if errors else ()

    def ridge(self, candidate: Candidate) -> tuple[RidgeFit, ...]:
        """Of each of the pair's convolutions, fitted once."""
        if candidate not in self._fits:
            self._fits[candidate] = ridge_for(
                candidate,
                self.placed,
                self.samples[candidate.cut],
                self.refs.task.backbone.cut(candidate.cut),
                fitted=self.fitted,
                held=self.held,
            )
        return self._fits[candidate]

    @torch.no_grad()
    def from_ridge(self, candidate: Candidate) -> MicroAdapter:
        """An adapter whose convolutions are the ridge optimum."""
        adapter = MicroAdapter(
            candidate.stages,
            [self.arch.stage_shape(stage)[0] for stage in candidate.stages],
            self.refs.task.backbone.cut(candidate.cut).shapes,
            region=self.units.region,
            frames=self.units.frames,
            motion=True,
        )
        for conv, fit in zip(adapter.convolutions, self.ridge(candidate), strict=True):
            conv.weight.zero_()  # the mark of what lies outside has no part in the regression
            conv.weight[:, : len(fit.weight)].copy_(fit.weight.T[:, :, None, None])
            assert conv.bias is not None, "adapters have biases"
            conv.bias.copy_(fit.bias)
        return adapter

    @torch.inference_mode()
    def answers_error(self, candidate: Candidate) -> float:
        """How far answers behind the ridge optimum are from the reference's, on the units held out: the
        task's loss. Nothing of it comes from units that tasks may not see.
        """
        backbone = self.refs.task.backbone
        adapter, tail = self.from_ridge(candidate).to(backbone.device), backbone.tail(candidate.cut)
        batches = taps_of_units(self.decoder, self.latents, self.frames[self.held], candidate.stages)
        output = torch.cat(
            [tail(*adapter({s: x.to(backbone.device) for s, x in taps.items()})) for taps in batches]
        )
        wanted = self.reference[self.held.to(self.reference.device)].to(output.device)
        error = float(self.refs.task.head.loss(output, wanted))
        return error if math.isfinite(error) else math.inf


def taps_of_units(
    decoder: Decoder, latents: Tensor, frames: Tensor, stages: Sequence[str]
) -> Iterator[dict[str, Tensor]]:
    """Outputs of `stages` for units `frames` [u, t] of a segment's `latents`, whole units at a time, on the
    decoder's device: {stage: float32 [some units · t, c, h, w]}. Nothing at all for none: backbones need not
    take a batch of none.
    """
    for part in frames.split(max(1, DECODE_BATCH // frames.shape[1])) if len(frames) else ():
        batches = list(decode_taps(decoder, latents[part.flatten().to(latents.device)], stages))
        yield {stage: torch.cat([taps[stage].float() for taps in batches]) for stage in stages}


def _on_cpu(samples: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ranking is a few small products: not worth a device."""
    return {stage: x.cpu() for stage, x in samples.items()}


def inputs_of_units(
    decoder: Decoder, latents: Tensor, frames: Tensor, adapter: MicroAdapter
) -> tuple[Tensor, ...]:
    """What an adapter's convolutions are given for units `frames` [u, t]: each [u, c, *grid], on the CPU."""
    batches = taps_of_units(decoder, latents, frames, adapter.stages)
    parts = zip(*([x.cpu() for x in adapter.inputs(taps)] for taps in batches), strict=True)
    return tuple(torch.cat(part).clone() for part in parts)  # no longer of inference: autograd may keep it
