"""From a stored segment and references to measured routes, and to the term of a joint fit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor

from nvpstore.adapters.joint import AdapterTerm
from nvpstore.adapters.micro import FeatureScale, MicroAdapter, resize_taps
from nvpstore.adapters.stored import load_adapter, store_adapter
from nvpstore.adapters.train import AdapterTraining, train_adapter
from nvpstore.codec.artifact import content_rgb, decode_taps
from nvpstore.codec.build import Architecture, Preset, stage_gflops
from nvpstore.codec.fit import JointTerm
from nvpstore.codec.hnerv import Decoder
from nvpstore.ingest.originals import source_route
from nvpstore.ingest.references import References
from nvpstore.routing.cka import RidgeFit
from nvpstore.routing.select import Candidate, rank_pairs, ridge_for, spread_top
from nvpstore.tasks.heads import CONFIDENT
from nvpstore.tasks.registry import LoadedTask, load
from nvpstore.types import RGB_STAGE, RouteRecord, SegmentRecord

RANK_FRAMES = 64  # frames that CKA and ridge are computed on, spread over those that tasks may see


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Share of unseen frames answered as the reference does; over all, and over confident ones."""

    over_all: float | None
    over_confident: float | None
    confident_frames: int


class TaskTerms:
    """Makes one joint term a task, of the pair that ranks best so far (a codec.fit.TermsFactory)."""

    def __init__(
        self, references: Sequence[References], arch: Architecture, *, device: str, seed: int
    ) -> None:
        self.references, self.arch, self.device, self.seed = references, arch, device, seed

    def __call__(
        self, decoder: Decoder, latents: Tensor, *, choices: Sequence[str] | None
    ) -> Sequence[JointTerm]:
        saved: Sequence[str | None] = choices or [None] * len(self.references)
        return [
            self._term(decoder, latents, refs, choice)
            for refs, choice in zip(self.references, saved, strict=True)
        ]

    def _term(self, decoder: Decoder, latents: Tensor, refs: References, choice: str | None) -> AdapterTerm:
        taps, samples, _ = ranking_inputs(decoder, latents, refs)
        candidate = _candidate_from(choice) if choice else self._rank(taps, samples, refs)[0]
        cut = refs.task.backbone.cut(candidate.cut)
        fit = ridge_for(candidate, taps, samples[candidate.cut], cut, seed=self.seed)
        targets = refs.targets(candidate.cut)
        task = load(refs.task.spec, self.device)  # references stay on the CPU, the fit may not
        adapter = normalised_start(build_adapter(candidate, self.arch, refs), fit, targets)
        return AdapterTerm(
            choice=json.dumps(asdict(candidate)),
            adapter=adapter,
            tail=task.backbone.tail(candidate.cut),
            targets=targets,
            reference=refs.output[refs.seen],
            positions=refs.positions,
            frames=len(refs.seen),
            output_loss=refs.task.head.loss,
            answer=partial(answer, task, candidate.cut),
            device=self.device,
        )

    def _rank(
        self, taps: Mapping[str, Tensor], samples: Mapping[str, Tensor], refs: References
    ) -> tuple[Candidate, ...]:
        return rank_pairs(taps, samples, arch=self.arch, backbone=refs.task.backbone, seed=self.seed)


