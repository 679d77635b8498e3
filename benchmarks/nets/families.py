"""Which nets there are: what each is asked, and of which family and width it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.world import ACTIONS, CLASSES, caption
from nvpstore.tasks.preprocessing import Preprocessing
from nvpstore.tasks.recipes import IMAGENET
from nvpstore.tasks.spec import Clip, TaskSpec
from nvpstore.types import TaskKind

PAD, BEGIN, END = 0, 1, 2  # in the vocabulary
SPECIAL = ("[PAD]", "[BEGIN]", "[END]")
CAPTION_TOKENS = 10


def _words() -> tuple[str, ...]:
    """Every word that a caption of the world can hold."""
    said = {
        word
        for label in CLASSES
        for action in ACTIONS
        for others in range(4)
        for word in caption([label] * (others + 1), action).split()
    }
    return (*SPECIAL, *sorted(said))


VOCABULARY = _words()


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One net and how it is trained: AdamW at `rate`, cosine, `steps` of `batch` units."""

    kind: TaskKind
    provider: str
    model: str
    size: tuple[int, int]
    labels: tuple[str, ...] = ()
    clip: Clip | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int
    batch: int
    rate: float = 1e-3

    def spec(self, name: str, *, weights_sha256: str = "") -> TaskSpec:
        """The task that the trained net answers."""
        return TaskSpec(
            name=name,
            kind=self.kind,
            provider=self.provider,
            model=self.model,
            weights_sha256=weights_sha256,
            preprocessing=Preprocessing(height=self.size[0], width=self.size[1], **IMAGENET),
            labels=self.labels,
            clip=self.clip,
            options=dict(self.options),
        )


FAMILIES: Mapping[str, Family] = {
    # ResNet-50 at a quarter of its width: what is the object in front?
    "world_class": Family(
        kind="classification",
        provider="timm",
        model="resnet50",
        size=(120, 160),
        labels=CLASSES,
        options={"build": {"channels": [16, 32, 64, 128]}},
        steps=2_000,  # after 5,000 it is right so often (0.96) that no codec can be told from another
        batch=32,
    ),
    # SlowFast R50 at a quarter: what does it do?
    "world_action": Family(
        kind="action",
        provider="pytorchvideo",
        model="slowfast_r50",
        size=(60, 80),
        labels=ACTIONS,
        clip=Clip(frames=16, stride=2),
        options={
            "build": {
                "stem_dim_outs": [16, 4],
                "slowfast_channel_reduction_ratio": [4],
                "head_pool_kernel_sizes": [[4, 1, 1], [16, 1, 1]],
                "dropout_rate": 0.2,
            }
        },
        steps=2_000,
        batch=16,
    ),
    # DETR with two encoder and three decoder layers on a narrow ResNet of stride 16: what is where?
    "world_objects": Family(
        kind="detection",
        provider="transformers",
        model="detr-resnet-50",
        size=(120, 160),
        labels=CLASSES,
        options={
            "config": {
                "backbone": {
                    "embedding_size": 32,
                    "hidden_sizes": [64, 128, 192],
                    "depths": [2, 2, 2],
                    "layer_type": "basic",
                },
                "d_model": 96,
                "encoder_layers": 2,
                "decoder_layers": 3,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "encoder_ffn_dim": 256,
                "decoder_ffn_dim": 256,
                "num_queries": 12,
                "dropout": 0.0,
                "auxiliary_loss": True,
            }
        },
        steps=12_000,  # those that are shipped: with a new optimiser from step 4,000 on
        batch=24,
        rate=5e-4,
    ),
    # BLIP of four layers each side: a sentence about it.
    "world_caption": Family(
        kind="caption",
        provider="transformers",
        model="blip-image-captioning-base",
        size=(120, 120),
        options={
            "config": {
                "vision_config": {
                    "patch_size": 12,
                    "hidden_size": 128,
                    "intermediate_size": 384,
                    "num_hidden_layers": 6,
                    "num_attention_heads": 4,
                },
                "text_config": {
                    "vocab_size": len(VOCABULARY),
                    "hidden_size": 96,
                    "encoder_hidden_size": 128,
                    "intermediate_size": 256,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 4,
                    "max_position_embeddings": 32,
                    "bos_token_id": BEGIN,
                    "sep_token_id": END,
                    "eos_token_id": END,
                    "pad_token_id": PAD,
                    "hidden_dropout_prob": 0.0,
                    "attention_probs_dropout_prob": 0.0,
                },
            },
            "vocabulary": VOCABULARY,
        },
        steps=5_000,
        batch=32,
        rate=5e-4,
    ),
}
