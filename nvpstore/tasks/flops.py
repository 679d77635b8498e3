"""GFLOPs (2 × MAC) counted while something runs, attention included."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


@contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """Gives a function that says how many FLOPs were spent so far."""
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_FUSED) as counter:
        yield counter.get_total_flops


def gflops(module: Callable[..., object], *inputs: Tensor) -> float:
    """GFLOPs of one call."""
    with counting() as spent:
        module(*inputs)
        return spent() / 1e9


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _self_attention(query: Sequence[int], *_: Any, **__: Any) -> int:
    """Of tokens [b, n, d]: their queries, keys and values, attention, and what is made of it."""
    b, n, d = query
    return 2 * b * n * d * 4 * d + 2 * b * n * n * 2 * d


# torch counts neither: it knows attention's kernels of GPUs only.
_FUSED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._native_multi_head_attention: _self_attention,
}
