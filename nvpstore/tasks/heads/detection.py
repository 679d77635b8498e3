"""Objects with boxes, from detectors that give a fixed number of slots (DETR's queries)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nvpstore.tasks.heads.contract import View

SURE = 0.5  # a reference's object counts as one from this score on
MATCH_IOU = 0.5
BOX_WEIGHT, IOU_WEIGHT = 5.0, 2.0  # beside 1 for classes (Carion et al., ECCV 2020, section 3.1)


class DetectionHead:
    """Slots [u, n, labels + 1 + 4]: class logits, "no object" last, then a box as centre x, y, width and
    height in fractions of the input. A slot whose likeliest class is an object is one, best score first.

    Agreement: average precision at IoU 0.5 a picture against the reference's sure objects, mean over classes.
    """

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = pa.array(labels, pa.string())

    def rows(
        self, output: Tensor, *, top: int, view: View, columns: Collection[str]
    ) -> tuple[NDArray[np.int64], pa.Table]:
        scores, classes, corners = (x.cpu().numpy() for x in self._objects(output))
        none = output.shape[-1] - 5
        likeliest = output[..., :-4].argmax(-1).cpu().numpy()
        order = np.argsort(-scores, axis=1, kind="stable")
        units, numbers, picked = [], [], []
        for unit, slots in enumerate(order):
            found = slots[likeliest[unit, slots] != none]
            units.append(np.full(len(found), unit))
            numbers.append(np.arange(1, len(found) + 1, dtype=np.int32))
            picked.append(found)
        at = np.concatenate([np.empty(0, np.int64), *units]).astype(np.int64)
        slot = np.concatenate([np.empty(0, np.int64), *picked]).astype(np.int64)
        sides = _in_source(corners[at, slot], view)
        box = pa.StructArray.from_arrays(
            [pa.array(sides[:, i].astype(np.float32)) for i in range(4)], ["x0", "y0", "x1", "y1"]
        )
        answers = {
            "object": pa.array(np.concatenate([np.empty(0, np.int32), *numbers]).astype(np.int32)),
            "label": self.labels.take(pa.array(classes[at, slot])),
            "score": pa.array(scores[at, slot].astype(np.float32)),
            "box": box,
        }
        return at, pa.table(answers)

    def confidence(self, output: Tensor) -> Tensor:
        """The best object's score."""
        return self._objects(output)[0].amax(-1)

    def agreement(self, output: Tensor, reference: Tensor) -> Tensor:
        found, wanted = self._objects(output), self._objects(reference)
        each = [
            average_precision(
                _arrays(found, unit),
                _arrays(wanted, unit, sure=True),
            )
            for unit in range(len(output))
        ]
        return torch.tensor(each)

    def loss(self, output: Tensor, reference: Tensor) -> Tensor:
        """KL of classes a slot; L1 and generalised IoU of boxes, weighted by the reference's certainty.

        Both come from the same frozen decoder, so that slot answers to slot and nothing need be matched.
        """
        said = reference[..., :-4].softmax(-1)
        classes = F.kl_div(output[..., :-4].log_softmax(-1), said, reduction="none").sum(-1).mean()
        weight = 1 - said[..., -1]
        weight = weight / weight.sum().clamp_min(1e-6)
        boxes, wanted = output[..., -4:], reference[..., -4:]
        apart = (boxes - wanted).abs().sum(-1)
        overlap = 1 - generalised_iou(_corners(boxes), _corners(wanted))
        return classes + (weight * (BOX_WEIGHT * apart + IOU_WEIGHT * overlap)).sum()

    def labels_of(self, output_shape: tuple[int, ...]) -> int | None:
        return output_shape[-1] - 5

    def _objects(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(score of the best object class [u, n], that class [u, n], corners [u, n, 4])."""
        scores, classes = output[..., :-4].softmax(-1)[..., :-1].max(-1)
        return scores, classes, _corners(output[..., -4:])


def _arrays(objects: tuple[Tensor, Tensor, Tensor], unit: int, *, sure: bool = False) -> Objects:
    scores, classes, corners = (x[unit].detach().cpu().numpy() for x in objects)
    some = scores >= SURE if sure else np.ones(len(scores), bool)
    return scores[some], classes[some], corners[some]


def _corners(boxes: Tensor) -> Tensor:
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def _in_source(corners: NDArray[np.float32], view: View) -> NDArray[np.float64]:
    """Corners [n, 4] in fractions of the input → pixels of the source, within the picture."""
    low = np.array([view.region.left, view.region.top] * 2)
    size = np.array([view.region.right, view.region.bottom] * 2) - low
    fractions = (low + size * corners.astype(np.float64)).clip(0, 1)
    return np.asarray(fractions * np.array([view.width, view.height] * 2))


def generalised_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Of corners [..., 4], pair by pair, in −1 … 1 (Rezatofighi et al., CVPR 2019)."""
    top_left = torch.maximum(boxes[..., :2], others[..., :2])
    bottom_right = torch.minimum(boxes[..., 2:], others[..., 2:])
    shared = (bottom_right - top_left).clamp_min(0).prod(-1)
    either = _area(boxes) + _area(others) - shared
    hull = torch.maximum(boxes[..., 2:], others[..., 2:]) - torch.minimum(boxes[..., :2], others[..., :2])
    around = hull.clamp_min(0).prod(-1).clamp_min(1e-9)
    return shared / either.clamp_min(1e-9) - (around - either) / around


def _area(corners: Tensor) -> Tensor:
    return (corners[..., 2:] - corners[..., :2]).clamp_min(0).prod(-1)


Objects = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]  # scores, classes, corners


def average_precision(found: Objects, truth: Objects) -> float:
    """Mean over the classes of `truth` of one picture's average precision at IoU 0.5; without any truth, 1
    where nothing sure is found, else 0."""
    if not len(truth[1]):
        return float(not (found[0] >= SURE).any())
    each = [
        _precision(found[0][found[1] == c], found[2][found[1] == c], truth[2][truth[1] == c])
        for c in np.unique(truth[1])
    ]
    return float(np.mean(each))


def _precision(scores: NDArray[np.float32], boxes: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    """The area under the precision envelope of one class."""
    right = np.zeros(len(scores), bool)
    free = np.ones(len(truth), bool)
    order = np.argsort(-scores, kind="stable")
    for place, i in enumerate(order):
        overlaps = np.where(free, _overlaps(boxes[i], truth), 0)
        best = int(overlaps.argmax())
        if overlaps[best] >= MATCH_IOU:
            right[place], free[best] = True, False
    if not len(scores):
        return 0.0
    hits = right.cumsum()
    precision = hits / np.arange(1, len(scores) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * right).sum() / len(truth))


def _overlaps(box: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = (high - low).clip(0).prod(1)
    either = (box[2:] - box[:2]).clip(0).prod() + (others[:, 2:] - others[:, :2]).clip(0).prod(1) - shared
    return np.asarray(shared / np.maximum(either, 1e-9))
