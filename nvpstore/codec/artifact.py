"""A fitted segment as stored values, and a decoder to any stage from stored values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nvpstore.codec.build import Architecture
from nvpstore.codec.hnerv import Decoder, on_device
from nvpstore.codec.quantize import decode_latents, decode_tensor, encode_latents, encode_tensor
from nvpstore.errors import CodecError
from nvpstore.types import StoredLatents, StoredStage, StoredTensor


def store_weights(
    decoder: Decoder, *, segment: int, steps: Mapping[str, Tensor] | None = None
) -> tuple[StoredStage, ...]:
    """The decoder's stages in decode order, 8 bit; `steps` [o] of kernels that learned theirs, by name."""
    return tuple(
        StoredStage(
            segment=segment,
            stage=name,
            tensors=tuple(
                _stored_tensor(key, value, (steps or {}).get(f"stages.{number}.{key}"))
                for key, value in stage.state_dict().items()
            ),
        )
        for number, (name, stage) in enumerate(zip(decoder.names, decoder.stages, strict=True))
    )


def _stored_tensor(name: str, value: Tensor, steps: Tensor | None) -> StoredTensor:
    values = value.detach().float().cpu().contiguous().numpy()
    return encode_tensor(name, values, None if steps is None else steps.numpy())


def store_latents(
    latents: Tensor,
    *,
    segment: int,
    start_frame: int,
    pts: NDArray[np.int64],
    steps: Tensor | None = None,
) -> StoredLatents:
    """Latents [t, …] of a segment's frames, 8 bit at most; `steps` [c] if they learned to be rounded."""
    values = latents.detach().float().cpu().contiguous().numpy()
    encoding, scale, payload = encode_latents(values, None if steps is None else steps.cpu().numpy())
    return StoredLatents(
        segment=segment,
        frames=np.arange(start_frame, start_frame + len(values), dtype=np.int64),
        pts=pts,
        shape=values.shape[1:],
        encoding=encoding,
        scale=scale,
        payload=payload,
    )


def load_latents(stored: StoredLatents) -> Tensor:
    """Latents float32 [t, …]."""
    return torch.from_numpy(decode_latents(stored.encoding, stored.scale, stored.payload, stored.shape))


def load_decoder(
    arch: Architecture, stages: Sequence[Sequence[StoredTensor]], *, device: str = "cpu"
) -> Decoder:
    """A decoder of the first `len(stages)` stages, ready to run; CodecError where tensors do not fit."""
    last = arch.stage_names[len(stages) - 1]
    with torch.device("meta"):  # no memory and no initialisation for weights that are replaced at once
        decoder = Decoder(arch, last=last)
    for name, module, tensors in zip(decoder.names, decoder.stages, stages, strict=True):
        state = {t.name: torch.from_numpy(decode_tensor(t)) for t in tensors}
        try:
            module.load_state_dict(state, assign=True)
        except RuntimeError as cause:
            raise CodecError(f"stage {name} does not fit its architecture: {cause}") from cause
    return on_device(decoder.requires_grad_(False).eval(), device)


@torch.inference_mode()
def decode_taps(
    decoder: Decoder, latents: Tensor, stages: Sequence[str], *, batch_frames: int = 16
) -> Iterator[dict[str, Tensor]]:
    """Outputs of `stages` for latents [t, …], `batch_frames` at a time, on the decoder's device."""
    device = next(decoder.parameters()).device
    for part in latents.split(batch_frames):
        yield decoder.taps(part.to(device), stages)


def shown_rgb(rgb: Tensor, arch: Architecture, height: int, width: int) -> Tensor:
    """The `rgb` stage's output [t, 3, H, W] as exported: uint8 [t, 3, height, width] at source size.

    Padding is cropped; where coded size and source size differ, bicubic resampling follows.
    """
    content = rgb[:, :, : arch.content_height, : arch.content_width]
    if content.shape[2:] != (height, width):
        content = F.interpolate(content, (height, width), mode="bicubic", align_corners=False)
    return (content.clamp(0, 1) * 255).round().to(torch.uint8)


def content_rgb(rgb: Tensor, arch: Architecture) -> Tensor:
    """The `rgb` stage's output [t, 3, H, W] without padding, as 8-bit values 0 … 255 (float)."""
    content = rgb[:, :, : arch.content_height, : arch.content_width]
    return (content.float().clamp(0, 1) * 255).round()


def coded_frames(rgb_tchw: Tensor, arch: Architecture) -> Tensor:
    """Source frames uint8 [t, 3, h, w] → what is fitted: float32 [t, 3, H, W] in 0 … 1.

    Edges are repeated as padding.
    """
    x = rgb_tchw.float() / 255
    if x.shape[2:] != (arch.content_height, arch.content_width):
        size = (arch.content_height, arch.content_width)
        x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return padded(x, arch)


def padded(content: Tensor, arch: Architecture) -> Tensor:
    """Pictures [t, 3, h, w] at the coded size, their edges repeated."""
    bottom, right = arch.coded_height - content.shape[2], arch.coded_width - content.shape[3]
    return F.pad(content, (0, right, 0, bottom), mode="replicate") if bottom or right else content
