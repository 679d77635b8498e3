"""A stabilizer as the bytes of a safetensors file, and back: its tensors, and what they are of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load, save

from nvpstore.adapters.stabilizer import Place, Shape, Stabilizer
from nvpstore.errors import CodecError

FIELD = "nvp:stabilizer"  # of the file's metadata
FORMAT = 1

Kind = Literal["tail", "pictures"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SteadyRecord:
    """What a stabilizer is of: a task's `version` from a `cut` on, or pictures (both empty).

    `seconds` between two frames count as a gap of 1. `training` says how it was taught, for people.
    """

    kind: Kind
    name: str
    version: str
    cut: str
    seconds: float
    shape: Shape
    places: tuple[Place, ...]
    picture_channels: int
    training: Mapping[str, Any] = field(default_factory=dict)

    def gap(self, seconds: float) -> float:
        """How many frames of its own lie in `seconds`."""
        return max(seconds, 1e-6) / self.seconds


def encode_stabilizer(record: SteadyRecord, stabilizer: Stabilizer) -> bytes:
    """The file's bytes; the same for the same weights."""
    about = json.dumps({"format": FORMAT, **asdict(record)}, sort_keys=True, allow_nan=False)
    tensors = {name: t.detach().float().cpu().contiguous() for name, t in stabilizer.state_dict().items()}
    return bytes(save(tensors, metadata={FIELD: about}))


def decode_record(data: bytes) -> SteadyRecord:
    """What a file says of itself. Raises CodecError."""
    try:
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][FIELD])
        version = about.pop("format")
        if version != FORMAT:
            raise CodecError(f"a stabilizer of format {version}; this release reads {FORMAT}")
        shape, places = Shape(**about.pop("shape")), tuple(Place(**place) for place in about.pop("places"))
        return SteadyRecord(shape=shape, places=places, **about)
    except (KeyError, TypeError, ValueError) as cause:
        raise CodecError(f"a stored stabilizer is malformed: {cause!r}") from cause


def decode_stabilizer(data: bytes) -> tuple[SteadyRecord, Stabilizer]:
    """What `encode_stabilizer` stored, ready to use. Raises CodecError."""
    record = decode_record(data)
    stabilizer = Stabilizer(record.shape, record.places, picture_channels=record.picture_channels)
    try:
        stabilizer.load_state_dict(load(data))
    except (SafetensorError, RuntimeError) as cause:
        raise CodecError(f"a stored stabilizer does not fit its places: {cause}") from cause
    return record, stabilizer.requires_grad_(False).eval()


def state_bytes(stabilizer: Stabilizer) -> int:
    """Memory of its weights."""
    return sum(tensor.nbytes for tensor in stabilizer.state_dict().values())
