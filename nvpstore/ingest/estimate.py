"""What fitting a file will take, before it starts: a few training steps on this machine, scaled up."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from nvpstore.codec.build import Architecture, Preset, build_architecture, stage_parameters
from nvpstore.codec.fit import SegmentFit
from nvpstore.types import SourceInfo

OVERHEAD = 1.25  # references, joint terms, measuring, routes: share over bare fitting, from the demo
TRIAL_FRAMES = 8
ADAPTER_BYTES = 40_000  # a segment's adapters for one task, about


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """`seconds` at most (a fit that meets its target stops early); `stored_bytes` about."""

    frames: int
    segments: int
    seconds: float
    stored_bytes: int


def estimate_fit(info: SourceInfo, preset: Preset, *, tasks: int, device: str) -> Estimate:
    """Time and size of storing `info` with `preset`; segments for cuts inside are not known yet."""
    frames = info.declared_frames or max(1, round(info.duration_seconds * float(info.average_fps)))
    segments = math.ceil(frames / preset.max_segment_frames)
    length = math.ceil(frames / segments)
    arch = build_architecture(info.height, info.width, length, preset)
    latents = math.prod(arch.latent_shape) * (4 if arch.codec == "nerv" else 1)
    per_segment = sum(stage_parameters(arch)) + tasks * ADAPTER_BYTES
    seconds = frames * preset.epochs_for(length) * _seconds_a_frame(arch, preset, device) * OVERHEAD
    return Estimate(
        frames=frames,
        segments=segments,
        seconds=seconds,
        stored_bytes=segments * per_segment + frames * latents,
    )


def _seconds_a_frame(arch: Architecture, preset: Preset, device: str) -> float:
    """Seconds that one frame of one epoch takes here: the second of two trial epochs."""
    noise = torch.rand(TRIAL_FRAMES, 3, arch.coded_height, arch.coded_width).half()
    fit = SegmentFit(noise, arch, preset, device=device)
    fit.run_epoch()
    began = time.monotonic()
    fit.run_epoch()
    return (time.monotonic() - began) / TRIAL_FRAMES
