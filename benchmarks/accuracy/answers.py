"""Answers of all kinds in one form, whether they come from a tensor or from rows, and how right they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.nets.families import Family
from benchmarks.nets.scoring import captions_of, found_of
from benchmarks.world import HEIGHT, WIDTH, FrameTruth
from nvpstore.tasks.heads.caption import word_f1
from nvpstore.tasks.heads.detection import SURE, Objects, average_precision
from nvpstore.tasks.registry import LoadedTask

_SIDES = np.array([WIDTH, HEIGHT] * 2, np.float32)
SMALLEST = 1e-9  # of a probability


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was said of one unit: probabilities [classes], objects with boxes in fractions, or a sentence."""

    probabilities: NDArray[np.float64] | None = None
    objects: Objects | None = None
    caption: str | None = None


def from_outputs(task: LoadedTask, outputs: Tensor) -> list[Answer]:
    """One answer a unit of a backbone's outputs [u, …]."""
    kind = task.spec.kind
    if kind == "caption":
        return [Answer(caption=said) for said in captions_of(task, outputs)]
    if kind == "detection":
        return [Answer(objects=found) for found in found_of(outputs)]
    return [Answer(probabilities=row) for row in outputs.softmax(-1).double().cpu().numpy()]


def from_rows(family: Family, rows: Sequence[Mapping[str, Any]], frames: Sequence[int]) -> list[Answer]:
    """One answer for each of `frames`, from a task table's rows (for classes with all of them as `top`)."""
    by_frame: dict[int, list[Mapping[str, Any]]] = {frame: [] for frame in frames}
    for row in rows:
        if row["frame"] in by_frame:
            by_frame[row["frame"]].append(row)
    return [_answer(family, by_frame[frame]) for frame in frames]


def _answer(family: Family, rows: Sequence[Mapping[str, Any]]) -> Answer:
    if family.kind == "caption":
        (row,) = rows
        return Answer(caption=row["caption"])
    if family.kind == "detection":
        boxes = [[row["box"][side] for side in ("x0", "y0", "x1", "y1")] for row in rows]
        scores = np.array([row["score"] for row in rows], np.float32)
        classes = np.array([family.labels.index(row["label"]) for row in rows], np.int64)
        return Answer(objects=(scores, classes, np.array(boxes, np.float32).reshape(-1, 4) / _SIDES))
    probabilities = np.zeros(len(family.labels))
    for row in rows:
        probabilities[family.labels.index(row["label"])] = row["score"]
    return Answer(probabilities=probabilities)


def as_answer(family: Family, told: FrameTruth) -> Answer:
    """What is true of a frame, as an answer."""
    if family.kind == "caption":
        return Answer(caption=told.caption)
    if family.kind == "detection":
        return Answer(objects=_objects(family, told))
    wanted = told.action if family.kind == "action" else told.label
    return Answer(probabilities=np.array([float(label == wanted) for label in family.labels]))


def _objects(family: Family, told: FrameTruth) -> Objects:
    classes = np.array([family.labels.index(box[0]) for box in told.boxes], np.int64)
    boxes = np.array([box[1:] for box in told.boxes], np.float32).reshape(-1, 4) / _SIDES
    return np.ones(len(classes), np.float32), classes, boxes


# ---------------------------------------------------------------- how right


def accuracy(family: Family, answer: Answer, told: FrameTruth) -> float:
    """0 … 1 against the truth: the first class; mean average precision at IoU 0.5; F1 of words."""
    if answer.caption is not None:
        return word_f1(answer.caption, told.caption)
    if answer.objects is not None:
        return average_precision(answer.objects, _objects(family, told))
    assert answer.probabilities is not None, "an answer has one form"
    wanted = told.action if family.kind == "action" else told.label
    return float(family.labels[int(answer.probabilities.argmax())] == wanted)


def agreement(answer: Answer, reference: Answer) -> float:
    """0 … 1 against what the same net says of source frames."""
    if answer.caption is not None and reference.caption is not None:
        return word_f1(answer.caption, reference.caption)
    if answer.objects is not None and reference.objects is not None:
        scores, classes, boxes = reference.objects
        sure = scores >= SURE
        return average_precision(answer.objects, (scores[sure], classes[sure], boxes[sure]))
    assert answer.probabilities is not None, "an answer has one form"
    assert reference.probabilities is not None, "two answers of one kind"
    return float(answer.probabilities.argmax() == reference.probabilities.argmax())


def kl(answer: Answer, reference: Answer) -> float | None:
    """KL(reference ‖ answer) in nats, of kinds that give probabilities."""
    if answer.probabilities is None or reference.probabilities is None:
        return None
    own, said = (
        torch.from_numpy(p).clamp_min(SMALLEST) for p in (answer.probabilities, reference.probabilities)
    )
    return max(0.0, float(F.kl_div(own.log(), said, reduction="sum")))


def steadiness(answers: Sequence[Answer]) -> float:
    """Mean agreement of each answer with the one before it."""
    pairs = zip(answers[1:], answers[:-1], strict=True)
    each = [agreement(now, before) for now, before in pairs]
    return float(np.mean(each)) if each else 1.0
