"""From a stored segment and references to measured routes, and to the term of a joint fit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor

from nvpstore.adapters.joint import AdapterTerm
from nvpstore.adapters.micro import FeatureScale, MicroAdapter
from nvpstore.adapters.stored import load_adapter, store_adapter
from nvpstore.adapters.train import AdapterTraining, train_adapter
from nvpstore.codec.artifact import content_rgb
from nvpstore.codec.build import Architecture, stage_gflops
from nvpstore.codec.hnerv import Decoder
from nvpstore.codec.terms import JointTerm
from nvpstore.ingest.originals import source_route
from nvpstore.ingest.pairs import Pairs, inputs_of_units, taps_of_units
from nvpstore.ingest.references import References
from nvpstore.routing.choice import cost
from nvpstore.routing.select import Candidate
from nvpstore.tasks.heads import CONFIDENT
from nvpstore.tasks.registry import LoadedTask
from nvpstore.types import RGB_STAGE, RouteRecord, StoredTensor

JOINED_RATE = 2e-3  # learning rate of an adapter that a joint fit ended with


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Share of unseen frames answered as the reference does; over all, and over confident ones."""

    over_all: float | None
    over_confident: float | None
    confident_frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSettings:
    """How many stage × cut pairs get an adapter, each trained for `epochs`; from few units for longer, until
    `least_steps` are done or `least_gflops` have gone forward through its tail.
    """

    adapters: int = 3
    epochs: int = 8
    least_steps: int = 0
    least_gflops: float = 600.0

    def training(self, units: int, *, tail_gflops: float, joined: bool = False) -> AdapterTraining:
        """Of an adapter that learns from so many units; `joined`: in place of what a joint fit ended with."""
        usual = AdapterTraining()
        steps = math.ceil(units / usual.batch_frames)
        least = min(self.least_steps, self.least_gflops / (usual.batch_frames * max(tail_gflops, 1e-6)))
        return replace(
            usual,
            epochs=max(self.epochs, math.ceil(least / steps)),
            learning_rate=JOINED_RATE if joined else usual.learning_rate,
        )


class TaskTerms:
    """Makes one joint term a task, of the pair whose answers are nearest so far (a codec.terms.TermsFactory).

    A task none of whose pairs would pay has no term.
    """

    def __init__(
        self, references: Sequence[References], arch: Architecture, *, device: str, seed: int
    ) -> None:
        self.references, self.arch, self.device, self.seed = references, arch, device, seed

    def __call__(
        self, decoder: Decoder, latents: Tensor, *, choices: Sequence[str] | None
    ) -> Sequence[JointTerm]:
        saved = iter(choices or ())
        terms = []
        for refs in self.references:
            pairs = Pairs(decoder, latents, refs, self.arch, seed=self.seed)
            # Which tasks have pairs depends on sizes alone: a resumed fit finds the same ones.
            if ranked := pairs.ranked():
                candidate = _candidate_from(next(saved)) if choices else pairs.decided(ranked, 1)[0]
                terms.append(self._term(pairs, candidate, frames=len(latents)))
        return terms

    def _term(self, pairs: Pairs, candidate: Candidate, *, frames: int) -> AdapterTerm:
        refs = pairs.refs
        targets = refs.targets(candidate.cut)
        task = refs.task.on(self.device)  # references stay on the CPU, the fit may not
        start = pairs.from_ridge(candidate).normalised([FeatureScale(t) for t in targets])
        return AdapterTerm(
            version=refs.task.spec.version,
            choice=json.dumps(asdict(candidate)),
            adapter=start,
            tail=task.backbone.tail(candidate.cut),
            targets=targets,
            reference=refs.output[refs.seen],
            units=refs.frames[refs.seen],
            frames=frames,
            output_loss=refs.task.head.loss,
            answer=partial(answer, task, candidate.cut, refs.size),
            device=self.device,
        )


