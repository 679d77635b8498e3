"""One segment, from source frames to what is stored of it: fit, quantise, decode again, measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nvpstore.adapters.joint import AdapterTerm
from nvpstore.codec.alike import alike_runs
from nvpstore.codec.artifact import (
    coded_frames,
    decode_taps,
    load_decoder,
    load_latents,
    shown_rgb,
    store_latents,
    store_weights,
)
from nvpstore.codec.build import Architecture, Preset, build_architecture
from nvpstore.codec.fit import FitProgress, FittedSegment, SegmentFit
from nvpstore.codec.hnerv import Decoder
from nvpstore.ingest.references import ReferenceBuilder, References, affordable_units
from nvpstore.ingest.routes import RouteSettings, SegmentRoutes, TaskTerms
from nvpstore.ingest.units import UnitPlan, thinned, units_at_ingest
from nvpstore.tasks.registry import LoadedTask
from nvpstore.types import (
    RGB_STAGE,
    FrameBatch,
    RouteRecord,
    SegmentSpan,
    StoredLatents,
    StoredStage,
    TaskKind,
)

ReadSegment = Callable[[], Iterator[FrameBatch]]
PEAK = 255.0
DENSE: frozenset[TaskKind] = frozenset({"segmentation", "depth"})  # their answers are maps


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSegment:
    """What a segment becomes. Squared errors are sums over all values of each frame, float64 [t]."""

    span: SegmentSpan
    pts: NDArray[np.int64]
    arch: Architecture
    weights: tuple[StoredStage, ...]
    latents: StoredLatents
    squared_error: NDArray[np.float64]
    resize_squared_error: NDArray[np.float64]
    values_per_frame: int
    routes: tuple[tuple[RouteRecord, ...], ...]
    fit_seconds: float

    def without_payload(self) -> FinishedSegment:
        """The measurements alone: what is kept of a segment once its bytes are put."""
        return replace(self, weights=(), routes=())

    @property
    def frame_psnr(self) -> NDArray[np.float64]:
        return psnr(self.squared_error / self.values_per_frame)


def psnr(mean_squared_error: NDArray[np.float64]) -> NDArray[np.float64]:
    """10·log10(255² / mse), 100 dB where nothing differs."""
    ratio = PEAK**2 / np.maximum(mean_squared_error, 1e-9)
    return np.asarray(np.minimum(100.0, 10 * np.log10(ratio)), np.float64)


def finish_segment(
    read: ReadSegment,
    span: SegmentSpan,
    preset: Preset,
    tasks: Sequence[LoadedTask],
    *,
    size: tuple[int, int],
    device: str,
    seed: int,
    checkpoint: Path,
    checkpoint_seconds: float,
    progress: Callable[[FitProgress], None],
) -> FinishedSegment:
    """Fit and measure the frames that `read` yields (it is called twice: frames are not kept).

    `size` is their (height, width).
    """
    frames, pts, references = _gather(read, span, preset, tasks, size=size, seed=seed)
    alike = alike_runs(frames, preset.alike_rms)
    arch = build_architecture(*size, len(alike), preset)
    teaching = [refs for refs in references if refs.can_teach]  # a segment of one frame may have none
    terms = TaskTerms(teaching, arch, device=device, seed=seed) if teaching else None
    fitted = SegmentFit(
        frames,
        arch,
        preset,
        alike=alike,
        terms_factory=terms,
        device=device,
        seed=seed,
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
    ).run(progress)
    weights = store_weights(fitted.decoder, segment=span.segment, steps=fitted.steps)
    latents = store_latents(
        fitted.latents,
        segment=span.segment,
        start_frame=span.start_frame,
        pts=pts,
        steps=fitted.latent_steps,
    )
    decoder = load_decoder(arch, [stage.tensors for stage in weights])
    stored = load_latents(latents)
    errors, resize_errors, values = _measure(read, decoder, stored, arch)
    return FinishedSegment(
        span=span,
        pts=pts,
        arch=arch,
        weights=weights,
        latents=latents,
        squared_error=errors,
        resize_squared_error=resize_errors,
        values_per_frame=values,
        routes=_routes(decoder, stored, references, fitted, arch, preset, segment=span.segment, seed=seed),
        fit_seconds=fitted.seconds,
    )


def route_settings(preset: Preset) -> RouteSettings:
    return RouteSettings(
        adapters=preset.adapter_routes, epochs=preset.adapter_epochs, least_steps=preset.adapter_steps
    )


def rgb_tensor(batch: FrameBatch) -> Tensor:
    """uint8 [t, h, w, 3] → uint8 [t, 3, h, w]."""
    return torch.from_numpy(batch.rgb_thwc).permute(0, 3, 1, 2)


def _gather(
    read: ReadSegment,
    span: SegmentSpan,
    preset: Preset,
    tasks: Sequence[LoadedTask],
    *,
    size: tuple[int, int],
    seed: int,
) -> tuple[Tensor, NDArray[np.int64], tuple[References, ...]]:
    """(frames at coded size float16 [t, 3, H, W], pts [t], references by task), in one pass."""
    arch = build_architecture(*size, span.frames, preset)  # for the size that frames are coded at
    builders = [ReferenceBuilder(task, _plan(task, span), size=size, seed=seed) for task in tasks]
    coded, pts = [], []
    for batch in read():
        rgb = rgb_tensor(batch)
        coded.append(coded_frames(rgb, arch).half())
        pts.append(batch.pts)
        for builder in builders:
            first = batch.first_frame - span.start_frame
            builder.add(range(first, first + len(batch)), rgb)
    return torch.cat(coded), np.concatenate(pts), tuple(builder.build() for builder in builders)


def _plan(task: LoadedTask, span: SegmentSpan) -> UnitPlan:
    """All units of the segment; of a task whose answers are maps as many as memory has room for."""
    plan = units_at_ingest(task.spec, start_frame=span.start_frame, frames=span.frames)
    return thinned(plan, affordable_units(task)) if task.spec.kind in DENSE else plan


@torch.inference_mode()
def _measure(
    read: ReadSegment, decoder: Decoder, latents: Tensor, arch: Architecture
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """(squared error of what is stored, of the resize alone, values a frame), at source size."""
    errors, bounds, first, values = [], [], 0, 0
    for batch in read():
        source = rgb_tensor(batch)
        height, width = source.shape[2:]
        part = latents[first : first + len(batch)]
        first += len(batch)
        (taps,) = decode_taps(decoder, part, (RGB_STAGE,), batch_frames=len(batch))
        stored = shown_rgb(taps[RGB_STAGE].float().cpu(), arch, height, width)
        resized = shown_rgb(coded_frames(source, arch), arch, height, width)
        errors.append(_squared_error(stored, source))
        bounds.append(_squared_error(resized, source))
        values = math.prod(source.shape[1:])
    return np.concatenate(errors), np.concatenate(bounds), values


def _squared_error(shown: Tensor, source: Tensor) -> NDArray[np.float64]:
    error = F.mse_loss(shown.float(), source.float(), reduction="none").flatten(1).double().sum(1)
    return error.numpy()


def _routes(
    decoder: Decoder,
    latents: Tensor,
    references: Sequence[References],
    fitted: FittedSegment,
    arch: Architecture,
    preset: Preset,
    *,
    segment: int,
    seed: int,
) -> tuple[tuple[RouteRecord, ...], ...]:
    joint = {term.version: term for term in fitted.terms if isinstance(term, AdapterTerm)}
    settings = route_settings(preset)
    return tuple(
        SegmentRoutes(
            decoder, latents, refs, segment=segment, arch=arch, settings=settings, seed=seed
        ).measure(joint.get(refs.task.spec.version))
        for refs in references
    )
