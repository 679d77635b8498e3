"""What outputs mean, by kind: rows, agreement and loss."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from nvpstore.codec.grids import WHOLE, Region
from nvpstore.errors import TaskError
from nvpstore.tasks.backbones.model import Model
from nvpstore.tasks.heads import View, build_head
from nvpstore.tasks.heads.caption import CaptionHead, word_f1
from nvpstore.tasks.heads.classification import ClassificationHead
from nvpstore.tasks.heads.dense import DepthHead, SegmentationHead
from nvpstore.tasks.heads.detection import DetectionHead, average_precision, generalised_iou
from nvpstore.tasks.heads.embedding import EmbeddingHead
from nvpstore.tasks.registry import builtin_spec

VIEW = View(height=40, width=80, region=WHOLE)


def slots(*objects: tuple[int, float, tuple[float, float, float, float]], classes: int = 3) -> Tensor:
    """One picture's slots [1, n, classes + 5]: class (`classes`: none), logit, box as centre and size."""
    out = torch.zeros(1, len(objects), classes + 5)
    for i, (label, logit, box) in enumerate(objects):
        out[0, i, label] = logit
        out[0, i, -4:] = torch.tensor(box)
    return out


def test_classification_rows_rank_by_softmax() -> None:
    head = ClassificationHead(("a", "b", "c"))
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    units, table = head.rows(logits, top=2, view=VIEW, columns=())
    assert units.tolist() == [0, 0, 1, 1]
    assert table["rank"].to_pylist() == [1, 2, 1, 2]
    assert table["label"].to_pylist()[:3] == ["b", "c", "a"]
    expected = np.exp([2, 1]) / np.exp([0, 2, 1]).sum()
    np.testing.assert_allclose(table["score"].to_numpy()[:2], expected, rtol=1e-6)
    assert head.agreement(logits, logits.flip(1)).tolist() == [1.0, 0.0]
    assert float(head.loss(logits, logits)) == pytest.approx(0, abs=1e-6)
    assert float(head.loss(logits, logits.flip(1))) > 0.1


def test_embeddings_have_unit_length_and_agree_by_cosine() -> None:
    head = EmbeddingHead()
    vectors = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    _, table = head.rows(3 * vectors, top=5, view=VIEW, columns=())
    np.testing.assert_allclose(np.linalg.norm(table["embedding"].to_pylist(), axis=1), 1, rtol=1e-6)
    assert head.agreement(vectors, 2 * vectors).tolist() == pytest.approx([1.0] * 5)
    assert head.agreement(vectors, -vectors).tolist() == [0.0] * 5
    assert float(head.loss(vectors, vectors)) == pytest.approx(0, abs=1e-5)
    assert float(head.loss(vectors, vectors.roll(1, 0))) > 0.1


def test_boxes_come_back_in_pixels_of_the_source() -> None:
    head = DetectionHead(("a", "b", "c"))
    output = slots((1, 9.0, (0.5, 0.5, 0.5, 0.5)), (3, 9.0, (0.1, 0.1, 0.1, 0.1)), (2, 5.0, (0, 0, 1, 1)))
    units, table = head.rows(output, top=5, view=VIEW, columns=())
    assert units.tolist() == [0, 0]
    assert table["object"].to_pylist() == [1, 2]
    assert table["label"].to_pylist() == ["b", "c"]
    assert table["box"][0].as_py() == {"x0": 20, "y0": 10, "x1": 60, "y1": 30}
    assert table["box"][1].as_py() == {"x0": 0, "y0": 0, "x1": 40, "y1": 20}, "cut to the picture"
    boxed = View(height=40, width=80, region=Region(top=-0.5, bottom=1.5))  # bars above and below
    _, table = head.rows(output, top=5, view=boxed, columns=())
    assert table["box"][0].as_py() == {"x0": 20, "y0": 0, "x1": 60, "y1": 40}


def test_a_picture_without_objects_has_no_rows() -> None:
    units, table = DetectionHead(("a",)).rows(
        slots((1, 9.0, (0, 0, 1, 1)), classes=1), top=5, view=VIEW, columns=()
    )
    assert len(units) == table.num_rows == 0
    assert table["box"].type.num_fields == 4


def test_detections_agree_by_average_precision() -> None:
    head = DetectionHead(("a", "b", "c"))
    box, other = (0.5, 0.5, 0.4, 0.4), (0.2, 0.2, 0.1, 0.1)
    reference = slots((0, 9.0, box), (1, 9.0, other))
    assert head.agreement(reference, reference).tolist() == [1.0]
    moved = slots((0, 9.0, (0.52, 0.5, 0.4, 0.4)), (1, 9.0, (0.8, 0.8, 0.1, 0.1)))
    assert head.agreement(moved, reference).tolist() == [0.5], "one class of two is found"
    nothing = slots((3, 9.0, box), (3, 9.0, other))
    assert head.agreement(nothing, nothing).tolist() == [1.0]
    assert head.agreement(reference, nothing).tolist() == [0.0]
    assert float(head.loss(reference, reference)) == pytest.approx(0, abs=1e-5)
    assert float(head.loss(moved, reference)) > 0.5


