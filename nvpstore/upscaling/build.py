"""Every number of the upscaler's networks: presets, and what can be derived from one.

InstaVSR: Hu et al., "InstaVSR: Taming Diffusion for Efficient and Temporally Consistent Video
Super-Resolution". The pruned backbone follows AdcSR: Chen et al., "Adversarial Diffusion Compression for
Real-World Image Super-Resolution", CVPR 2025.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from nvpstore.errors import CodecError, UsageError

FACTORS = (2, 4)
WINDOW = 5  # frames that the net sees: the centre and two on either side
REACH = WINDOW // 2
OTHERS = WINDOW - 1
WARM_UP = 8  # frames before a stretch, upscaled only for the state that they leave
STRETCH = 32  # frames of a scene that are upscaled from one state: random access costs at most these


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A U-Net over cells of `patch` × `patch` output pixels (PixelUnshuffle in place of a VAE encoder).

    Level i has `widths[i]` channels at 1/2^i of the cells' resolution and `layers` residual blocks on each
    way; where `attention[i]`, each is followed by self-attention within windows of `attention_window`² cells
    (None: no level has any). With `skip_each` every block of the way down has its skip, as in SD's U-Net,
    else each level has one. `norm_groups`: None for no normalisation, else group normalisation with
    statistics that are fixed after calibration, since those of a tile are not those of its frame.
    `decoder_width`: channels at half the output's resolution. `time_width` is the time embedding's, which
    only a teacher has.
    """

    patch: int
    widths: tuple[int, ...]
    layers: int
    middle_layers: int
    decoder_width: int
    attention: tuple[bool, ...]
    attention_window: int = 16
    skip_each: bool = False
    head_channels: int = 64
    norm_groups: int | None = None
    time_width: int = 64

    def __post_init__(self) -> None:
        if self.patch < 4 or self.patch & (self.patch - 1):
            raise ValueError(f"patch {self.patch}: a power of two from 4 on is needed")
        if not self.widths or len(self.attention) != len(self.widths):
            raise ValueError(f"{len(self.widths)} widths and {len(self.attention)} attention flags")

    @property
    def picture_channels(self) -> int:
        """Of one RGB picture in cells."""
        return 3 * self.patch * self.patch

    @property
    def deepest(self) -> int:
        """Cells of the first level that one of the deepest level covers: sides are multiples of it."""
        return 1 << (len(self.widths) - 1)

    @property
    def alignment(self) -> int:
        """Cells that tiles begin at multiples of: within a tile all windows lie as in the whole."""
        windows = [self.attention_window << i for i, used in enumerate(self.attention) if used]
        return max([self.deepest, *windows])

    def scaled(self, share: float) -> Geometry:
        """All widths times `share`, in steps of 8."""
        widths = tuple(max(8, round(width * share / 8) * 8) for width in self.widths)
        decoder = max(8, round(self.decoder_width * share / 8) * 8)
        return Geometry(**{**asdict(self), "widths": widths, "decoder_width": decoder})

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Geometry:
        """Raises CodecError where it is none of ours."""
        try:
            values = json.loads(text)
            lists = {name: tuple(values[name]) for name in ("widths", "attention")}
            return cls(**{**values, **lists})
        except (ValueError, TypeError, KeyError) as cause:
            raise CodecError(f"not an upscaler's geometry: {text[:80]!r} ({cause})") from cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A geometry before pruning, and the share of channels that pruning takes."""

    name: str
    geometry: Geometry
    pruning: float


PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        # One million parameters once it is pruned: a CPU upscales 160x320 twofold in a fraction of a second.
        Preset(
            name="tiny",
            geometry=Geometry(
                patch=4,
                widths=(64, 96, 128),
                layers=2,
                middle_layers=1,
                decoder_width=16,
                attention=(False, False, False),
            ),
            pruning=0.25,
        ),
        # SD-Turbo's U-Net (320, 640, 1280, 1280, attention on three levels) at 75 % width.
        Preset(
            name="full",
            geometry=Geometry(
                patch=8,
                widths=(240, 480, 960, 960),
                layers=2,
                middle_layers=2,
                decoder_width=64,
                attention=(True, True, True, False),
                norm_groups=24,
                head_channels=48,
                skip_each=True,
                time_width=960,
            ),
            pruning=0.0,
        ),
        # For tests: a forward pass takes milliseconds.
        Preset(
            name="micro",
            geometry=Geometry(
                patch=4,
                widths=(8, 16),
                layers=1,
                middle_layers=1,
                decoder_width=8,
                attention=(False, False),
                time_width=16,
            ),
            pruning=0.25,
        ),
    )
}


def preset(name: str) -> Preset:
    """Raises UsageError for a name that is none."""
    if name not in PRESETS:
        raise UsageError(f"upscaler preset {name!r}: known are {', '.join(sorted(PRESETS))}")
    return PRESETS[name]


def check_factor(factor: int) -> int:
    """Raises UsageError unless it is offered."""
    if factor not in FACTORS:
        raise UsageError(f"upscale {factor}: allowed is {' or '.join(map(str, FACTORS))}")
    return factor
