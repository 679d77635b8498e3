"""Models of every provider, weights drawn at random: cut lists, and tails that continue them exactly."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nvpstore.codec.grids import WHOLE
from nvpstore.errors import TaskError
from nvpstore.tasks.backbone import Uncut
from nvpstore.tasks.backbones.torchvision_ops import make_torchvision_importable
from nvpstore.tasks.flops import gflops
from nvpstore.tasks.heads import View
from nvpstore.tasks.preprocessing import Preprocessing
from nvpstore.tasks.recipes import IMAGENET, RECIPES
from nvpstore.tasks.registry import (
    LoadedTask,
    build_model,
    builtin_spec,
    cut_backbone,
    load,
    load_weights,
    spec_of,
)
from nvpstore.tasks.spec import Clip, TaskSpec

TINY_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
TINY_DETR = {
    "backbone": TINY_RESNET,
    **{"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 6},
    **{"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2},
    "decoder_attention_heads": 2,
}
TINY_BLIP: dict[str, Any] = {
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


TINY_DEPTH: dict[str, Any] = {
    "backbone_config": {
        **{"model_type": "dinov2", "image_size": 70, "patch_size": 14, "hidden_size": 24},
        **{"num_attention_heads": 2, "num_hidden_layers": 6, "out_indices": [3, 4, 5, 6]},
        **{"reshape_hidden_states": False, "mlp_ratio": 2},
    },
    **{"reassemble_hidden_size": 24, "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8},
    **{"head_hidden_size": 8, "initializer_range": 0.2},
}
TINY_CLIP_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
TINY_SWIN = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 4}


def small(side: int, **more: Any) -> Preprocessing:
    return Preprocessing(height=side, width=side, **{**IMAGENET, **more})


def wide(height: int, width: int) -> Preprocessing:
    return Preprocessing(height=height, width=width, **IMAGENET)


def spec(name: str, *, build: dict[str, Any] | None = None, **changes: Any) -> TaskSpec:
    """A built-in task with random weights, and changes."""
    options = {"seed": 1} if build is None else {"seed": 1, "build": build}
    return spec_of(name, RECIPES[name], weights_sha256="", **{"options": options, **changes})


def clips(name: str, frames: int, **changes: Any) -> TaskSpec:
    return spec(
        name,
        **{"preprocessing": small(32), "clip": Clip(frames=frames, stride=1), "labels": ("run", "sit")},
        **changes,
    )


@cache
def small_vit() -> str:
    """The name of a small ViT among torchvision's models, whose own are large and of one width each."""
    make_torchvision_importable()
    models = importlib.import_module("torchvision.models")

    def vit_small(*, weights: None, **named: Any) -> nn.Module:
        sizes = {"patch_size": 16, "num_layers": 3, "num_heads": 2, "hidden_dim": 24, "mlp_dim": 32}
        net: nn.Module = models.VisionTransformer(**sizes, **named)
        return net

    importlib.import_module("torchvision.models._api").register_model("vit_small")(vit_small)
    return "vit_small"