def test_average_precision_is_the_area_under_the_envelope() -> None:
    corners = np.array([[0, 0, 1, 1], [5, 5, 6, 6], [2, 2, 3, 3]], np.float32)
    found = np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int64), corners
    truth = np.ones(2, np.float32), np.zeros(2, np.int64), corners[[0, 2]]
    assert average_precision(found, truth) == pytest.approx((1 + 2 / 3) / 2)


def test_generalised_iou_by_hand() -> None:
    a, b = torch.tensor([0.0, 0, 2, 2]), torch.tensor([1.0, 1, 3, 3])
    assert float(generalised_iou(a, a)) == pytest.approx(1)
    assert float(generalised_iou(a, b)) == pytest.approx(1 / 7 - 2 / 9)


def test_segmentation_rows_are_the_labels_seen_with_masks_at_source_size() -> None:
    head = SegmentationHead(("sky", "road", "car"))
    output = torch.zeros(1, 3, 2, 4)
    output[0, 0, 0] = output[0, 1, 1] = 5
    output[0, 2, 1, 3] = 9
    units, table = head.rows(output, top=5, view=VIEW, columns=("label", "mask"))
    assert units.tolist() == [0, 0, 0]
    assert dict(zip(table["label"].to_pylist(), table["area"].to_pylist(), strict=True)) == {
        "sky": 0.5,
        "road": 0.375,
        "car": 0.125,
    }
    mask = np.array(Image.open(io.BytesIO(table["mask"][2].as_py())))
    assert mask.shape == (40, 80)
    assert mask.max() == 255
    assert (mask > 0).mean() == pytest.approx(0.125)
    assert mask[20:, 60:].all()
    _, lean = head.rows(output, top=5, view=VIEW, columns=("label",))
    assert lean.column_names == ["label", "area"], "masks are made only where they are read"
    assert head.agreement(output, output).tolist() == [1.0]
    assert float(head.agreement(output, output.flip(2))) < 0.2
    assert float(head.loss(output, output)) == pytest.approx(0, abs=1e-6)


def test_a_mask_is_empty_where_nothing_was_shown() -> None:
    head = SegmentationHead(("all",))
    middle = View(height=40, width=80, region=Region(left=0.25, right=0.75))
    _, table = head.rows(torch.ones(1, 1, 4, 4), top=5, view=middle, columns=("mask",))
    mask = np.array(Image.open(io.BytesIO(table["mask"][0].as_py())))
    assert mask[:, 20:60].all()
    assert not mask[:, :20].any()
    assert not mask[:, 60:].any()


def test_depth_is_a_picture_between_its_extremes_and_agrees_up_to_scale_and_shift() -> None:
    head = DepthHead()
    depth = torch.linspace(1, 5, 32).reshape(1, 4, 8)
    _, table = head.rows(depth, top=5, view=VIEW, columns=("depth", "min", "max"))
    assert (table["min"][0].as_py(), table["max"][0].as_py()) == (1, 5)
    picture = np.array(Image.open(io.BytesIO(table["depth"][0].as_py())))
    assert (picture.shape, picture.min(), picture.max()) == ((40, 80), 0, 65535)
    assert head.agreement(3 * depth + 2, depth).tolist() == pytest.approx([1.0])
    assert head.agreement(-depth, depth).tolist() == [0.0]
    assert float(head.loss(depth + 1, depth)) == pytest.approx(0, abs=1e-6)


class Parrot:
    """Says the number of the largest channel of the first token."""

    def write(self, embedded: Tensor) -> list[str]:
        return [f"a picture of {i}" for i in embedded[:, 0].argmax(-1).tolist()]

    def tokens(self, embedded: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(embedded)).long(), embedded[:, 0].argmax(-1)], dim=1)

    def logits(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        return embedded[:, :1]


def test_captions_agree_by_the_words_that_they_share() -> None:
    assert word_f1("a red car", "a red car") == 1
    assert word_f1("a red car", "a blue car") == pytest.approx(2 / 3)
    assert word_f1("", "car") == 0
    assert word_f1("", "") == 1
    head = CaptionHead(Parrot())
    said = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
    _, table = head.rows(said, top=5, view=VIEW, columns=())
    assert table["caption"].to_pylist() == Parrot().write(said)
    assert head.agreement(said, said).tolist() == [1.0] * 3
    assert float(head.loss(said, said)) == pytest.approx(0, abs=1e-5)
    assert float(head.loss(-said, said)) > 1


def test_a_head_that_a_model_cannot_serve_is_refused() -> None:
    mute = Model(net=nn.Identity())
    with pytest.raises(TaskError, match="writes no captions"):
        build_head(replace(builtin_spec("labels"), kind="caption"), mute)
    with pytest.raises(TaskError, match="kind 'smell'; there are classification"):
        build_head(replace(builtin_spec("labels"), kind="smell"), mute)  # type: ignore[arg-type]
