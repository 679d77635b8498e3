"""Backbones of timm (extra `timm`): ViTs as a chain of their blocks, all others on their graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nvpstore.tasks.backbones.model import Call, Model, library
from nvpstore.tasks.backbones.torchvision_ops import make_torchvision_importable
from nvpstore.tasks.chain import Block, Tokens
from nvpstore.tasks.spec import TaskSpec


def build(spec: TaskSpec) -> Model:
    """`spec.model` is timm's name; as many outputs as `spec.labels`, pooled features where there are none."""
    make_torchvision_importable()
    timm = library("timm", package="timm", model=spec.model)
    size = (spec.preprocessing.height, spec.preprocessing.width)
    named = _named(timm, spec.model)
    sized = {"img_size": size} if named.startswith(("vit_", "deit", "eva")) else {}
    net: nn.Module = timm.create_model(
        spec.model, pretrained=False, num_classes=len(spec.labels), **sized, **spec.options.get("build", {})
    )
    if type(net).__name__ == "VisionTransformer":
        return Model(net=net, blocks=_vit(net))
    return Model(net=net, answers=net)


def _named(timm: Any, model: str) -> str:
    return model.removeprefix("timm/").split(".")[0]


def _vit(net: Any) -> tuple[Block, ...]:
    """Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021."""
    grid, first = net.patch_embed.grid_size, net.num_prefix_tokens
    position: Tensor | None = net.pos_embed
    if position is not None:
        position = position[0] if net.no_embed_class else position[0, first:]

    def tokens() -> Tokens:
        return Tokens(grid, first=first, position=position)

    embed = Call(net, "patch_embed", "_pos_embed", "patch_drop", "norm_pre")
    blocks = (Block(name=f"blocks.{i}", run=block, form=tokens()) for i, block in enumerate(net.blocks))
    return (
        Block(name="embed", run=embed, form=tokens()),
        *blocks,
        Block(name="head", run=Call(net, "norm", "forward_head")),
    )