ABC = ("a", "b", "c")
SPECS = {
    "timm": lambda: spec("resnet50", model="resnet18", preprocessing=small(64), labels=ABC),
    "timm-mobile": lambda: spec("resnet50", model="efficientnet_lite0", preprocessing=small(64), labels=ABC),
    "timm-swin": lambda: spec(
        "resnet50",
        model="swin_tiny_patch4_window7_224",
        preprocessing=wide(64, 96),
        labels=ABC,
        build=TINY_SWIN,
    ),
    "timm-vit": lambda: spec(
        "vit_b16", model="vit_tiny_patch16_224", preprocessing=wide(32, 64), labels=ABC, build={"depth": 3}
    ),
    "timm-distilled": lambda: spec(
        "vit_b16",
        model="deit_tiny_distilled_patch16_224",
        preprocessing=small(64),
        labels=ABC,
        build={"depth": 3},
    ),
    "timm-rotary": lambda: spec(
        "clip_rn50",
        model="vit_small_patch16_dinov3",
        provider="timm",
        preprocessing=wide(32, 64),
        build={"depth": 3},
    ),
    "torchvision": lambda: spec(
        "resnet50", provider="torchvision", model="mobilenet_v3_small", preprocessing=small(64), labels=ABC
    ),
    "torchvision-vit": lambda: spec(
        "vit_b16", provider="torchvision", model=small_vit(), preprocessing=small(64), labels=ABC
    ),
    "torchvision-segmentation": lambda: spec("segment_lraspp", preprocessing=wide(64, 96)),
    "torchvision-video": lambda: clips("i3d_r50", 8, provider="torchvision", model="r3d_18"),
    "open_clip": lambda: spec(
        "clip_rn50",
        preprocessing=small(64),
        build={
            "vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8},
            "text_cfg": TINY_CLIP_TEXT,
            "embed_dim": 16,
        },
    ),
    "open_clip-vit": lambda: spec(
        "clip_rn50",
        model="ViT-B-32",
        preprocessing=small(64),
        build={
            "vision_cfg": {"image_size": 64, "layers": 3, "width": 64, "patch_size": 32, "head_width": 32},
            "text_cfg": TINY_CLIP_TEXT,
            "embed_dim": 16,
        },
    ),
    "transformers-detr": lambda: spec(
        "detr_r50",
        preprocessing=wide(64, 96),
        labels=("a", "b"),
        options={"seed": 1, "config": TINY_DETR},
    ),
    "transformers-blip": lambda: spec(
        "blip_caption", preprocessing=small(48), options={"seed": 1, "config": TINY_BLIP}
    ),
    "transformers-depth": lambda: spec(
        "depth_small", preprocessing=wide(56, 84), options={"seed": 1, "config": TINY_DEPTH}
    ),
    "pytorchvideo-slowfast": lambda: clips(
        "slowfast_r50",
        8,
        build={"stem_dim_outs": [16, 2], "head_pool_kernel_sizes": [[2, 1, 1], [8, 1, 1]]},
    ),
    "pytorchvideo-i3d": lambda: clips(
        "i3d_r50", 4, build={"stem_dim_out": 16, "head_pool_kernel_size": [2, 1, 1]}
    ),
}
FIRST_CUTS = {
    **{"timm": "conv1", "timm-mobile": "conv_stem", "timm-swin": "patch_embed", "timm-vit": "embed"},
    **{"timm-distilled": "embed", "timm-rotary": "embed", "torchvision": "features.0"},
    **{"torchvision-vit": "embed", "torchvision-segmentation": "backbone.0", "torchvision-video": "stem"},
    **{"open_clip": "stem", "open_clip-vit": "embed", "transformers-detr": "embedder"},
    **{"transformers-blip": "embeddings", "transformers-depth": "embeddings"},
    **{"pytorchvideo-slowfast": "blocks.0", "pytorchvideo-i3d": "blocks.0"},
}


def detr(net: Any, x: Tensor) -> Tensor:
    found = net(x)
    return torch.cat([found.logits, found.pred_boxes], dim=-1)


# What the library itself says of the same units.
LIBRARY: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "torchvision-segmentation": lambda net, x: net(x)["out"],
    "open_clip": lambda net, x: net.encode_image(x),
    "open_clip-vit": lambda net, x: net.encode_image(x),
    "transformers-detr": detr,
    "transformers-blip": lambda net, x: net.vision_model(x).last_hidden_state,
    "transformers-depth": lambda net, x: net(x).predicted_depth,
    "pytorchvideo-slowfast": lambda net, x: net([x[:, :, torch.linspace(0, 7, 2).long()], x]),
}


def units(task: LoadedTask, count: int = 2) -> Tensor:
    return torch.randn(count, *task.spec.input_shape, generator=torch.Generator().manual_seed(0))


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


# As many blocks as in the built-in task, of few channels, on small pictures.
NARROW = {
    "resnet50": lambda: spec("resnet50", preprocessing=small(64)),
    "vit_b16": lambda: spec(
        "vit_b16", preprocessing=small(32), build={"embed_dim": 24, "num_heads": 2, "img_size": 32}
    ),
    "clip_rn50": lambda: spec(
        "clip_rn50",
        preprocessing=small(64),
        build={
            "vision_cfg": {"image_size": 64, "layers": [3, 4, 6, 3], "width": 8},
            "text_cfg": TINY_CLIP_TEXT,
            "embed_dim": 16,
        },
    ),
    "slowfast_r50": SPECS["pytorchvideo-slowfast"],
    "i3d_r50": SPECS["pytorchvideo-i3d"],
    "detr_r50": lambda: spec(
        "detr_r50",
        preprocessing=wide(64, 96),
        options={"config": {**TINY_DETR, "backbone": {**TINY_RESNET, "depths": [3, 4, 6, 3]}}},
    ),
    "blip_caption": lambda: spec(
        "blip_caption",
        preprocessing=small(48),
        options={
            "config": {**TINY_BLIP, "vision_config": {**TINY_BLIP["vision_config"], "num_hidden_layers": 12}}
        },
    ),
    "segment_lraspp": SPECS["torchvision-segmentation"],
    "depth_small": lambda: spec(
        "depth_small",
        preprocessing=wide(56, 84),
        options={
            "config": {
                **TINY_DEPTH,
                "backbone_config": {
                    **TINY_DEPTH["backbone_config"],
                    **{"num_hidden_layers": 12, "out_indices": [9, 10, 11, 12]},
                },
            }
        },
    ),
}


