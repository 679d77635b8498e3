"""Specs, versions and the registry."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nvpstore.errors import TaskError
from nvpstore.tasks.recipes import RECIPES, read_labels
from nvpstore.tasks.registry import available, builtin_spec, describe_available, load, spec_of
from nvpstore.tasks.spec import TaskSpec


def test_labels_has_the_thousand_imagenet_names_in_class_order() -> None:
    labels = read_labels("imagenet1k")
    assert len(labels) == 1000
    assert (labels[0], labels[285], labels[967]) == ("tench", "Egyptian cat", "espresso")


def test_lists_of_labels_are_in_their_models_class_order() -> None:
    voc, coco = read_labels("voc21"), read_labels("coco91")
    assert (len(voc), voc[0], voc[15]) == (21, "background", "person")
    assert (len(coco), coco[1], coco[90]) == (91, "person", "toothbrush")
    assert len(set(voc)) == 21


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
    with pytest.raises(TaskError, match=r"'faces': there are .*labels"):
        builtin_spec("faces")
    with pytest.raises(TaskError, match=r"weights of resnet50 are absent; nvp tasks add resnet50 --weights"):
        builtin_spec("resnet50")
    with pytest.raises(TaskError, match="provider 'elsewhere'"):
        load(replace(builtin_spec("labels"), provider="elsewhere"))


def test_available_tasks_say_their_kind_and_cuts_also_where_weights_are_absent() -> None:
    paper = {"resnet50", "clip_rn50", "vit_b16", "slowfast_r50", "i3d_r50", "detr_r50", "blip_caption"}
    assert set(available()) == {"labels", "look", "segment_lraspp", "depth_small", *paper}
    described = {task["name"]: task for task in describe_available()}
    assert described["labels"]["version"] == builtin_spec("labels").version
    assert described["labels"]["cuts"] == len(load(builtin_spec("labels")).backbone.cuts)
    assert described["detr_r50"]["version"] is None
    assert described["detr_r50"]["kind"] == "detection"


def test_a_recipes_fields_can_be_changed_and_new_fields_keep_old_versions() -> None:
    spec = spec_of("seen", RECIPES["labels"], weights_sha256=builtin_spec("labels").weights_sha256)
    assert spec == replace(builtin_spec("labels"), name="seen")
    assert set(json.loads(spec.to_json())) == {
        *("name", "kind", "provider", "model", "weights_sha256", "preprocessing", "labels")
    }
    clips = spec_of("moves", RECIPES["slowfast_r50"], weights_sha256="", options={"seed": 3})
    assert TaskSpec.from_json(clips.to_json()) == clips
    assert (clips.input_shape, clips.frames, clips.random) == ((3, 32, 256, 256), 32, True)


def test_a_spec_of_a_newer_release_is_refused() -> None:
    newer = builtin_spec("labels").to_json().replace('{"kind"', '{"colour":1,"kind"')
    with pytest.raises(TaskError, match=r"this release of nvpstore cannot read: .*colour"):
        TaskSpec.from_json(newer)
