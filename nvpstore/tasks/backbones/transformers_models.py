"""Backbones of transformers (extra `transformers`): DETR finds objects, BLIP writes captions.

Carion et al., "End-to-end object detection with transformers", ECCV 2020; Li et al., "BLIP", ICML 2022.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nvpstore.errors import TaskError
from nvpstore.tasks.backbones.captions import BlipWriter
from nvpstore.tasks.backbones.model import Model, library
from nvpstore.tasks.backbones.torchvision_ops import make_torchvision_importable
from nvpstore.tasks.chain import Block, Maps, Tokens
from nvpstore.tasks.spec import TaskSpec

MODELS = ("detr-resnet-50", "blip-image-captioning-base")


def build(spec: TaskSpec) -> Model:
    """`spec.model` is one of MODELS; `spec.options["config"]` changes its published configuration."""
    make_torchvision_importable()
    transformers = library("transformers", package="transformers", model=spec.model)
    if spec.model == "detr-resnet-50":
        return _detr(transformers, spec)
    if spec.model == "blip-image-captioning-base":
        return _blip(transformers, spec)
    raise TaskError(f"task {spec.name}: transformers models {', '.join(MODELS)} are known")


def _detr(transformers: Any, spec: TaskSpec) -> Model:
    changes = dict(spec.options.get("config", {}))
    resnet = transformers.ResNetConfig(out_features=["stage4"], **changes.pop("backbone", {}))
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        backbone_config=resnet,
        num_labels=len(spec.labels),
        **changes,
    )
    net = transformers.DetrForObjectDetection(config)
    return Model(net=net, blocks=tuple(_detr_chain(net)))


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
        vision_config={"image_size": size, **changes.pop("vision_config", {})},
        text_config=changes.pop("text_config", {}),
        **changes,
    )
    net = transformers.BlipForConditionalGeneration(config)
    return Model(
        net=net,
        blocks=tuple(_blip_chain(net.vision_model)),
        writer=BlipWriter(net, spec.options.get("vocabulary")),
    )


class _BlipLayer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Any = self.layer(x, attention_mask=None)
        state: Tensor = out[0] if isinstance(out, tuple) else out
        return state


def _blip_chain(vision: Any) -> Iterator[Block]:
    side = vision.embeddings.image_size // vision.embeddings.patch_size
    position = vision.embeddings.position_embedding[0, 1:]

    def tokens() -> Tokens:
        return Tokens((side, side), first=1, position=position)

    yield Block(name="embeddings", run=vision.embeddings, form=tokens())
    for i, layer in enumerate(vision.encoder.layers):
        yield Block(name=f"layers.{i}", run=_BlipLayer(layer), form=tokens())
    yield Block(name="post_layernorm", run=vision.post_layernorm)