def test_built_in_tasks_say_how_many_cuts_they_have() -> None:
    packaged = ("labels", "look")
    found = {name: len(load(narrow()).backbone.cuts) for name, narrow in NARROW.items()}
    found |= {name: len(load(builtin_spec(name)).backbone.cuts) for name in packaged}
    assert found == {name: made.cuts for name, made in RECIPES.items()}


@torch.inference_mode()
def test_looks_are_the_pooled_features_of_published_weights() -> None:
    task = load(builtin_spec("look"))
    x = torch.randn(1, *task.spec.input_shape, generator=torch.Generator().manual_seed(0))
    labels = replace(task.spec, kind="classification", name="other")
    net = load(labels).backbone
    found = task.backbone.whole(x)
    assert found.shape == (1, 1280)
    assert net.whole(x).shape == (1, 1000)
    pooled = next(cut for cut in reversed(net.cuts) if cut.shapes[0][0] == 1280)
    features, _ = net.features(x, [pooled.name])
    torch.testing.assert_close(features[pooled.name][0].mean((2, 3)), found)


@pytest.fixture(params=sorted(SPECS))
def named(request: pytest.FixtureRequest) -> tuple[str, LoadedTask]:
    return request.param, load(SPECS[request.param]())


@torch.inference_mode()
def test_every_tail_continues_its_model_exactly(named: tuple[str, LoadedTask]) -> None:
    name, task = named
    backbone, x = task.backbone, units(task)
    names = [cut.name for cut in backbone.cuts]
    assert len(names) >= 4
    assert len(names) == len(set(names))
    assert names[0] == FIRST_CUTS[name]
    features, output = backbone.features(x, names)
    assert len(output) == 2
    assert apart(backbone.whole(x), output) <= 1e-5
    for cut in backbone.cuts:
        assert tuple(tuple(f.shape[1:]) for f in features[cut.name]) == cut.shapes
        tail, before = backbone.tail(cut.name), [f.clone() for f in features[cut.name]]
        assert apart(tail(*(f[:1] for f in features[cut.name])), output[:1]) <= 1e-5, cut.name
        assert apart(tail(*features[cut.name]), output) <= 1e-4, "two at once: other kernels, other sums"
        assert all(map(torch.equal, before, features[cut.name])), "a tail leaves what it is given"
    assert not any(p.requires_grad for p in backbone.tail(names[0]).parameters())


