"""An upscaler as a file: safetensors at half precision, the geometry in its header."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nvpstore.errors import CodecError
from nvpstore.upscaling.build import Geometry
from nvpstore.upscaling.net import Upscaler
from nvpstore.upscaling.pruning import shaped_like

SHIPPED = "tiny.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A net for reading frames, and what is known of it. `name` says in files which model made a picture."""

    net: Upscaler
    name: str
    digest: str


def save(net: Upscaler, path: Path, *, name: str) -> None:
    """Write `net` (folded) with its geometry, renamed into place when whole."""
    tensors = {key: value.half().cpu().contiguous() for key, value in net.state_dict().items()}
    part = path.with_name(f".{path.name}.part")
    save_file(tensors, part, metadata={"geometry": net.geometry.to_json(), "name": name})
    part.replace(path)


def load(path: Path) -> Weights:
    """The net on the CPU, at full precision, for inference. Raises CodecError for a file that is none."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, SafetensorError) as cause:
        raise CodecError(f"{path}: cannot be read as an upscaler's weights: {cause}") from cause
    if "geometry" not in header:
        raise CodecError(f"{path}: says nothing of a geometry; a file of `nvp upscale train` is needed")
    net = shaped_like(Upscaler(Geometry.from_json(header["geometry"])), tensors)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as cause:
        raise CodecError(f"{path}: does not fit its geometry: {cause}") from cause
    net.requires_grad_(False).eval()
    return Weights(net=net, name=header.get("name", path.stem), digest=digest)


@cache
def shipped() -> Weights:
    """The weights that come with the package; where they come from: weights/provenance.md."""
    with as_file(files("nvpstore.upscaling") / "weights" / SHIPPED) as path:
        return load(path)


def place(weights: Weights, device: str) -> Upscaler:
    """The net on `device`; half the bits on CUDA, and on the CPU the layout that its kernels like."""
    if device == "cuda":
        return weights.net.to(device, torch.bfloat16)
    # Module.to takes it, but its annotations do not know.
    return cast(Upscaler, cast(Any, weights.net).to(memory_format=torch.channels_last))
