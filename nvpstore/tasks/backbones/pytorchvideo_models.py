"""Models of actions from pytorchvideo (extra `pytorchvideo`): SlowFast and I3D, as chains of their blocks.

Feichtenhofer et al., "SlowFast networks for video recognition", ICCV 2019; Carreira and Zisserman, "Quo
vadis, action recognition?", CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nvpstore.errors import TaskError
from nvpstore.tasks.backbones.model import Model, library
from nvpstore.tasks.backbones.torchvision_ops import make_torchvision_importable
from nvpstore.tasks.chain import Block, Maps, Pathways
from nvpstore.tasks.spec import TaskSpec

SLOWFAST_ALPHA = 4  # the fast pathway has so many times the frames of the slow one
MODELS = ("slowfast_r50", "i3d_r50")


def build(spec: TaskSpec) -> Model:
    """`spec.model` is "slowfast_r50" or "i3d_r50"; `spec.options["build"]` goes to pytorchvideo's builder."""
    make_torchvision_importable()
    if spec.model not in MODELS:
        raise TaskError(f"task {spec.name}: pytorchvideo models {', '.join(MODELS)} are known")
    hub = library("pytorchvideo.models.hub", package="pytorchvideo", model=spec.model)
    options = {"model_num_class": len(spec.labels), **spec.options.get("build", {})}
    net = getattr(hub, spec.model)(pretrained=False, **options)
    chain = _slowfast(net) if spec.model == "slowfast_r50" else _i3d(net)
    return Model(net=net, blocks=tuple(chain))


class PackPathways(nn.Module):
    """Clips [b, 3, T, H, W] → [every fourth picture, all pictures]."""

    def forward(self, x: Tensor) -> list[Tensor]:
        slow = torch.linspace(0, x.shape[2] - 1, x.shape[2] // SLOWFAST_ALPHA, device=x.device).long()
        return [x.index_select(2, slow), x]


class _OwnList(nn.Module):
    """A block that changes the list that it is given, on a list of its own."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, state: list[Tensor]) -> Any:
        return self.block(list(state))


class _Across(nn.Module):
    """A block of each pathway side by side, and what joins them behind it, if anything."""

    def __init__(self, blocks: Sequence[nn.Module], fusion: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.fusion = fusion

    def forward(self, state: list[Tensor]) -> Any:
        after = [block(x) for block, x in zip(self.blocks, state, strict=True)]
        return after if self.fusion is None else self.fusion(after)


def _slowfast(net: Any) -> Iterator[Block]:
    yield Block(name="pack", run=PackPathways())
    stem, *stages, pool, head = net.blocks
    yield Block(name="blocks.0", run=_OwnList(stem), form=Pathways())
    for i, stage in enumerate(stages, start=1):
        rows = list(zip(*(pathway.res_blocks for pathway in stage.multipathway_blocks), strict=True))
        for j, blocks in enumerate(rows):
            fusion = stage.multipathway_fusion if j == len(rows) - 1 else None
            yield Block(name=f"blocks.{i}.{j}", run=_Across(blocks, fusion), form=Pathways())
    yield Block(name="pool", run=_OwnList(pool))
    yield Block(name="head", run=head)


def _i3d(net: Any) -> Iterator[Block]:
    *stages, head = net.blocks
    for i, stage in enumerate(stages):
        parts = getattr(stage, "res_blocks", None)
        if parts is None:
            yield Block(name=f"blocks.{i}", run=stage, form=Maps())
            continue
        for j, part in enumerate(parts):
            yield Block(name=f"blocks.{i}.{j}", run=part, form=Maps())
    yield Block(name="head", run=head)
