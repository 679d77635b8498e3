"""Weights of backbones: read without running any code of the file's, and told apart by their digest."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from nvpstore.errors import TaskError

WRAPPED = ("state_dict", "model_state", "model")  # what published checkpoints keep their weights under
COUNTER = "num_batches_tracked"  # of training; older checkpoints lack it
SHOWN = 3  # names in an error


def digest_of(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a checkpoint that torch reads with `weights_only`.

    Raises TaskError for anything else, and for a pickle with code in it.
    """
    if not path.is_file():
        raise TaskError(f"weights {path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return _tensors(torch.load(path, weights_only=True, map_location="cpu"), path)
    except SafetensorError as cause:
        raise TaskError(f"weights {path}: not a safetensors file: {cause}") from cause
    except (pickle.UnpicklingError, RuntimeError, EOFError) as cause:
        said = str(cause).splitlines()[0]
        raise TaskError(
            f"weights {path}: allowed are safetensors, and checkpoints of tensors alone (a pickle that runs "
            f"code is never loaded): {said}"
        ) from cause


def as_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a safetensors file; the same for the same tensors."""
    return save({name: tensors[name].contiguous().clone() for name in sorted(tensors)})


def load_into(net: nn.Module, tensors: Mapping[str, Tensor], *, what: str) -> None:
    """Raises TaskError naming what is missing, unknown or of another shape."""
    own = net.state_dict()
    missing = [name for name in own if name not in tensors and not name.endswith(COUNTER)]
    unknown = [name for name in tensors if name not in own]
    other = [
        f"{name} {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    for problem, names in (("missing", missing), ("unknown", unknown), ("of another shape", other)):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise TaskError(f"{what}: weights {problem}: {', '.join(names[:SHOWN])}{more}")
    net.load_state_dict(dict(tensors), strict=False)


def _tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    for name in WRAPPED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise TaskError(f"weights {path}: not a mapping of names to tensors")
    return dict(loaded)
