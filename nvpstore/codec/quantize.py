"""Weights and latents as 8-bit bytes and back. What is measured is always what comes back.

Encodings (named in every stored tensor; a reader refuses one that it does not know):
`int8-channel`  int8, symmetric, one float32 scale an output channel (dimension 0): x = q · scale
`float16`       IEEE half precision (biases)
`uint8-affine`  uint8, one (minimum, step) pair of float32 a latent channel: x = minimum + q · step
`float32`       as it is (NeRV's times)
All little-endian.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nvpstore.errors import CodecError
from nvpstore.types import StoredTensor

Floats = NDArray[np.float32]
ENCODINGS = ("int8-channel", "float16", "uint8-affine", "float32")


def encode_tensor(name: str, values: Floats, steps: Floats | None = None) -> StoredTensor:
    """Matrices and kernels to `int8-channel`, vectors to `float16`.

    `steps`: a kernel's own scales, where it learned to be stored with them.
    """
    if values.ndim == 1:
        return _stored(name, values, "float16", b"", values.astype("<f2").tobytes())
    if steps is None:
        peak = np.abs(values.reshape(values.shape[0], -1)).max(axis=1)
        steps = np.maximum(peak, 1e-12) / 127
    scale = steps.astype("<f4")
    q = np.rint(values / _by_channel(scale, values.ndim)).clip(-127, 127).astype(np.int8)
    return _stored(name, values, "int8-channel", scale.tobytes(), q.tobytes())


def encode_exact(name: str, values: Floats) -> StoredTensor:
    """As it is, for the few numbers that geometry depends on."""
    return _stored(name, values, "float32", b"", values.astype("<f4").tobytes())


def decode_tensor(tensor: StoredTensor) -> Floats:
    """The float32 array that `tensor` stands for; CodecError for an encoding this release cannot read."""
    if tensor.encoding == "int8-channel":
        q = np.frombuffer(tensor.payload, np.int8).reshape(tensor.shape)
        scale = np.frombuffer(tensor.scale, "<f4")
        return q * _by_channel(scale, q.ndim)
    if tensor.encoding == "float16":
        return np.frombuffer(tensor.payload, "<f2").reshape(tensor.shape).astype(np.float32)
    if tensor.encoding == "float32":
        return np.frombuffer(tensor.payload, "<f4").reshape(tensor.shape).astype(np.float32)
    raise CodecError(f"tensor {tensor.name}: encoding {tensor.encoding!r}; known are {', '.join(ENCODINGS)}")


def encode_latents(latents: Floats, steps: Floats | None = None) -> tuple[str, bytes, NDArray[np.uint8]]:
    """Latents [t, …] → (encoding, scale, payload uint8 [t, bytes a frame]).

    `steps` [c]: the channels learned to be rounded to multiples of them; where these are finer than 8 bit can
    be, or not given, 256 levels from minimum to maximum.
    """
    if latents.ndim == 2:  # NeRV's times must stay exact: neighbours differ by 1/t
        return "float32", b"", latents.astype("<f4").view(np.uint8).reshape(latents.shape[0], -1)
    axes = (0, *range(2, latents.ndim))
    low, high = latents.min(axis=axes), latents.max(axis=axes)
    step = np.maximum((high - low) / 255, 1e-12)
    if steps is not None:
        step = np.maximum(steps, step)
        low = np.floor(low / step + 1e-3) * step
    scale = np.stack([low, step]).astype("<f4")
    low, step = (_by_channel(v, latents.ndim - 1) for v in scale)
    q = np.rint((latents - low) / step).clip(0, 255).astype(np.uint8)
    return "uint8-affine", scale.tobytes(), q.reshape(latents.shape[0], -1)


def decode_latents(encoding: str, scale: bytes, payload: NDArray[np.uint8], shape: tuple[int, ...]) -> Floats:
    """Payload uint8 [t, bytes a frame] → latents float32 [t, *shape]."""
    if encoding == "float32":
        return np.ascontiguousarray(payload).view("<f4").reshape(-1, *shape).astype(np.float32)
    if encoding == "uint8-affine":
        low, step = np.frombuffer(scale, "<f4").reshape(2, -1)
        q = payload.reshape(-1, *shape).astype(np.float32)
        return _by_channel(low, len(shape)) + q * _by_channel(step, len(shape))
    raise CodecError(f"latents: encoding {encoding!r}; known are {', '.join(ENCODINGS)}")


def _by_channel(values: Floats, dimensions: int) -> Floats:
    """One value a channel, shaped to broadcast over a tensor whose dimension 0 is the channel."""
    return values.reshape(-1, *(1,) * (dimensions - 1))


def _stored(name: str, values: Floats, encoding: str, scale: bytes, payload: bytes) -> StoredTensor:
    return StoredTensor(
        name=name,
        shape=tuple(values.shape),
        dtype="float32",
        encoding=encoding,
        scale=scale,
        payload=payload,
    )
