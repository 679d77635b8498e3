"""Captions: sentences from what a picture side says, by the model's own text side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nvpstore.tasks.backbones.model import Writer
from nvpstore.tasks.heads.contract import View


class CaptionHead:
    """Embedded pictures [u, n, d] → a sentence each. Agreement: F1 of words with the reference's sentence."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer

    def rows(
        self, output: Tensor, *, top: int, view: View, columns: Collection[str]
    ) -> tuple[NDArray[np.int64], pa.Table]:
        captions = self.writer.write(output)
        return np.arange(len(captions)), pa.table({"caption": pa.array(captions, pa.string())})

    def confidence(self, output: Tensor) -> Tensor:
        return torch.ones(len(output), device=output.device)

    def agreement(self, output: Tensor, reference: Tensor) -> Tensor:
        own, said = self.writer.write(output), self.writer.write(reference)
        return torch.tensor([word_f1(a, b) for a, b in zip(own, said, strict=True)])

    def loss(self, output: Tensor, reference: Tensor) -> Tensor:
        """1 − cosine a token, and KL of the words that would follow in the reference's own sentence."""
        with torch.no_grad():
            tokens = self.writer.tokens(reference)
            wanted = self.writer.logits(reference, tokens).softmax(-1)
        found = self.writer.logits(output, tokens).log_softmax(-1)
        away = (1 - F.cosine_similarity(output, reference, dim=-1)).mean()
        return away + F.kl_div(found, wanted, reduction="none").sum(-1).mean()

    def labels_of(self, output_shape: tuple[int, ...]) -> int | None:
        return None


def word_f1(own: str, said: str) -> float:
    """F1 of two sentences' words, each word counted as often as it stands there."""
    a, b = Counter(own.split()), Counter(said.split())
    if not a or not b:
        return float(a == b)
    shared = (a & b).total()
    return 2 * shared / (a.total() + b.total())
