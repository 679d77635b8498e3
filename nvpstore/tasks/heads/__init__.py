"""What a backbone's output means, by kind: rows, confidence, agreement and the loss that teaches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nvpstore.errors import TaskError
from nvpstore.tasks.backbones.model import Model
from nvpstore.tasks.heads.caption import CaptionHead
from nvpstore.tasks.heads.classification import ClassificationHead
from nvpstore.tasks.heads.contract import CONFIDENT, Head, View
from nvpstore.tasks.heads.dense import DepthHead, SegmentationHead
from nvpstore.tasks.heads.detection import DetectionHead
from nvpstore.tasks.heads.embedding import EmbeddingHead
from nvpstore.tasks.spec import TaskSpec
from nvpstore.types import TaskKind

__all__ = ["CONFIDENT", "Head", "View", "build_head"]


def _caption(spec: TaskSpec, model: Model) -> Head:
    if model.writer is None:
        raise TaskError(f"task {spec.name}: {spec.model} of {spec.provider} writes no captions")
    return CaptionHead(model.writer)


_HEADS: Mapping[TaskKind, Callable[[TaskSpec, Model], Head]] = {
    "classification": lambda spec, _: ClassificationHead(spec.labels),
    "action": lambda spec, _: ClassificationHead(spec.labels),
    "embedding": lambda *_: EmbeddingHead(),
    "detection": lambda spec, _: DetectionHead(spec.labels),
    "segmentation": lambda spec, _: SegmentationHead(spec.labels),
    "depth": lambda *_: DepthHead(),
    "caption": _caption,
}


def build_head(spec: TaskSpec, model: Model) -> Head:
    """The head of a task's kind; TaskError where there is none, or its labels are not the model's."""
    if spec.kind not in _HEADS:
        raise TaskError(f"task {spec.name}: kind {spec.kind!r}; there are {', '.join(_HEADS)}")
    return _HEADS[spec.kind](spec, model)
