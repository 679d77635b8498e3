"""Backbones of transformers (extra `transformers`): DETR finds objects, BLIP writes captions, Depth Anything
sees depth.

Carion et al., "End-to-end object detection with transformers", ECCV 2020; Li et al., "BLIP", ICML 2022; Yang
et al., "Depth anything", CVPR 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nvpstore.errors import TaskError
from nvpstore.tasks.backbones.captions import BlipWriter
from nvpstore.tasks.backbones.model import Model, library
from nvpstore.tasks.backbones.torchvision_ops import make_torchvision_importable
from nvpstore.tasks.chain import Block, Maps, Tokens
from nvpstore.tasks.drawn import DRAWN_STD
from nvpstore.tasks.spec import TaskSpec

RESNET50_DEPTHS = (3, 4, 6, 3)


def build(spec: TaskSpec) -> Model:
    """`spec.model` is one of MODELS; `spec.options["config"]` changes its published configuration."""
    make_torchvision_importable()
    transformers = library("transformers", package="transformers", model=spec.model)
    if spec.model not in MODELS:
        raise TaskError(f"task {spec.name}: transformers models {', '.join(MODELS)} are known")
    return MODELS[spec.model](transformers, spec)


def _published(transformers: Any, net: Any) -> Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]:
    """Published weights have names of the library's older releases, which its own loader knows."""

    def own_names(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        try:
            loaded, said = type(net).from_pretrained(
                None, config=net.config, state_dict=dict(tensors), output_loading_info=True
            )
        except RuntimeError as cause:  # shapes
            raise TaskError(f"weights of another shape: {str(cause).splitlines()[0]}") from cause
        for problem in ("missing", "unexpected", "mismatched"):
            if names := sorted(str(name) for name in said[f"{problem}_keys"]):
                raise TaskError(f"weights {problem}: {', '.join(names[:3])} ({len(names)} in all)")
        own: Mapping[str, Tensor] = loaded.state_dict()
        return own

    return own_names


def _detr(transformers: Any, spec: TaskSpec) -> Model:
    changes = dict(spec.options.get("config", {}))
    layers = changes.pop("backbone", {})
    last = f"stage{len(layers.get('depths', RESNET50_DEPTHS))}"
    resnet = transformers.ResNetConfig(out_features=[last], **layers)
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=resnet,
        num_labels=len(spec.labels),
        **changes,
    )
    net = transformers.DetrForObjectDetection(config)
    return Model(net=net, blocks=tuple(_detr_chain(net)), own_names=_published(transformers, net))


def _detr_chain(net: Any) -> Iterator[Block]:
    resnet = net.model.backbone.model
    yield Block(name="embedder", run=resnet.embedder, form=Maps())
    for i, stage in enumerate(resnet.encoder.stages):
        for j, layer in enumerate(stage.layers):
            yield Block(name=f"stages.{i}.{j}", run=layer, form=Maps())
    yield Block(name="transformer", run=_DetrTransformer(net))


