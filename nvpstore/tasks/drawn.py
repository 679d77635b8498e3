"""Networks whose weights are drawn at random: for figures of cost, and to try what needs no meaning."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

UNITS = 2  # of noise
DRAWN_STD = 0.02


@torch.no_grad()
def settle(net: nn.Module, run: Callable[[Tensor], object], input_shape: tuple[int, ...]) -> None:
    """Give the BatchNorms of an untrained `net` the statistics of noise, and no scale or layer nothing but 0.

    As libraries begin them, signals vanish on the way (to 1e-10 in MobileNets), branches and heads are
    switched off: all pictures would look alike.
    """
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for module in net.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=DRAWN_STD)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all that is seen, not a moving one
        norm.train()
        if norm.affine and not norm.weight.any():
            nn.init.ones_(norm.weight)
    if norms:
        run(torch.randn(UNITS, *input_shape))
    for norm in norms:
        norm.eval()
