"""Embeddings: one vector a picture, of unit length."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nvpstore.tasks.heads.contract import View

TEMPERATURE = 0.1  # of the similarities within a batch that the loss compares


class EmbeddingHead:
    """Vectors [u, d]. Agreement: the cosine, negative ones as 0."""

    def rows(
        self, output: Tensor, *, top: int, view: View, columns: Collection[str]
    ) -> tuple[NDArray[np.int64], pa.Table]:
        vectors = F.normalize(output.float(), dim=-1).cpu().numpy()
        count, size = vectors.shape
        offsets = pa.array(np.arange(0, (count + 1) * size, size, dtype=np.int32))
        lists = pa.ListArray.from_arrays(offsets, pa.array(vectors.reshape(-1)))
        return np.arange(count), pa.table({"embedding": lists})

    def confidence(self, output: Tensor) -> Tensor:
        return torch.ones(len(output), device=output.device)

    def agreement(self, output: Tensor, reference: Tensor) -> Tensor:
        return F.cosine_similarity(output, reference, dim=-1).clamp_min(0)

    def loss(self, output: Tensor, reference: Tensor) -> Tensor:
        """1 − cosine, and KL of each vector's similarities to the batch's: what a search would rank by."""
        away = (1 - F.cosine_similarity(output, reference, dim=-1)).mean()
        own, said = F.normalize(output, dim=-1), F.normalize(reference, dim=-1)
        found = (own @ said.T / TEMPERATURE).log_softmax(-1)
        wanted = (said @ said.T / TEMPERATURE).softmax(-1)
        return away + F.kl_div(found, wanted, reduction="batchmean")

    def labels_of(self, output_shape: tuple[int, ...]) -> int | None:
        return None