def test_every_tail_is_cheaper_than_the_one_before(named: tuple[str, LoadedTask]) -> None:
    _, task = named
    backbone = task.backbone
    cuts = [cut.name for cut in backbone.cuts]
    costs = [backbone.tail_gflops(name) for name in cuts]
    assert backbone.whole_gflops() >= costs[0]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0]
    # Counted on the whole: what a tail itself spends is the same.
    middle = backbone.cut(cuts[len(cuts) // 2])
    inputs = [torch.zeros(1, *shape) for shape in middle.shapes]
    assert gflops(backbone.tail(middle.name), *inputs) == backbone.tail_gflops(middle.name)


@torch.inference_mode()
def test_the_whole_says_what_the_library_says(named: tuple[str, LoadedTask]) -> None:
    name, task = named
    net = build_model(task.spec).net.eval()
    ask = LIBRARY.get(name, lambda net, x: net(x))
    x = units(task)
    assert apart(task.backbone.whole(x), ask(net, x)) <= 1e-4  # BatchNorms are folded


@torch.inference_mode()
def test_the_head_reads_the_output(named: tuple[str, LoadedTask]) -> None:
    _, task = named
    output = task.backbone.whole(units(task))
    labels = task.head.labels_of(tuple(output.shape[1:]))
    assert labels is None or labels == len(task.spec.labels)
    assert task.head.agreement(output, output).tolist() == pytest.approx([1.0, 1.0])
    assert task.head.confidence(output).shape == (2,)
    assert float(task.head.loss(output, output)) == pytest.approx(0, abs=1e-4)
    found, table = task.head.rows(
        output, top=2, view=View(height=40, width=60, region=WHOLE), columns=("mask", "depth")
    )
    assert len(found) == table.num_rows


@torch.inference_mode()
def test_random_backbones_tell_pictures_apart(named: tuple[str, LoadedTask]) -> None:
    _, task = named
    one, other = task.backbone.whole(units(task))
    assert apart(one, other) > 1e-3


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    first = load(SPECS["timm-swin"]())
    other = load(replace(first.spec, options={**first.spec.options, "seed": 2}))
    x = torch.randn(1, *first.spec.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        again = load(replace(first.spec, name="again")).backbone.whole(x)
        assert torch.equal(first.backbone.whole(x), again)
        assert not torch.equal(first.backbone.whole(x), other.backbone.whole(x))


def test_clip_texts_are_embedded_in_the_pictures_space() -> None:
    task = load(SPECS["open_clip"]())
    assert task.words is not None
    texts = task.words.embed(["a red car", "a dog"])
    width = task.backbone.whole(torch.zeros(1, *task.spec.input_shape)).shape[-1]
    assert texts.shape == (2, width)
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))


def test_building_a_clip_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    handlers = list(logging.getLogger().handlers)
    build_model(SPECS["open_clip"]())
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers


def test_unknown_models_are_named() -> None:
    with pytest.raises(TaskError, match="open_clip has no model 'RN5'"):
        load(spec("clip_rn50", model="RN5"))
    with pytest.raises(TaskError, match="slowfast_r50, i3d_r50 are known"):
        load(spec("slowfast_r50", model="c2d"))
    with pytest.raises(
        TaskError, match="detr-resnet-50, blip-image-captioning-base, depth-anything-small are"
    ):
        load(spec("detr_r50", model="yolo"))
    with pytest.raises(TaskError, match="timm has no model 'resnet51'"):
        load(spec("resnet50", model="resnet51"))
    with pytest.raises(TaskError, match="torchvision has no model 'resnet51'"):
        load(spec("resnet50", provider="torchvision", model="resnet51"))


def test_sizes_that_a_model_cannot_take_are_refused() -> None:
    with pytest.raises(TaskError, match="BLIP looks at squares, not at 48×64"):
        load(spec("blip_caption", preprocessing=wide(48, 64)))
    with pytest.raises(TaskError, match="vit_small looks at squares, not at 64×96"):
        load(spec("vit_b16", provider="torchvision", model=small_vit(), preprocessing=wide(64, 96)))
    with pytest.raises(TaskError, match="56×90: both sides must be multiples of 14"):
        load(spec("depth_small", preprocessing=wide(56, 90)))


def test_a_model_of_a_library_that_cannot_be_traced_answers_as_a_whole() -> None:
    task = load(spec("resnet50", model="efficientvit_b0", preprocessing=small(64), labels=ABC))
    assert isinstance(task.backbone, Uncut)
    assert task.backbone.whole(units(task)).shape == (2, 3)


@pytest.mark.parametrize("name", ["transformers-detr", "transformers-blip", "transformers-depth"])
def test_published_weights_are_read_under_the_names_that_they_have(name: str, tmp_path: Path) -> None:
    published = build_model(SPECS[name]())
    net: Any = published.net
    net.save_pretrained(tmp_path)  # as the library publishes them
    file = tmp_path / "model.safetensors"
    own = build_model(replace(SPECS[name](), options={**SPECS[name]().options, "seed": 2}))
    load_weights(own, file, what="x")
    x = torch.randn(1, *SPECS[name]().input_shape)
    with torch.inference_mode():
        assert torch.equal(own.run(x), published.run(x))
    other = build_model(
        SPECS["transformers-depth" if name != "transformers-depth" else "transformers-detr"]()
    )
    with pytest.raises(TaskError, match=r"^x: weights missing: .* in all\)"):
        load_weights(other, file, what="x")


def test_positions_are_those_of_the_weights_that_were_loaded() -> None:
    task = load(SPECS["timm-vit"]())
    model = build_model(replace(task.spec, options={**task.spec.options, "seed": 2}))
    backbone = cut_backbone(model, task.spec.input_shape, device="cpu")
    weights: Any = build_model(task.spec).net
    model.net.load_state_dict(weights.state_dict())
    x = units(task)
    with torch.inference_mode():
        found = backbone.features(x, ["embed"])[0]["embed"][0]
        torch.testing.assert_close(found, weights.patch_embed.proj(x), atol=1e-5, rtol=1e-5)


def test_captions_are_those_of_the_library() -> None:
    task = load(SPECS["transformers-blip"]())
    net: Any = build_model(task.spec).net.eval()
    x = units(task)
    told = net.generate(pixel_values=x, max_new_tokens=20, do_sample=False, num_beams=1)
    _, table = task.head.rows(
        task.backbone.whole(x), top=1, view=View(height=9, width=9, region=WHOLE), columns=()
    )
    silent = {0, 1, 2}
    wanted = [" ".join(f"token{t}" for t in row if t not in silent) for row in told.tolist()]
    assert table["caption"].to_pylist() == wanted
    assert len(wanted[0].split()) > 3


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
