"""A micro adapter as stored tensors and back, 8 bit. What is measured is always what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
import torch

from nvpstore.adapters.micro import MicroAdapter
from nvpstore.codec.grids import WHOLE, Region, moving
from nvpstore.codec.quantize import decode_tensor, encode_exact, encode_tensor
from nvpstore.errors import CodecError
from nvpstore.types import StoredTensor

REGION = "region"  # left, top, right, bottom; absent: the whole coded picture
MOTION = "motion"  # 1; absent: convolutions see no motion


def store_adapter(adapter: MicroAdapter) -> tuple[StoredTensor, ...]:
    """The adapter's tensors."""
    tensors = [encode_tensor(k, v.detach().float().cpu().numpy()) for k, v in adapter.state_dict().items()]
    if adapter.region != WHOLE:
        tensors.append(encode_exact(REGION, np.array(astuple(adapter.region), dtype=np.float32)))
    if adapter.motion:
        tensors.append(encode_exact(MOTION, np.ones(1, dtype=np.float32)))
    return tuple(tensors)


def load_adapter(
    tensors: Sequence[StoredTensor],
    stages: tuple[str, ...],
    shapes: Sequence[tuple[int, ...]],
    *,
    frames: int = 1,
) -> MicroAdapter:
    """The adapter that `store_adapter` stored; `frames` pictures are one unit of its task.

    Raises CodecError where the tensors are not of this cut.
    """
    state = {t.name: torch.from_numpy(decode_tensor(t)) for t in tensors}
    region = WHOLE if REGION not in state else Region(**_sides(state.pop(REGION).tolist()))
    motion = state.pop(MOTION, None) is not None
    try:
        first = moving([shape[1:] for shape in shapes if len(shape) > 2])[0]
        channels = (state["convs.0.weight"].shape[1] - region.reaches_outside) // (1 + (motion and first))
        adapter = MicroAdapter(stages, (channels,), shapes, region=region, frames=frames, motion=motion)
        adapter.load_state_dict(state)
    except (KeyError, IndexError, RuntimeError) as cause:
        raise CodecError(f"a stored adapter does not fit its cut: {cause}") from cause
    return adapter.requires_grad_(False).eval()


def _sides(values: Sequence[float]) -> dict[str, float]:
    return dict(zip(("left", "top", "right", "bottom"), values, strict=True))
