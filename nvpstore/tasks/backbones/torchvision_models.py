"""Backbones of torchvision (extra `torchvision`), on their graphs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nvpstore.tasks.backbones.model import Model, library
from nvpstore.tasks.backbones.torchvision_ops import make_torchvision_importable
from nvpstore.tasks.spec import TaskSpec


class _Out(nn.Module):
    """A segmentation network's main output."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x)["out"]


def build(spec: TaskSpec) -> Model:
    """`spec.model` is torchvision's name; as many outputs as `spec.labels`."""
    make_torchvision_importable()
    models = library("torchvision.models", package="torchvision", model=spec.model)
    named: dict[str, Any] = {"weights": None, "num_classes": len(spec.labels)}
    if spec.kind == "segmentation":
        net: nn.Module = models.get_model(spec.model, weights_backbone=None, **named)
        return Model(net=net, answers=_Out(net))
    net = models.get_model(spec.model, **named)
    return Model(net=net, answers=net)
