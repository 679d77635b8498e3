"""Backbones of torchvision (extra `torchvision`): ViTs as a chain of their blocks, others on their graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nvpstore.errors import TaskError
from nvpstore.tasks.backbones.model import Model, library
from nvpstore.tasks.backbones.torchvision_ops import make_torchvision_importable
from nvpstore.tasks.chain import Block, Tokens
from nvpstore.tasks.spec import TaskSpec


def build(spec: TaskSpec) -> Model:
    """`spec.model` is torchvision's name; as many outputs as `spec.labels`. `spec.options["build"]` goes to
    torchvision's builder.
    """
    make_torchvision_importable()
    models = library("torchvision.models", package="torchvision", model=spec.model)
    if spec.model not in models.list_models():
        raise TaskError(f"task {spec.name}: torchvision has no model {spec.model!r}")
    named: dict[str, Any] = {
        "weights": None,
        "num_classes": len(spec.labels),
        **spec.options.get("build", {}),
    }
    if spec.kind == "segmentation":
        net: nn.Module = models.get_model(spec.model, weights_backbone=None, **named)
        return Model(net=net, answers=_Out(net))
    if spec.model.startswith("vit_"):
        net = models.get_model(spec.model, image_size=_side(spec), **named)
        return Model(net=net, blocks=_vit(net))
    net = models.get_model(spec.model, **named)
    return Model(net=net, answers=net)


class _Out(nn.Module):
    """A segmentation network's main output."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x)["out"]


def _side(spec: TaskSpec) -> int:
    height, width = spec.preprocessing.height, spec.preprocessing.width
    if height != width:
        raise TaskError(f"task {spec.name}: {spec.model} looks at squares, not at {height}×{width}")
    return height


def _vit(net: Any) -> tuple[Block, ...]:
    side = net.image_size // net.patch_size

    def tokens() -> Tokens:
        return Tokens((side, side), first=1, position=lambda: net.encoder.pos_embedding[0, 1:])

    layers = (
        Block(name=f"layers.{i}", run=layer, form=tokens()) for i, layer in enumerate(net.encoder.layers)
    )
    return Block(name="embed", run=_Embed(net), form=tokens()), *layers, Block(name="head", run=_Head(net))


class _Embed(nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        net: Any = self.net
        patches = net._process_input(x)
        tokens = torch.cat([net.class_token.expand(len(x), -1, -1), patches], dim=1)
        placed: Tensor = tokens + net.encoder.pos_embedding
        return placed


class _Head(nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.norm, self.heads = net.encoder.ln, net.heads

    def forward(self, x: Tensor) -> Any:
        return self.heads(self.norm(x)[:, 0])
