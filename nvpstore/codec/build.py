"""Every number of the codec: presets, and the architecture that a preset gives for a segment.

HNeRV: Chen et al., "HNeRV: A Hybrid Neural Representation for Videos", CVPR 2023.
NeRV: Chen et al., "NeRV: Neural Representations for Videos", NeurIPS 2021.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

from nvpstore.errors import CodecError, UsageError
from nvpstore.types import RGB_STAGE

CodecKind = Literal["hnerv", "nerv"]

POSITIONAL_BASE = 1.25  # NeRV eq. 1: γ(t) = (sin(b⁰πt), cos(b⁰πt), …, cos(b^{l−1}πt))
POSITIONAL_LEVELS = 40
NERV_HIDDEN = 512
LEAST_SHARE = 0.25  # of the steps that a segment would take if all of its frames were distinct


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """How segments are fitted. `parameters` counts decoder (stem to head, biases) and latents of a segment of
    `max_segment_frames`; shorter ones get the share of it that `budget_share` says.

    `coded_pixels` bounds the size at which a segment is coded (None: source size). `width_profile`
    says where capacity sits: stage i has `width_profile[i]` × the solved base width, at least
    `min_width`. `target_psnr` (dB) stops a fit early, measured at coded size. A short segment
    is fitted for more epochs, until `least_steps` are done. `terms_from`: share of the epochs
    after which the terms of tasks join.
    `weight_bits`: what a kernel's weights may take on average once they are compressed (None: 8 bit, rounded
    when the fit is done); after `round_from` of the epochs they are rounded while they learn.
    `adapter_routes`: how many stage × cut pairs get an adapter of their own, trained for `adapter_epochs`, of
    short segments for longer, until `adapter_steps` are done (`RouteSettings` says when they are too dear).
    """

    name: str
    codec: CodecKind = "hnerv"
    coded_pixels: int | None
    parameters: int
    strides: tuple[int, ...]
    kernels: tuple[int, ...]
    width_profile: tuple[float, ...]
    min_width: int = 12
    latent_channels: int = 16
    encoder_width: int = 64
    max_segment_frames: int
    epochs: int
    least_steps: int = 0
    batch_frames: int
    learning_rate: float
    warmup: float = 0.1
    adam_beta2: float = 0.99
    clip_norm: float = 1.0
    target_psnr: float | None = 33.0
    joint_weights: tuple[float, float, float] = (1.0, 0.5, 0.2)
    terms_from: float = 0.5
    weight_bits: float | None = None
    round_from: float = 0.6
    adapter_routes: int = 3
    adapter_epochs: int = 8
    adapter_steps: int = 120

    def __post_init__(self) -> None:
        n = len(self.strides)
        if not 3 <= n <= 6:
            raise ValueError(f"preset {self.name}: {n} stages, 3 to 6 are allowed")
        if len(self.kernels) != n or len(self.width_profile) != n + 1:
            raise ValueError(f"preset {self.name}: needs {n} kernels and {n + 1} widths")

    @property
    def alike_rms(self) -> float:
        """How much frames that show the same may differ (root mean square of 0 … 1): a fifth of the error
        that the target allows, so that learning one for the other costs at most 0.2 dB. Without a target, a
        quarter of an 8-bit level.
        """
        return 0.25 / 255 if self.target_psnr is None else 10 ** (-self.target_psnr / 20) / 5

    def epochs_for(self, frames: int, *, distinct: int | None = None) -> int:
        """Epochs that a segment of `frames`, so many of them `distinct`, is fitted for at most."""
        steps = self.epochs * math.ceil(frames / self.batch_frames)
        least = max(self.least_steps, LEAST_SHARE * steps)
        return max(self.epochs, math.ceil(least / math.ceil((distinct or frames) / self.batch_frames)))


def budget_share(frames: int, full: int) -> float:
    """1, 1/2, 1/4 or 1/8: the smallest that is at least frames / full.

    Few sizes, so that segments of a size have one architecture and can be decoded together.
    """
    return max(0.125, 2.0 ** math.ceil(math.log2(min(1.0, frames / full))))


def paper_profile(stages: int, reduction: float = 1.2) -> tuple[float, ...]:
    """Widths of HNeRV: each stage 1/1.2 of the one before."""
    return tuple(reduction**-i for i in range(stages + 1))


def paper_kernels(stages: int) -> tuple[int, ...]:
    """Kernel sizes of HNeRV: min(2i + 1, 5)."""
    return tuple(min(2 * i + 1, 5) for i in range(stages))


def _paper(name: str, parameters: int) -> Preset:
    return Preset(
        name=name,
        coded_pixels=None,
        parameters=parameters,
        strides=(5, 4, 4, 2, 2),
        kernels=paper_kernels(5),
        width_profile=paper_profile(5),
        max_segment_frames=132,
        epochs=300,
        batch_frames=2,
        learning_rate=1e-3,
        adam_beta2=0.999,
        clip_norm=math.inf,
        target_psnr=None,
    )


PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        # Two cores, minutes: capacity sits in the early stages, which is where features are read.
        Preset(
            name="demo",
            coded_pixels=128 * 320,
            parameters=910_000,
            strides=(4, 4, 2, 2),
            kernels=(1, 3, 3, 3),
            width_profile=(1.0, 0.75, 0.375, 0.156, 0.094),
            min_width=8,
            max_segment_frames=160,
            epochs=40,
            least_steps=1400,
            batch_frames=2,
            learning_rate=4e-3,
        ),
        # For tests: a fit takes at most two seconds.
        Preset(
            name="micro",
            coded_pixels=32 * 48,
            parameters=24_000,
            strides=(4, 2, 2),
            kernels=(1, 3, 3),
            width_profile=(1.0, 0.75, 0.375, 0.2),
            min_width=6,
            latent_channels=8,
            encoder_width=16,
            max_segment_frames=24,
            epochs=8,
            batch_frames=4,
            learning_rate=5e-3,
            target_psnr=24.0,
            adapter_routes=2,
            adapter_epochs=3,
            adapter_steps=0,
        ),
        Preset(
            name="nerv-micro",
            codec="nerv",
            coded_pixels=32 * 48,
            parameters=120_000,
            strides=(4, 2, 2),
            kernels=(3, 3, 3),
            width_profile=(1.0, 0.75, 0.375, 0.2),
            min_width=6,
            max_segment_frames=24,
            epochs=8,
            batch_frames=4,
            learning_rate=2e-3,
            target_psnr=24.0,
            adapter_routes=2,
            adapter_epochs=3,
            adapter_steps=0,
        ),
        Preset(
            name="nerv",
            codec="nerv",
            coded_pixels=None,
            parameters=3_000_000,
            strides=(5, 4, 4, 2, 2),
            kernels=(3, 3, 3, 3, 3),
            width_profile=(1.0, 0.9, 0.45, 0.3, 0.3, 0.3),
            max_segment_frames=132,
            epochs=300,
            batch_frames=2,
            learning_rate=5e-4,
            target_psnr=None,
        ),
        _paper("hnerv-0.35m", 350_000),
        _paper("hnerv-0.75m", 750_000),
        _paper("hnerv-1.5m", 1_500_000),
        _paper("hnerv-3m", 3_000_000),
    )
}


def find_preset(name: str) -> Preset:
    """The preset called `name`; UsageError naming those there are."""
    if name not in PRESETS:
        raise UsageError(f"preset {name!r}: there are {', '.join(sorted(PRESETS))}")
    return PRESETS[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """All that is needed to build a decoder. Stored with every segment as JSON.

    Frames are coded at `coded_height` × `coded_width`, of which the top left `content_height` ×
    `content_width` is the picture and the rest padding. `widths` are the channels of stages 0 … n.
    """

    codec: CodecKind
    content_height: int
    content_width: int
    coded_height: int
    coded_width: int
    latent_channels: int
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    kernels: tuple[int, ...]

    @property
    def latent_hw(self) -> tuple[int, int]:
        step = math.prod(self.strides)
        return self.coded_height // step, self.coded_width // step

    @property
    def stage_names(self) -> tuple[str, ...]:
        return (*(str(i) for i in range(len(self.widths))), RGB_STAGE)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one frame's latent: [c, h, w] for HNeRV, [1] (the frame's time in 0 … 1) for NeRV."""
        return (1,) if self.codec == "nerv" else (self.latent_channels, *self.latent_hw)

    def stage_shape(self, stage: str) -> tuple[int, int, int]:
        """[c, h, w] of a stage's output for one frame."""
        if stage == RGB_STAGE:
            return 3, self.coded_height, self.coded_width
        index = int(stage)
        scale = math.prod(self.strides[:index])
        h, w = self.latent_hw
        return self.widths[index], h * scale, w * scale

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Architecture:
        """Raises CodecError for a codec of a newer release."""
        fields = json.loads(text)
        if fields.get("codec") not in get_args(CodecKind):
            known = ", ".join(get_args(CodecKind))
            raise CodecError(f"codec {fields.get('codec')!r}: this release of nvpstore decodes {known}")
        lists = {k: tuple(v) for k, v in fields.items() if isinstance(v, list)}
        return Architecture(**{**fields, **lists})


