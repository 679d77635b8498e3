"""Stored frames as a Ray Dataset (extra `ray`): actors decode, rows are arrays."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from nvpstore.errors import UsageError
from nvpstore.handover.reading import Opened
from nvpstore.handover.training import StoredFrames


def ray_dataset(frames: StoredFrames, *, workers: int = 1, gpus_a_worker: float = 0.0) -> Any:
    """A row a frame: the columns of its table, and the tensors as `tensor_0`, `tensor_1` …

    `frames` are those of `training.features` or `training.pixels`; they come chunk by chunk, unshuffled
    (`Dataset.random_shuffle` and `randomize_block_order` are Ray's own). Raises UsageError where Ray is not
    installed.
    """
    try:
        data: Any = importlib.import_module("ray.data")
    except ImportError as cause:
        raise UsageError("a Ray Dataset needs ray: pip install 'nvpstore[ray]'") from cause
    numbers = data.from_items([{"chunk": number} for number in range(len(frames.chunks))])
    return numbers.map_batches(
        _Reading,
        fn_constructor_args=(frames,),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=gpus_a_worker,
    )


class _Reading:
    def __init__(self, frames: StoredFrames) -> None:
        self._frames = frames
        self._opened = Opened(frames.reader.place, threads=1)

    def __call__(self, numbers: dict[str, Any]) -> dict[str, Any]:
        (number,) = numbers["chunk"].tolist()
        chunk = self._frames.chunks[number]
        rows = self._frames.table.take(chunk.rows)
        frames = rows["frame"].to_numpy().astype(np.int64)
        tensors = self._frames.reader.read(self._opened, (chunk.video_id, chunk.segment), frames)
        columns = {name: rows[name].to_numpy(zero_copy_only=False) for name in rows.schema.names}
        return columns | {f"tensor_{i}": tensor.numpy() for i, tensor in enumerate(tensors)}
