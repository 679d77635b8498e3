"""Backbones of timm (extra `timm`): ViTs as a chain of their blocks, all others on their graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nvpstore.errors import TaskError
from nvpstore.tasks.backbones.model import Call, Model, library
from nvpstore.tasks.backbones.torchvision_ops import make_torchvision_importable
from nvpstore.tasks.chain import Block, Tokens
from nvpstore.tasks.spec import TaskSpec


def build(spec: TaskSpec) -> Model:
    """`spec.model` is timm's name; as many outputs as `spec.labels`, pooled features where there are none.
    `spec.options["build"]` goes to timm's builder.
    """
    make_torchvision_importable()
    timm = library("timm", package="timm", model=spec.model)
    if not timm.is_model(spec.model):
        raise TaskError(f"task {spec.name}: timm has no model {spec.model!r}")
    named: dict[str, Any] = {"num_classes": len(spec.labels), **spec.options.get("build", {})}
    published = timm.get_pretrained_cfg(spec.model)
    if published is not None and published.fixed_input_size:
        named.setdefault("img_size", (spec.preprocessing.height, spec.preprocessing.width))
    net: nn.Module = timm.create_model(spec.model, pretrained=False, **named)
    if isinstance(net, timm.models.vision_transformer.VisionTransformer):
        return Model(net=net, blocks=_vit(net))
    if isinstance(net, timm.models.eva.Eva):
        return Model(net=net, blocks=_eva(net))
    return Model(net=net, answers=net)


def _vit(net: Any) -> tuple[Block, ...]:
    """Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021."""
    embed = Call(net, "patch_embed", "_pos_embed", "patch_drop", "norm_pre")
    blocks = (Block(name=f"blocks.{i}", run=block, form=_tokens(net)) for i, block in enumerate(net.blocks))
    return (
        Block(name="embed", run=embed, form=_tokens(net)),
        *blocks,
        Block(name="head", run=Call(net, "norm", "forward_head")),
    )


def _eva(net: Any) -> tuple[Block, ...]:
    """ViTs with rotary positions: EVA-02, DINOv3."""
    blocks = (
        Block(name=f"blocks.{i}", run=_Rotary(net, i), form=_tokens(net)) for i in range(len(net.blocks))
    )
    return (
        Block(name="embed", run=_EvaEmbed(net), form=_tokens(net)),
        *blocks,
        Block(name="head", run=Call(net, "norm", "forward_head")),
    )


def _tokens(net: Any) -> Tokens:
    first = net.num_prefix_tokens

    def position() -> Tensor:
        own: Tensor = net.pos_embed[0]
        return own if net.no_embed_class else own[first:]

    added = net.pos_embed is not None
    return Tokens(net.patch_embed.grid_size, first=first, position=position if added else None)


class _EvaEmbed(nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        net: Any = self.net
        return net.norm_pre(net._pos_embed(net.patch_embed(x))[0])


class _Rotary(nn.Module):
    """A block that turns its queries and keys by their positions."""

    def __init__(self, net: Any, at: int) -> None:
        super().__init__()
        self.block, self.rope = net.blocks[at], net.rope
        self.grid = net.patch_embed.grid_size
        self.layer, self.mixed = at, bool(getattr(net, "rope_mixed", False))  # mixed: each layer has its own

    def forward(self, x: Tensor) -> Any:
        rope: Any = self.rope
        turns: Any = None if rope is None else rope.get_embed(shape=self.grid)
        return self.block(x, rope=turns[self.layer] if self.mixed else turns)
