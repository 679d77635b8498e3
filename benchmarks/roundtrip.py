"""A fit as it comes back from what is stored of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from nvpstore.codec.artifact import (
    decode_taps,
    load_decoder,
    load_latents,
    shown_rgb,
    store_latents,
    store_weights,
)
from nvpstore.codec.fit import FittedSegment
from nvpstore.codec.hnerv import Decoder
from nvpstore.storage.tables import encode_latents, encode_weights
from nvpstore.types import RGB_STAGE, StoredLatents, StoredStage


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What one segment's files hold."""

    stages: tuple[StoredStage, ...]
    latents: StoredLatents

    @property
    def payload_bytes(self) -> int:
        """Without what Parquet adds, or takes away."""
        tensors = [tensor for stage in self.stages for tensor in stage.tensors]
        payload = sum(len(tensor.payload) + len(tensor.scale) for tensor in tensors)
        return payload + self.latents.payload.nbytes + len(self.latents.scale)

    def files(self) -> tuple[bytes, bytes]:
        """The weights' and the latents' file as an archive has them, footers and all."""
        return encode_weights("w", self.stages).data, encode_latents("l", [self.latents]).data


def stored(fit: FittedSegment) -> Stored:
    pts = np.arange(len(fit.latents), dtype=np.int64)
    return Stored(
        stages=store_weights(fit.decoder, segment=0, steps=fit.steps),
        latents=store_latents(fit.latents, segment=0, start_frame=0, pts=pts, steps=fit.latent_steps),
    )


def networks(fit: FittedSegment, kept: Stored, device: str) -> tuple[Decoder, Tensor]:
    """Decoder and latents as they are loaded for a query."""
    stages = [stage.tensors for stage in kept.stages]
    return load_decoder(fit.arch, stages, device=device), load_latents(kept.latents)


def pictures(
    fit: FittedSegment, decoder: Decoder, latents: Tensor, size: tuple[int, int]
) -> Iterator[Tensor]:
    """Batches [t, 3, h, w] in 0 … 255 at source size, on the CPU."""
    for taps in decode_taps(decoder, latents, (RGB_STAGE,)):
        yield shown_rgb(taps[RGB_STAGE].float(), fit.arch, *size).cpu()
