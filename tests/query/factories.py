"""Models of a few hundred weights, made as users would make theirs: a module, or one with a text side."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvpstore.tasks.backbones.model import Model
from nvpstore.tasks.spec import TaskSpec

HERE = "tests.query.factories"
EMBEDDING = 6  # numbers of an embedding


def _layers(last: nn.Module, *more: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), last, *more
    )


def classes(spec: TaskSpec) -> nn.Module:
    """[b, 3, h, w] → logits [b, labels]."""
    return _layers(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, len(spec.labels)))


def depth(spec: TaskSpec) -> nn.Module:
    """[b, 3, h, w] → [b, h / 4, w / 4]."""
    return _layers(nn.Conv2d(8, 1, 3, 1, 1), nn.Flatten(1, 2))


class LetterCounts:
    """A text side for which the order of letters means nothing. Counts how often it was asked."""

    asked = 0

    def embed(self, texts: Sequence[str]) -> Tensor:
        type(self).asked += 1
        vectors = torch.zeros(len(texts), EMBEDDING)
        for row, text in zip(vectors, texts, strict=True):
            for letter in text:
                row[zlib.crc32(letter.encode()) % EMBEDDING] += 1
        return F.normalize(vectors, dim=-1)


def pictures_and_texts(spec: TaskSpec) -> Model:
    """[b, 3, h, w] → [b, EMBEDDING], and texts into the same space."""
    net = _layers(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, EMBEDDING))
    return Model(net=net, answers=net, words=LetterCounts())


def pictures_alone(spec: TaskSpec) -> nn.Module:
    """[b, 3, h, w] → [b, EMBEDDING]."""
    return _layers(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, EMBEDDING))
