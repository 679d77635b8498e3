"""What a backbone's output means, by kind: rows, confidence, agreement and the loss that teaches it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pyarrow as pa
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nvpstore.errors import TaskError
from nvpstore.types import TaskKind

CONFIDENT = 0.4  # agreement is also reported over the frames on which the reference is at least this sure


class Head(Protocol):
    """One output kind. `output` [t, …] is the backbone's own output for t frames."""

    def rows(self, output: Tensor, *, top: int) -> tuple[NDArray[np.int64], pa.Table]:
        """(position of the frame that each row belongs to, the kind's own columns)."""
        ...

    def confidence(self, output: Tensor) -> Tensor:
        """How sure each answer is, [t] in 0 … 1."""
        ...

    def agreement(self, output: Tensor, reference: Tensor) -> Tensor:
        """1 where the answer equals the reference's, [t] in 0 … 1."""
        ...

    def loss(self, output: Tensor, reference: Tensor) -> Tensor:
        """The task term: a scalar ≥ 0, 0 where output and reference say the same."""
        ...


class ClassificationHead:
    """Logits [t, classes] → softmax scores, `top` ranks a frame."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = pa.array(labels, pa.string())

    def rows(self, output: Tensor, *, top: int) -> tuple[NDArray[np.int64], pa.Table]:
        scores, classes = output.softmax(-1).topk(min(top, output.shape[1]), dim=-1)
        frames, ranks = scores.shape
        columns = {
            "rank": pa.array(np.tile(np.arange(1, ranks + 1, dtype=np.int32), frames)),
            "label": self.labels.take(pa.array(classes.flatten().cpu().numpy())),
            "score": pa.array(scores.flatten().cpu().numpy()),
        }
        return np.repeat(np.arange(frames), ranks), pa.table(columns)

    def confidence(self, output: Tensor) -> Tensor:
        return output.softmax(-1).amax(-1)

    def agreement(self, output: Tensor, reference: Tensor) -> Tensor:
        return (output.argmax(-1) == reference.argmax(-1)).float()

    def loss(self, output: Tensor, reference: Tensor) -> Tensor:
        """KL(reference ‖ output), batch mean (Hinton et al., 2015, temperature 1)."""
        return F.kl_div(output.log_softmax(-1), reference.softmax(-1), reduction="batchmean")


def build_head(kind: TaskKind, labels: tuple[str, ...]) -> Head:
    """The head of a kind; TaskError for kinds that no head is written for."""
    if kind == "classification":
        return ClassificationHead(labels)
    raise TaskError(f"kind {kind!r}: this release answers classification")