class _DetrTransformer(nn.Module):
    """The last feature map → [b, queries, labels + 1 + 4]: class logits ("no object" last), then the boxes'
    centre x, y, width and height in fractions of the input.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.inside, self.labels, self.boxes = net.model, net.class_labels_classifier, net.bbox_predictor

    def forward(self, features: Tensor) -> Tensor:
        inside: Any = self.inside
        batch, _, height, width = features.shape
        seen = torch.ones(batch, height, width, dtype=torch.bool, device=features.device)
        places = inside.position_embedding(
            shape=features.shape, device=features.device, dtype=features.dtype, mask=seen
        )
        # BxCxHxW -> Bx(H·W)xC
        places = places.flatten(2).transpose(1, 2)
        encoded = inside.encoder(
            inputs_embeds=inside.input_projection(features).flatten(2).transpose(1, 2),
            attention_mask=seen.flatten(1),
            spatial_position_embeddings=places,
        ).last_hidden_state
        queries = inside.query_position_embeddings.weight.expand(batch, -1, -1)
        decoded = inside.decoder(
            inputs_embeds=torch.zeros_like(queries),
            attention_mask=None,
            spatial_position_embeddings=places,
            object_queries_position_embeddings=queries,
            encoder_hidden_states=encoded,
            encoder_attention_mask=seen.flatten(1),
        ).last_hidden_state
        return torch.cat([self.labels(decoded), self.boxes(decoded).sigmoid()], dim=-1)


def _blip(transformers: Any, spec: TaskSpec) -> Model:
    changes = dict(spec.options.get("config", {}))
    size = spec.preprocessing.height
    if size != spec.preprocessing.width:
        raise TaskError(f"task {spec.name}: BLIP looks at squares, not at {size}×{spec.preprocessing.width}")
    config = transformers.BlipConfig(
        vision_config={
            "image_size": size,
            "initializer_range": DRAWN_STD,  # the library's 1e-10 tells no pictures apart
            **changes.pop("vision_config", {}),
        },
        text_config=changes.pop("text_config", {}),
        **changes,
    )
    net = transformers.BlipForConditionalGeneration(config)
    return Model(
        net=net,
        blocks=tuple(_blip_chain(net.vision_model)),
        writer=BlipWriter(net, spec.options.get("vocabulary")),
        own_names=_published(transformers, net),
    )


class _Layer(nn.Module):
    """A layer of an encoder in which every token attends to all."""

    def __init__(self, layer: nn.Module, **asked: None) -> None:
        super().__init__()
        self.layer, self.asked = layer, asked

    def forward(self, x: Tensor) -> Tensor:
        out: Any = self.layer(x, **self.asked)
        state: Tensor = out[0] if isinstance(out, tuple) else out
        return state


def _blip_chain(vision: Any) -> Iterator[Block]:
    side = vision.embeddings.image_size // vision.embeddings.patch_size

    def tokens() -> Tokens:
        return Tokens((side, side), first=1, position=lambda: vision.embeddings.position_embedding[0, 1:])

    yield Block(name="embeddings", run=vision.embeddings, form=tokens())
    for i, layer in enumerate(vision.encoder.layers):
        yield Block(name=f"layers.{i}", run=_Layer(layer, attention_mask=None), form=tokens())
    yield Block(name="post_layernorm", run=vision.post_layernorm)


def _depth(transformers: Any, spec: TaskSpec) -> Model:
    config = transformers.DepthAnythingConfig(**spec.options.get("config", {}))
    height, width = spec.preprocessing.height, spec.preprocessing.width
    if height % config.patch_size or width % config.patch_size:
        raise TaskError(
            f"task {spec.name}: {height}×{width}: both sides must be multiples of {config.patch_size}"
        )
    net = transformers.DepthAnythingForDepthEstimation(config)
    return Model(
        net=net,
        blocks=tuple(_depth_chain(net, height, width)),
        own_names=_published(transformers, net),
    )


def _depth_chain(net: Any, height: int, width: int) -> Iterator[Block]:
    """Blocks up to the first layer that the depth decoder reads, then all the rest."""
    backbone, embeddings = net.backbone, net.backbone.embeddings
    grid = height // net.config.patch_size, width // net.config.patch_size

    def position() -> Tensor:
        own = embeddings.position_embeddings
        like = own.new_empty(1, grid[0] * grid[1] + 1, own.shape[2])
        placed: Tensor = embeddings.interpolate_pos_encoding(like, height, width)[0, 1:]
        return placed

    def tokens() -> Tokens:
        return Tokens(grid, first=1, position=position)

    yield Block(name="embeddings", run=embeddings, form=tokens())
    first = min(backbone.out_indices)
    for i, layer in enumerate(backbone.encoder.layer[:first]):
        yield Block(name=f"layers.{i}", run=_Layer(layer), form=tokens())
    yield Block(name="depth", run=_DepthRest(net, first, grid))


class _DepthRest(nn.Module):
    """Tokens behind the first `first` layers → depth (its inverse) [b, h, w]."""

    def __init__(self, net: Any, first: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(layer) for layer in net.backbone.encoder.layer[first:])
        self.norm = net.backbone.layernorm if net.backbone.config.apply_layernorm else nn.Identity()
        self.neck, self.head = net.neck, net.head
        self.read = [index - first for index in net.backbone.out_indices]
        self.grid = grid

    def forward(self, x: Tensor) -> Any:
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        read = [self.norm(states[i]) for i in self.read]
        return self.head(self.neck(read, *self.grid), *self.grid)


MODELS: Mapping[str, Callable[[Any, TaskSpec], Model]] = {
    "detr-resnet-50": _detr,
    "blip-image-captioning-base": _blip,
    "depth-anything-small": _depth,
}
