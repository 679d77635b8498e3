"""A micro adapter as stored tensors and back, 8 bit. What is measured is always what comes back."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nvpstore.adapters.micro import MicroAdapter
from nvpstore.codec.quantize import decode_tensor, encode_tensor
from nvpstore.errors import CodecError
from nvpstore.types import StoredTensor


def store_adapter(adapter: MicroAdapter) -> tuple[StoredTensor, ...]:
    """The adapter's tensors."""
    return tuple(encode_tensor(k, v.detach().float().cpu().numpy()) for k, v in adapter.state_dict().items())


def load_adapter(
    tensors: Sequence[StoredTensor], stages: tuple[str, ...], shapes: Sequence[tuple[int, ...]]
) -> MicroAdapter:
    """The adapter that `store_adapter` stored. Raises CodecError where the tensors are not of this cut."""
    state = {t.name: torch.from_numpy(decode_tensor(t)) for t in tensors}
    try:
        adapter = MicroAdapter(stages, (state["convs.0.weight"].shape[1],), shapes)
        adapter.load_state_dict(state)
    except (KeyError, RuntimeError) as cause:
        raise CodecError(f"a stored adapter does not fit its cut: {cause}") from cause
    return adapter.requires_grad_(False).eval()
