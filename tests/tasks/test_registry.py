"""Specs, versions, heads and the registry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nvpstore.errors import TaskError
from nvpstore.tasks.heads import ClassificationHead, build_head
from nvpstore.tasks.registry import available, builtin_spec, describe_available, imagenet_labels, load
from nvpstore.tasks.spec import TaskSpec


def test_labels_has_the_thousand_imagenet_names_in_class_order() -> None:
    labels = imagenet_labels()
    assert len(labels) == 1000
    assert (labels[0], labels[285], labels[967]) == ("tench", "Egyptian cat", "espresso")


def test_a_spec_survives_json_and_keeps_its_version() -> None:
    spec = builtin_spec("labels")
    assert TaskSpec.from_json(spec.to_json()) == spec
    assert TaskSpec.from_json(spec.to_json()).version == spec.version


def test_anything_that_changes_the_answer_changes_the_version() -> None:
    spec = builtin_spec("labels")
    others = [
        replace(spec, labels=(*spec.labels[1:], "other")),
        replace(spec, weights_sha256="0" * 64),
        replace(spec, preprocessing=replace(spec.preprocessing, height=240)),
    ]
    assert len({spec.version, *(other.version for other in others)}) == 4


def test_other_weights_than_the_spec_names_are_refused() -> None:
    with pytest.raises(TaskError, match="weights of efficientnet-lite0 here have SHA-256"):
        load(replace(builtin_spec("labels"), weights_sha256="0" * 64))


def test_unknown_tasks_and_providers_are_named_with_those_there_are() -> None:
    with pytest.raises(TaskError, match=r"'faces': there are labels"):
        builtin_spec("faces")
    with pytest.raises(TaskError, match="provider 'elsewhere'"):
        load(replace(builtin_spec("labels"), provider="elsewhere"))
    with pytest.raises(TaskError, match="classification"):
        build_head("depth", ())


def test_available_tasks_say_their_kind_and_cuts() -> None:
    assert available() == ("labels",)
    (labels,) = describe_available()
    assert labels["kind"] == "classification"
    assert labels["cuts"] == len(load(builtin_spec("labels")).backbone.cuts)


def test_preprocessing_normalises_a_stretched_frame() -> None:
    spec = builtin_spec("labels").preprocessing
    x = spec.apply(torch.full((2, 3, 50, 90), 127, dtype=torch.uint8))
    assert x.shape == (2, 3, 224, 224)
    assert float(x.abs().max()) < 1e-5


def test_classification_rows_rank_by_softmax() -> None:
    head = ClassificationHead(("a", "b", "c"))
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    frames, table = head.rows(logits, top=2)
    assert frames.tolist() == [0, 0, 1, 1]
    assert table["rank"].to_pylist() == [1, 2, 1, 2]
    assert table["label"].to_pylist()[:3] == ["b", "c", "a"]
    expected = np.exp([2, 1]) / np.exp([0, 2, 1]).sum()
    np.testing.assert_allclose(table["score"].to_numpy()[:2], expected, rtol=1e-6)
    assert head.agreement(logits, logits.flip(1)).tolist() == [1.0, 0.0]
    assert float(head.loss(logits, logits)) == pytest.approx(0, abs=1e-6)
    assert float(head.loss(logits, logits.flip(1))) > 0.1