def answer(
    task: LoadedTask, cut: str, size: tuple[int, int], views: Tensor
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The backbone on pictures [b, 3, h, w] in 0 … 1 of a video of `size`: (the cut's tensors, output)."""
    features, output = task.backbone.features(task.spec.prepare(views * 255, size=size), [cut])
    return features[cut], output


def _candidate_from(choice: str) -> Candidate:
    fields = json.loads(choice)
    return Candidate(**{**fields, "stages": tuple(fields["stages"])})


def _candidate_among(ranked: Sequence[Candidate], choice: str) -> Candidate:
    """The same pair as it ranks by now."""
    wanted = _candidate_from(choice)
    return next(c for c in ranked if (c.cut, c.stages) == (wanted.cut, wanted.stages))


class SegmentRoutes:
    """All routes of one task on one stored segment. `decoder` and `latents` are what is stored, dequantised.

    Adapters are trained and measured where the task's backbone is. `bytes` of the routes stay 0 until they
    are laid out (ingest.layout).
    """

    def __init__(
        self,
        decoder: Decoder,
        latents: Tensor,
        refs: References,
        *,
        segment: int,
        arch: Architecture,
        settings: RouteSettings,
        seed: int,
    ) -> None:
        self.decoder, self.latents, self.refs = decoder, latents, refs
        self.segment, self.arch, self.settings, self.seed = segment, arch, settings, seed
        self.device = refs.task.backbone.device
        self.decode_gflops = dict(zip(arch.stage_names, stage_gflops(arch), strict=True))

    def measure(self, joint: AdapterTerm | None) -> tuple[RouteRecord, ...]:
        """Adapter routes of the best pairs, the pixel and the source route."""
        return (*worth_keeping(self._adapter_routes(joint)), self._pixel_route(), self._source_route())

    def _adapter_routes(self, joint: AdapterTerm | None) -> Sequence[RouteRecord]:
        if not self.refs.can_teach:  # a segment of one frame, say, and that one is kept for measuring
            return ()
        pairs = Pairs(self.decoder, self.latents, self.refs, self.arch, seed=self.seed)
        ranked = pairs.ranked()
        joined = () if joint is None else (_candidate_among(ranked, joint.choice),)
        decided = pairs.decided(ranked, self.settings.adapters)
        chosen = list(dict.fromkeys([*joined, *decided]))[: self.settings.adapters]
        records = []
        for candidate in chosen:
            start = pairs.from_ridge(candidate)
            if joint is not None and candidate in joined:
                start = joint.adapter.cpu().denormalised([s.cpu() for s in joint.scales])
            r2 = [fit.r2 for fit in pairs.ridge(candidate)]
            records.append(
                self.adapter_route(candidate, start, sum(r2) / len(r2), joined=candidate in joined)
            )
        return records

    def adapter_route(
        self, candidate: Candidate, start: MicroAdapter, ridge_r2: float, *, joined: bool = False
    ) -> RouteRecord:
        """One pair's adapter, trained from `start`, stored and measured as it is stored. `joined`: it starts
        with what a joint fit ended with.
        """
        refs = self.refs
        inputs = inputs_of_units(self.decoder, self.latents, refs.frames[refs.seen], start)
        trained = train_adapter(
            start.to(self.device),
            [x.to(self.device) for x in inputs],
            targets=refs.targets(candidate.cut),
            reference=refs.output[refs.seen],
            tail=refs.task.backbone.tail(candidate.cut),
            output_loss=refs.task.head.loss,
            settings=self.settings.training(
                int(refs.seen.sum()),
                tail_gflops=refs.task.backbone.tail_gflops(candidate.cut),
                joined=joined,
            ),
            seed=self.seed,
        )
        tensors = store_adapter(trained)
        agreement = self._adapter_agreement(tensors, candidate)
        return RouteRecord(
            segment=self.segment,
            route="adapter",
            stages=candidate.stages,
            cut=candidate.cut,
            scope="segment",
            cka=candidate.cka,
            ridge_r2=ridge_r2,
            fidelity=agreement.over_all,
            fidelity_confident=agreement.over_confident,
            confident_frames=agreement.confident_frames,
            gflops=candidate.gflops,
            bytes=0,
            adapter=tensors,
        )

    @torch.inference_mode()
    def _adapter_agreement(self, tensors: Sequence[StoredTensor], candidate: Candidate) -> Agreement:
        backbone, frames = self.refs.task.backbone, self.refs.units.frames
        shapes = backbone.cut(candidate.cut).shapes
        adapter = load_adapter(tensors, candidate.stages, shapes, frames=frames).to(self.device)
        tail = backbone.tail(candidate.cut)
        outputs = [
            tail(*adapter({s: x.float().to(self.device) for s, x in taps.items()}))
            for taps in self._unseen_taps(candidate.stages)
        ]
        return agreement_on(self.refs, outputs)

    def _unseen_taps(self, stages: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        frames = self.refs.frames[self.refs.unseen]
        return taps_of_units(self.decoder, self.latents, frames, stages)

    @torch.inference_mode()
    def _pixel_route(self) -> RouteRecord:
        task = self.refs.task
        outputs = [
            task.backbone.whole(
                task.spec.prepare(
                    content_rgb(taps[RGB_STAGE], self.arch).to(self.device), size=self.refs.size
                )
            )
            for taps in self._unseen_taps((RGB_STAGE,))
        ]
        agreement = agreement_on(self.refs, outputs)
        return RouteRecord(
            segment=self.segment,
            route="pixel",
            stages=(RGB_STAGE,),
            cut="",
            scope="segment",
            cka=None,
            ridge_r2=None,
            fidelity=agreement.over_all,
            fidelity_confident=agreement.over_confident,
            confident_frames=agreement.confident_frames,
            gflops=self.refs.units.frames * self.decode_gflops[RGB_STAGE] + task.backbone.whole_gflops(),
            bytes=0,
        )

    def _source_route(self) -> RouteRecord:
        confident = self.refs.task.head.confidence(self.refs.output[self.refs.unseen]) >= CONFIDENT
        return source_route(
            self.segment,
            gflops=self.refs.task.backbone.whole_gflops(),
            confident_frames=int(confident.sum()),
        )


def worth_keeping(routes: Sequence[RouteRecord]) -> Sequence[RouteRecord]:
    """Without those that a cheaper one is as good as: no query would take them, and each has its bytes."""
    kept: list[RouteRecord] = []
    for route in sorted(routes, key=cost):
        best = max((r.fidelity for r in kept if r.fidelity is not None), default=None)
        if best is None or route.fidelity is None or route.fidelity > best:
            kept.append(route)
    return kept


def agreement_on(refs: References, outputs: Sequence[Tensor]) -> Agreement:
    """Agreement of a route's outputs on the unseen frames with the reference's."""
    if not outputs or not len(refs.unseen):
        return Agreement(over_all=None, over_confident=None, confident_frames=0)
    reference = refs.output[refs.unseen]
    same = refs.task.head.agreement(torch.cat(list(outputs)), reference).cpu()
    sure = (refs.task.head.confidence(reference) >= CONFIDENT).cpu()
    confident = int(sure.sum())
    return Agreement(
        over_all=float(same.mean()),
        over_confident=float(same[sure].mean()) if confident else None,
        confident_frames=confident,
    )