def stage_parameters(arch: Architecture) -> tuple[int, ...]:
    """Parameters of each stage, biases included, in decode order."""
    w = arch.widths
    if arch.codec == "nerv":
        h, v = arch.latent_hw
        stem = 2 * POSITIONAL_LEVELS * NERV_HIDDEN + NERV_HIDDEN
        stem += (NERV_HIDDEN + 1) * w[0] * h * v
    else:
        stem = (arch.latent_channels + 1) * w[0]
    blocks = [
        (w[i] * k * k + 1) * w[i + 1] * s * s
        for i, (s, k) in enumerate(zip(arch.strides, arch.kernels, strict=True))
    ]
    return stem, *blocks, (w[-1] * 9 + 1) * 3


def stage_gflops(arch: Architecture) -> tuple[float, ...]:
    """GFLOPs (2 × MAC) of decoding one frame up to and including each stage, in decode order."""
    h, v = arch.latent_hw
    positions = [1 if arch.codec == "nerv" else h * v]
    for s in (1, *arch.strides[:-1]):
        h, v = h * s, v * s
        positions.append(h * v)  # a block's convolution runs before its PixelShuffle
    positions.append(arch.coded_height * arch.coded_width)
    macs = [n * p for n, p in zip(stage_parameters(arch), positions, strict=True)]
    total, out = 0.0, []
    for m in macs:
        total += 2 * m / 1e9
        out.append(total)
    return tuple(out)


