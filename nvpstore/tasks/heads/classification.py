"""Classes of pictures, and of actions in clips."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nvpstore.tasks.heads.contract import View


class ClassificationHead:
    """Logits [u, classes] → softmax scores, `top` ranks a unit. Agreement: the same class is first."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = pa.array(labels, pa.string())

    def rows(
        self, output: Tensor, *, top: int, view: View, columns: Collection[str]
    ) -> tuple[NDArray[np.int64], pa.Table]:
        scores, classes = output.softmax(-1).topk(min(top, output.shape[1]), dim=-1)
        units, ranks = scores.shape
        answers = {
            "rank": pa.array(np.tile(np.arange(1, ranks + 1, dtype=np.int32), units)),
            "label": self.labels.take(pa.array(classes.flatten().cpu().numpy())),
            "score": pa.array(scores.flatten().cpu().numpy()),
        }
        return np.repeat(np.arange(units), ranks), pa.table(answers)

    def confidence(self, output: Tensor) -> Tensor:
        return output.softmax(-1).amax(-1)

    def agreement(self, output: Tensor, reference: Tensor) -> Tensor:
        return (output.argmax(-1) == reference.argmax(-1)).float()

    def loss(self, output: Tensor, reference: Tensor) -> Tensor:
        """KL(reference ‖ output), batch mean (Hinton et al., 2015, temperature 1)."""
        return F.kl_div(output.log_softmax(-1), reference.softmax(-1), reduction="batchmean")

    def labels_of(self, output_shape: tuple[int, ...]) -> int | None:
        return output_shape[-1]
