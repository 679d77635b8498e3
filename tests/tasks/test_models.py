"""Models of every provider, weights drawn at random: cut lists, and tails that continue them exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nvpstore.errors import TaskError
from nvpstore.tasks.preprocessing import Preprocessing
from nvpstore.tasks.recipes import IMAGENET, RECIPES
from nvpstore.tasks.registry import LoadedTask, load, spec_of
from nvpstore.tasks.spec import Clip, TaskSpec

TINY_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
TINY_DETR = {
    "backbone": TINY_RESNET,
    **{"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 6},
    **{"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2},
    "decoder_attention_heads": 2,
}
TINY_BLIP = {
    "vision_config": {
        **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2},
        "patch_size": 16,
    },
    "text_config": {
        **{"vocab_size": 60, "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 32},
        **{"num_hidden_layers": 1, "num_attention_heads": 2, "bos_token_id": 1, "sep_token_id": 2},
        **{"pad_token_id": 0, "eos_token_id": 2},
    },
    "projection_dim": 16,
    "image_text_hidden_size": 16,
}


def small(side: int, **more: Any) -> Preprocessing:
    return Preprocessing(height=side, width=side, **{**IMAGENET, **more})


def spec(name: str, **changes: Any) -> TaskSpec:
    """A built-in task with random weights, and changes."""
    return spec_of(name, RECIPES[name], weights_sha256="", **{"options": {"seed": 1}, **changes})


SPECS = {
    "timm": lambda: spec("resnet50", model="resnet18", preprocessing=small(64), labels=("a", "b", "c")),
    "timm-vit": lambda: spec(
        "vit_b16", model="vit_tiny_patch16_224", preprocessing=small(64), labels=("a", "b")
    ),
    "torchvision": lambda: spec(
        "resnet50", provider="torchvision", model="mobilenet_v3_small", preprocessing=small(64)
    ),
    "torchvision-segmentation": lambda: spec(
        "resnet50",
        kind="segmentation",
        provider="torchvision",
        model="lraspp_mobilenet_v3_large",
        preprocessing=Preprocessing(height=64, width=96, **IMAGENET),
        labels=("sky", "road", "car"),
    ),
    "open_clip": lambda: spec("clip_rn50"),
    "open_clip-vit": lambda: spec("clip_rn50", model="ViT-B-32", labels=()),
    "transformers-detr": lambda: spec(
        "detr_r50",
        preprocessing=Preprocessing(height=64, width=96, **IMAGENET),
        labels=("a", "b"),
        options={"seed": 1, "config": TINY_DETR},
    ),
    "transformers-blip": lambda: spec(
        "blip_caption", preprocessing=small(48), options={"seed": 1, "config": TINY_BLIP}
    ),
    "pytorchvideo-slowfast": lambda: spec(
        "slowfast_r50",
        preprocessing=small(32),
        clip=Clip(frames=8, stride=1),
        labels=("run", "sit"),
        options={
            "seed": 1,
            "build": {"head_pool_kernel_sizes": [[2, 1, 1], [8, 1, 1]], "model_depth": 50},
        },
    ),
    "pytorchvideo-i3d": lambda: spec(
        "i3d_r50",
        preprocessing=small(32),
        clip=Clip(frames=4, stride=1),
        labels=("run", "sit"),
        options={"seed": 1, "build": {"head_pool_kernel_size": [2, 1, 1]}},
    ),
}
FIRST_CUTS = {
    "timm": "maxpool",
    "timm-vit": "embed",
    "open_clip": "stem",
    "transformers-detr": "embedder",
    "transformers-blip": "embeddings",
    "pytorchvideo-slowfast": "blocks.0",
    "pytorchvideo-i3d": "blocks.0",
}


@pytest.fixture(params=sorted(SPECS))
def named(request: pytest.FixtureRequest) -> tuple[str, LoadedTask]:
    return request.param, load(SPECS[request.param]())


@torch.inference_mode()
def test_every_tail_continues_its_model_exactly(named: tuple[str, LoadedTask]) -> None:
    name, task = named
    backbone = task.backbone
    x = torch.randn(2, *task.spec.input_shape, generator=torch.Generator().manual_seed(0))
    names = [cut.name for cut in backbone.cuts]
    assert len(names) >= 4
    assert len(names) == len(set(names))
    features, output = backbone.features(x, names)
    torch.testing.assert_close(output, backbone.whole(x), atol=1e-5, rtol=1e-5)
    assert len(output) == 2
    for cut in backbone.cuts:
        assert tuple(tuple(f.shape[1:]) for f in features[cut.name]) == cut.shapes
        again = backbone.tail(cut.name)(*features[cut.name])
        assert float((again - output).abs().max() / output.abs().max()) <= 1e-5, cut.name
    assert not any(p.requires_grad for p in backbone.tail(names[0]).parameters())
    if name in FIRST_CUTS:
        assert names[0] == FIRST_CUTS[name]


@torch.inference_mode()
def test_the_head_reads_the_output(named: tuple[str, LoadedTask]) -> None:
    _, task = named
    x = torch.randn(2, *task.spec.input_shape, generator=torch.Generator().manual_seed(0))
    output = task.backbone.whole(x)
    labels = task.head.labels_of(tuple(output.shape[1:]))
    assert labels is None or labels == len(task.spec.labels)
    assert task.head.agreement(output, output).tolist() == pytest.approx([1.0, 1.0])
    assert task.head.confidence(output).shape == (2,)
    assert float(task.head.loss(output, output)) == pytest.approx(0, abs=1e-4)


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    first = load(SPECS["timm"]())
    other = load(replace(SPECS["timm"](), options={"seed": 2}))
    x = torch.randn(1, *first.spec.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        again = load(replace(SPECS["timm"](), name="again")).backbone.whole(x)
        assert torch.equal(first.backbone.whole(x), again)
        assert not torch.equal(first.backbone.whole(x), other.backbone.whole(x))


def test_clip_texts_are_embedded_in_the_pictures_space() -> None:
    task = load(SPECS["open_clip"]())
    assert task.words is not None
    texts = task.words.embed(["a red car", "a dog"])
    width = task.backbone.whole(torch.zeros(1, *task.spec.input_shape)).shape[-1]
    assert texts.shape == (2, width)
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))


def test_unknown_models_are_named() -> None:
    with pytest.raises(TaskError, match="open_clip has no model 'RN5'"):
        load(spec("clip_rn50", model="RN5"))
    with pytest.raises(TaskError, match="slowfast_r50, i3d_r50 are known"):
        load(spec("slowfast_r50", model="c2d"))
    with pytest.raises(TaskError, match="detr-resnet-50, blip-image-captioning-base are known"):
        load(spec("detr_r50", model="yolo"))


def test_a_factory_runs_only_where_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    factory = "tests.tasks.factories:tiny"
    own = spec("resnet50", provider="factory", model=factory, preprocessing=small(16), labels=("a", "b"))
    with pytest.raises(TaskError, match="is code to run; if you trust it, name it in NVP_FACTORIES"):
        load(own)
    monkeypatch.setenv("NVP_FACTORIES", f"other:thing, {factory}")
    assert load(own).backbone.whole(torch.zeros(1, 3, 16, 16)).shape == (1, 2)
    monkeypatch.setenv("NVP_FACTORIES", "tests.tasks.factories:nothing,tests.tasks.factories:absent")
    with pytest.raises(TaskError, match=r"gave int, not a torch.nn.Module"):
        load(replace(own, model="tests.tasks.factories:nothing"))
    with pytest.raises(TaskError, match=r"no factory 'tests\.tasks\.factories:absent'"):
        load(replace(own, model="tests.tasks.factories:absent"))
