"""Answers a pixel: segmentation and depth."""

from __future__ import annotations

import io
from collections.abc import Collection

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nvpstore.tasks.heads.contract import View


class SegmentationHead:
    """Logits [u, classes, h, w]; a row a label that is seen, largest first: its share of the picture that was
    shown, and a mask (PNG, 8 bit grey, 255 where it is, source size).

    Agreement: mean intersection over union with the reference's labels, over the classes of either.
    """

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = pa.array(labels, pa.string())

    def rows(
        self, output: Tensor, *, top: int, view: View, columns: Collection[str]
    ) -> tuple[NDArray[np.int64], pa.Table]:
        classes = output.argmax(1).cpu().numpy()  # [u, h, w]
        units: list[int] = []
        found: list[int] = []
        areas: list[float] = []
        masks: list[bytes] = []
        for unit, one in enumerate(classes):
            labels, counts = np.unique(one, return_counts=True)
            for place in np.argsort(-counts, kind="stable"):
                units.append(unit)
                found.append(int(labels[place]))
                areas.append(counts[place] / one.size)
                if "mask" in columns:
                    masks.append(_png(in_source((one == labels[place]).astype(np.uint8) * 255, view)))
        answers = {
            "label": self.labels.take(pa.array(found, pa.int64())),
            "area": pa.array(areas, pa.float32()),
        }
        if "mask" in columns:
            answers["mask"] = pa.array(masks, pa.binary())
        return np.array(units, np.int64), pa.table(answers)

    def confidence(self, output: Tensor) -> Tensor:
        return output.softmax(1).amax(1).flatten(1).mean(1)

    def agreement(self, output: Tensor, reference: Tensor) -> Tensor:
        own, said = output.argmax(1).flatten(1), reference.argmax(1).flatten(1)
        return torch.stack([_mean_iou(a, b) for a, b in zip(own, said, strict=True)])

    def loss(self, output: Tensor, reference: Tensor) -> Tensor:
        """KL(reference ‖ output) a pixel, mean."""
        return F.kl_div(output.log_softmax(1), reference.softmax(1), reduction="none").sum(1).mean()

    def labels_of(self, output_shape: tuple[int, ...]) -> int | None:
        return output_shape[0]


class DepthHead:
    """Depth (or disparity) [u, h, w] in the model's own unit; a row a picture: PNG (16 bit grey, `min` to
    `max`, source size).

    Agreement: Pearson's correlation with the reference a picture, negative ones as 0 (such models are right
    up to scale and shift).
    """

    def rows(
        self, output: Tensor, *, top: int, view: View, columns: Collection[str]
    ) -> tuple[NDArray[np.int64], pa.Table]:
        depths = output.float().cpu().numpy()
        low, high = depths.min((1, 2)), depths.max((1, 2))
        answers = {"min": pa.array(low), "max": pa.array(high)}
        if "depth" in columns:
            span = np.maximum(high - low, 1e-12)[:, None, None]
            levels = np.rint((depths - low[:, None, None]) / span * 65535).astype(np.uint16)
            images = [_png(in_source(one, view)) for one in levels]
            answers = {"depth": pa.array(images, pa.binary()), **answers}
        return np.arange(len(depths)), pa.table(answers)

    def confidence(self, output: Tensor) -> Tensor:
        return torch.ones(len(output), device=output.device)

    def agreement(self, output: Tensor, reference: Tensor) -> Tensor:
        pairs = (x.double().flatten(1) for x in (output, reference))
        own, said = (x - x.mean(1, keepdim=True) for x in pairs)
        return F.cosine_similarity(own, said, dim=1).clamp(0, 1).float()

    def loss(self, output: Tensor, reference: Tensor) -> Tensor:
        """L1 of what is left when both have mean 0 and the reference's mean deviation is 1."""
        own, said = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (output, reference))
        return ((own - said).abs().mean(1) / said.abs().mean(1).clamp_min(1e-6)).mean()

    def labels_of(self, output_shape: tuple[int, ...]) -> int | None:
        return None


def in_source(values: NDArray[np.uint8] | NDArray[np.uint16], view: View) -> NDArray[np.generic]:
    """[h, w] over what was shown → [height, width] of the source, nearest; 0 where nothing was shown."""
    rows, inside_rows = _places(view.height, view.region.top, view.region.bottom, values.shape[0])
    columns, inside_columns = _places(view.width, view.region.left, view.region.right, values.shape[1])
    placed = values[np.ix_(rows, columns)]
    return np.where(inside_rows[:, None] & inside_columns[None, :], placed, 0).astype(values.dtype)


def _places(
    pixels: int, first: float, last: float, cells: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each source pixel, its cell of [first, last], and whether it lies in there."""
    at = ((np.arange(pixels) + 0.5) / pixels - first) / (last - first)
    return np.floor(at * cells).clip(0, cells - 1).astype(np.int64), (at >= 0) & (at < 1)


def _mean_iou(own: Tensor, said: Tensor) -> Tensor:
    classes = torch.unique(torch.cat([own, said]))
    each = [((own == c) & (said == c)).sum() / ((own == c) | (said == c)).sum() for c in classes]
    return torch.stack(each).mean()


def _png(image: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", compress_level=3)
    return buffer.getvalue()
