"""What happens to sharp clips before they are upscaled again in training: size, blur, noise, codecs."""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nvpstore.errors import UsageError

BLUR_KERNEL = 13  # pixels: three standard deviations of the widest blur on either side
BLOCK = 2  # H.264 takes even sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How often a clip is blurred (standard deviations in pixels of the sharp one), noisy, or coded; and
    how often it is what its fitted network shows, where it has one.

    What remains is antialiased bicubic alone. `stored`: how often the sharp clip itself is what H.264 left of
    it, as of nearly all video that comes: its detail is not that of photographs.
    """

    stored: float = 0.0
    stored_crf: tuple[int, int] = (14, 28)
    decoded: float = 0.5
    blur: float = 0.25
    blur_pixels: tuple[float, float] = (0.3, 1.2)
    noise: float = 0.2
    noise_levels: tuple[float, float] = (0.002, 0.02)
    jpeg: float = 0.12
    jpeg_quality: tuple[int, int] = (50, 95)
    h264: float = 0.12
    h264_crf: tuple[int, int] = (16, 30)

    def __post_init__(self) -> None:
        for name in ("stored", "decoded", "blur", "noise", "jpeg", "h264"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} {getattr(self, name)}: a share from 0 to 1 is needed")


CLEAN = Recipe(decoded=0, blur=0, noise=0, jpeg=0, h264=0)


def stored(sharp: Tensor, recipe: Recipe, chance: torch.Generator) -> Tensor:
    """The sharp clip [t, 3, H, W] to learn from, or what H.264 leaves of it."""
    if not recipe.stored or not _happens(recipe.stored, chance):
        return sharp
    return as_h264(sharp, round(_between(recipe.stored_crf, chance)))


def degrade(
    sharp: Tensor, factor: int, recipe: Recipe, chance: torch.Generator, *, decoded: Tensor | None = None
) -> Tensor:
    """A clip [t, 3, H, W] in 0 … 1 → [t, 3, H/factor, W/factor], as 8 bit would hold it.

    `decoded`: the same clip as a fitted network shows it. Where that is what gets small, no other degradation
    is added: its own are enough.
    """
    if decoded is not None and _happens(recipe.decoded, chance):
        return in_bytes(smaller(decoded, factor))
    if _happens(recipe.blur, chance):
        sharp = blurred(sharp, *(_between(recipe.blur_pixels, chance) for _ in range(2)))
    low = smaller(sharp, factor)
    if _happens(recipe.noise, chance):
        noise = torch.randn(low.shape, generator=chance)
        low = low + _between(recipe.noise_levels, chance) * noise
    low = in_bytes(low)
    if _happens(recipe.jpeg, chance):
        return as_jpeg(low, round(_between(recipe.jpeg_quality, chance)))
    if _happens(recipe.h264, chance):
        return as_h264(low, round(_between(recipe.h264_crf, chance)))
    return low


def smaller(pictures: Tensor, factor: int) -> Tensor:
    """Antialiased bicubic, [t, 3, H, W] → [t, 3, H/factor, W/factor]; sides are multiples of it."""
    size = (pictures.shape[-2] // factor, pictures.shape[-1] // factor)
    return F.interpolate(pictures, size, mode="bicubic", antialias=True)


def in_bytes(pictures: Tensor) -> Tensor:
    """Rounded to what 8 bit can hold."""
    return (pictures * 255).round().clamp(0, 255) / 255


def blurred(pictures: Tensor, across: float, down: float) -> Tensor:
    """A Gaussian of these standard deviations, in pixels."""
    at = torch.arange(BLUR_KERNEL) - BLUR_KERNEL // 2
    rows, columns = (torch.exp(-0.5 * (at / s) ** 2) for s in (down, across))
    kernel = torch.outer(rows / rows.sum(), columns / columns.sum())
    padded = F.pad(pictures, [BLUR_KERNEL // 2] * 4, mode="replicate")
    return F.conv2d(padded, kernel.expand(3, 1, -1, -1).to(pictures), groups=3)


def as_jpeg(pictures: Tensor, quality: int) -> Tensor:
    """Each frame through JPEG."""
    found = []
    for rgb_hwc in _bytes(pictures):
        buffer = io.BytesIO()
        Image.fromarray(rgb_hwc).save(buffer, "jpeg", quality=quality)
        found.append(torch.from_numpy(np.array(Image.open(buffer))))
    return torch.stack(found).permute(0, 3, 1, 2).float() / 255


def as_h264(pictures: Tensor, crf: int) -> Tensor:
    """The clip through x264. Odd sides lose nothing: the last row or column is coded twice."""
    height, width = pictures.shape[-2:]
    even = F.pad(pictures, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": str(crf), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = even.shape[3], even.shape[2], "yuv420p"
        stream.codec_context.thread_count = 1
        for i, rgb_hwc in enumerate(_bytes(even)):
            frame = av.VideoFrame.from_ndarray(rgb_hwc, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer, "r") as coded:
        frames = [frame.to_ndarray(format="rgb24") for frame in coded.decode(video=0)]
    decoded = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    return decoded[:, :, :height, :width]


def _bytes(pictures: Tensor) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    thwc = (pictures * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    return list(np.ascontiguousarray(thwc.cpu().numpy()))


def _happens(share: float, chance: torch.Generator) -> bool:
    return bool(torch.rand((), generator=chance) < share)


def _between(bounds: tuple[float, float], chance: torch.Generator) -> float:
    low, high = bounds
    return low + (high - low) * float(torch.rand((), generator=chance))