def answer(task: LoadedTask, cut: str, views: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """The backbone on pictures [b, 3, h, w] in 0 … 1: (the cut's tensors, output)."""
    features, output = task.backbone.features(task.spec.preprocessing.apply(views * 255), [cut])
    return (features[cut],), output


def _candidate_from(choice: str) -> Candidate:
    fields = json.loads(choice)
    return Candidate(**{**fields, "stages": tuple(fields["stages"])})


@torch.inference_mode()
def ranking_inputs(
    decoder: Decoder, latents: Tensor, refs: References
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """(taps {stage: [m, c, h, w]}, samples {cut: [m·k, c]}, rows [m]) on at most RANK_FRAMES seen frames."""
    count = len(refs.positions)
    rows = torch.linspace(0, count - 1, min(RANK_FRAMES, count)).round().long()
    wanted = decoder.names[:-1] if decoder.names[-1] == RGB_STAGE else decoder.names
    taps = collect_taps(decoder, latents[refs.positions[rows].to(latents.device)], wanted)
    samples = {cut: s.reshape(count, -1, s.shape[1])[rows].flatten(0, 1) for cut, s in refs.samples.items()}
    return taps, samples, rows


def collect_taps(decoder: Decoder, latents: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
    """Outputs of `stages` for all of `latents`, on the CPU."""
    parts = list(decode_taps(decoder, latents, stages))
    return {s: torch.cat([p[s].float().cpu() for p in parts]).clone() for s in stages}


def build_adapter(candidate: Candidate, arch: Architecture, refs: References) -> MicroAdapter:
    channels = [arch.stage_shape(stage)[0] for stage in candidate.stages]
    return MicroAdapter(candidate.stages, channels, refs.task.backbone.cut(candidate.cut).shapes)


@torch.no_grad()
def from_ridge(adapter: MicroAdapter, fit: RidgeFit) -> MicroAdapter:
    """The adapter with the ridge optimum as its weights (cuts of one tensor)."""
    (conv,) = adapter.convolutions
    conv.weight.copy_(fit.weight.T[:, :, None, None])
    assert conv.bias is not None, "adapters have biases"
    conv.bias.copy_(fit.bias)
    return adapter


@torch.no_grad()
def normalised_start(adapter: MicroAdapter, fit: RidgeFit, targets: Sequence[Tensor]) -> MicroAdapter:
    """As `from_ridge`, for normalised targets."""
    (scale,) = (FeatureScale(t) for t in targets)
    return from_ridge(
        adapter,
        RidgeFit(weight=fit.weight / scale.std, bias=(fit.bias - scale.mean) / scale.std, r2=fit.r2),
    )


class SegmentRoutes:
    """All routes of one task on one stored segment. `decoder` and `latents` are what is stored, dequantised.

    `bytes` of the routes stay 0 until the segment's row groups are laid out (`with_bytes`).
    """

    def __init__(
        self,
        decoder: Decoder,
        latents: Tensor,
        refs: References,
        *,
        segment: int,
        arch: Architecture,
        preset: Preset,
        seed: int,
    ) -> None:
        self.decoder, self.latents, self.refs = decoder, latents, refs
        self.segment, self.arch, self.preset, self.seed = segment, arch, preset, seed
        self.decode_gflops = dict(zip(arch.stage_names, stage_gflops(arch), strict=True))

    def measure(self, joint: AdapterTerm | None) -> tuple[RouteRecord, ...]:
        """Adapter routes of the best pairs (the jointly fitted one first), the pixel and the source route."""
        return (*self._adapter_routes(joint), self._pixel_route(), self._source_route())

    def _adapter_routes(self, joint: AdapterTerm | None) -> Sequence[RouteRecord]:
        if not len(self.refs.positions):  # a segment of one frame, and that one is kept for measuring
            return ()
        taps, samples, _ = ranking_inputs(self.decoder, self.latents, self.refs)
        ranked = rank_pairs(taps, samples, arch=self.arch, backbone=self.refs.task.backbone, seed=self.seed)
        chosen = list(spread_top(ranked, self.preset.adapter_routes))
        records = []
        if joint is not None:
            wanted = json.loads(joint.choice)
            pair = next(c for c in ranked if c.cut == wanted["cut"] and list(c.stages) == wanted["stages"])
            chosen = [pair, *(c for c in chosen if c != pair)][: self.preset.adapter_routes]
        for candidate in chosen:
            cut = self.refs.task.backbone.cut(candidate.cut)
            fit = ridge_for(candidate, taps, samples[candidate.cut], cut, seed=self.seed)
            if joint is not None and candidate is chosen[0]:
                start = joint.adapter.cpu().denormalised([s.cpu() for s in joint.scales])
            else:
                start = from_ridge(build_adapter(candidate, self.arch, self.refs), fit)
            records.append(self._adapter_route(candidate, fit, start))
        return records

    def _adapter_route(self, candidate: Candidate, fit: RidgeFit, start: MicroAdapter) -> RouteRecord:
        refs, cut = self.refs, self.refs.task.backbone.cut(candidate.cut)
        taps = collect_taps(self.decoder, self.latents[refs.positions], candidate.stages)
        resized = [resize_taps([taps[s] for s in candidate.stages], *shape[1:]) for shape in cut.shapes]
        trained = train_adapter(
            start,
            resized,
            targets=refs.targets(candidate.cut),
            reference=refs.output[refs.seen],
            tail=refs.task.backbone.tail(candidate.cut),
            output_loss=refs.task.head.loss,
            settings=AdapterTraining(epochs=self.preset.adapter_epochs),
            seed=self.seed,
        )
        tensors = store_adapter(trained)
        agreement = self._adapter_agreement(load_adapter(tensors, candidate.stages, cut.shapes), candidate)
        return RouteRecord(
            segment=self.segment,
            route="adapter",
            stages=candidate.stages,
            cut=candidate.cut,
            scope="segment",
            cka=candidate.cka,
            ridge_r2=fit.r2,
            fidelity=agreement.over_all,
            fidelity_confident=agreement.over_confident,
            confident_frames=agreement.confident_frames,
            gflops=candidate.gflops,
            bytes=0,
            adapter=tensors,
        )

    @torch.inference_mode()
    def _adapter_agreement(self, adapter: MicroAdapter, candidate: Candidate) -> Agreement:
        tail = self.refs.task.backbone.tail(candidate.cut)
        outputs = [
            tail(*adapter({s: x.float().cpu() for s, x in taps.items()}))
            for taps in self._unseen_taps(candidate.stages)
        ]
        return agreement_on(self.refs, outputs)

    def _unseen_taps(self, stages: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        # Nothing at all for no frames: backbones need not take a batch of none.
        unseen = self.refs.unseen
        return decode_taps(self.decoder, self.latents[unseen], stages) if len(unseen) else iter(())

    @torch.inference_mode()
    def _pixel_route(self) -> RouteRecord:
        task = self.refs.task
        outputs = [
            task.backbone.whole(task.spec.preprocessing.apply(content_rgb(taps[RGB_STAGE], self.arch)))
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
            gflops=self.decode_gflops[RGB_STAGE] + task.backbone.whole_gflops(),
            bytes=0,
        )

    def _source_route(self) -> RouteRecord:
        confident = self.refs.task.head.confidence(self.refs.output[self.refs.unseen]) >= CONFIDENT
        return source_route(
            self.segment,
            gflops=self.refs.task.backbone.whole_gflops(),
            confident_frames=int(confident.sum()),
        )


def with_bytes(route: RouteRecord, record: SegmentRecord, *, source_bytes: int) -> RouteRecord:
    """The route with what a cold read of the segment fetches for it.

    Its own row group is not counted yet: its size is known once all routes are encoded.
    """
    if route.route == "source":
        return replace(route, bytes=source_bytes)
    assert record.latents is not None, "only fitted segments are decoded"
    size = record.prefix(route.stages[-1]).size_bytes + record.latents.size_bytes
    return replace(route, bytes=size)


def agreement_on(refs: References, outputs: Sequence[Tensor]) -> Agreement:
    """Agreement of a route's outputs on the unseen frames with the reference's."""
    if not outputs or not len(refs.unseen):
        return Agreement(over_all=None, over_confident=None, confident_frames=0)
    reference = refs.output[refs.unseen]
    same = refs.task.head.agreement(torch.cat(list(outputs)), reference)
    sure = refs.task.head.confidence(reference) >= CONFIDENT
    confident = int(sure.sum())
    return Agreement(
        over_all=float(same.mean()),
        over_confident=float(same[sure].mean()) if confident else None,
        confident_frames=confident,
    )