def coded_size(height: int, width: int, preset: Preset) -> tuple[int, int, int, int]:
    """(content height, content width, coded height, coded width) for a source of this size.

    Where the picture is scaled down anyway it is scaled straight to multiples of the strides'
    product (no padding is coded); at source size it is padded up to them.
    """
    step = math.prod(preset.strides)

    def pad(x: float) -> int:
        return max(step, math.ceil(x / step) * step)

    if preset.coded_pixels is None or height * width <= preset.coded_pixels:
        return height, width, pad(height), pad(width)
    scale = math.sqrt(preset.coded_pixels / (height * width))
    h, w = (max(step, round(x * scale / step) * step) for x in (height, width))
    return h, w, h, w


def build_architecture(height: int, width: int, frames: int, preset: Preset) -> Architecture:
    """The widest architecture for a segment of `frames` of this size within the preset's parameter budget."""
    content_h, content_w, coded_h, coded_w = coded_size(height, width, preset)
    narrow = Architecture(
        codec=preset.codec,
        content_height=content_h,
        content_width=content_w,
        coded_height=coded_h,
        coded_width=coded_w,
        latent_channels=preset.latent_channels,
        widths=_widths(preset, 1),
        strides=preset.strides,
        kernels=preset.kernels,
    )
    full = preset.max_segment_frames
    budget = preset.parameters - full * math.prod(narrow.latent_shape)
    budget = round(budget * budget_share(frames, full))
    low, high = 1, 4096
    while low < high:  # the parameter count grows with the base width: bisect
        base = (low + high + 1) // 2
        wide = replace(narrow, widths=_widths(preset, base))
        low, high = (base, high) if sum(stage_parameters(wide)) <= budget else (low, base - 1)
    return replace(narrow, widths=_widths(preset, low))


def _widths(preset: Preset, base: int) -> tuple[int, ...]:
    return tuple(max(round(base * p), preset.min_width) for p in preset.width_profile)
