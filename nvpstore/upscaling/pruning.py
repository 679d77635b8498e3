"""Taking channels out of a folded upscaler, and rebuilding a net whose channels were taken.

Which channels depend on which is found by torch-pruning on the traced graph (Fang et al., "DepGraph: Towards
Any Structural Pruning", CVPR 2023); those whose weights are smallest go.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nvpstore.errors import UsageError
from nvpstore.upscaling.build import WINDOW
from nvpstore.upscaling.net import Upscaler
from nvpstore.upscaling.parts import Downsample2D, Upsample2D

CHANNEL_STEP = 8  # what is left is a multiple of this: kernels are fast on such widths


def prune(net: Upscaler, ratio: float) -> Upscaler:
    """The same net with `ratio` of the channels of each layer taken out, in place. It needs fine-tuning.

    Raises UsageError for a ratio that is not in 0 … 1, or for a net with norms or attention.
    """
    if not 0 <= ratio < 1:
        raise UsageError(f"pruning ratio {ratio}: a share from 0 to below 1 is needed")
    if net.geometry.norm_groups is not None or any(net.geometry.attention):
        raise UsageError("only nets without norms and attention are pruned")
    if ratio == 0:
        return net
    import torch_pruning  # only training prunes

    side = net.geometry.deepest
    cells = torch.zeros(1, WINDOW * net.geometry.picture_channels, side, side)
    pruner = torch_pruning.pruner.BasePruner(
        net,
        cells,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        round_to=CHANNEL_STEP,
        # The last PixelShuffles fix how many channels they are given.
        ignored_layers=[net.decoder.first, net.decoder.inner, net.decoder.last],
    )
    pruner.step()
    _agree(net)
    return net


def shaped_like(net: Upscaler, tensors: Mapping[str, Tensor]) -> Upscaler:
    """`net` with each convolution as wide as its weight in `tensors`, in place: how a pruned net is read."""
    for name, module in list(net.named_modules()):
        weight = tensors.get(f"{name}.weight")
        if isinstance(module, nn.Conv2d) and weight is not None and weight.shape != module.weight.shape:
            _replace(net, name, _conv_of(weight, module))
    _agree(net)
    return net


def _conv_of(weight: Tensor, like: nn.Conv2d) -> nn.Conv2d:
    kernel, padding = like.kernel_size, like.padding
    assert not isinstance(padding, str), "ours are numbers"
    return nn.Conv2d(
        weight.shape[1],
        weight.shape[0],
        (kernel[0], kernel[1]),
        stride=(like.stride[0], like.stride[1]),
        padding=(padding[0], padding[1]),
        bias=like.bias is not None,
    )


def _replace(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, module)


def _agree(net: nn.Module) -> None:
    """diffusers' sampling blocks compare what they are given with the width that they were built for."""
    for module in net.modules():
        if isinstance(module, Downsample2D | Upsample2D):
            assert isinstance(module.conv, nn.Conv2d), "ours are made with use_conv"
            module.channels = module.conv.in_channels
