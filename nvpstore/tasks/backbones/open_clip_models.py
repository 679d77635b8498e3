"""CLIP of open_clip (extra `open-clip`): the picture side as a backbone of embeddings, the text side for
`embed_text`. Radford et al., "Learning transferable visual models", ICML 2021.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvpstore.errors import TaskError
from nvpstore.tasks.backbones.model import Call, Model, library
from nvpstore.tasks.backbones.torchvision_ops import make_torchvision_importable
from nvpstore.tasks.chain import Block, Maps, Tokens
from nvpstore.tasks.spec import TaskSpec


class ClipWords:
    """The text tower of a CLIP. Its tokenizer is made when it is first needed: some are downloads."""

    def __init__(self, net: Any, make_tokenizer: Callable[[], Any]) -> None:
        self.net = net
        self.tokenizer = cache(make_tokenizer)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer()(list(texts))
        return F.normalize(self.net.encode_text(tokens).float(), dim=-1)


def build(spec: TaskSpec) -> Model:
    """`spec.model` is open_clip's name, such as ViT-B-16; OpenAI's weights need those that end in -quickgelu.
    `spec.options["build"]` goes to open_clip's builder.
    """
    make_torchvision_importable()
    open_clip = library("open_clip", package="open_clip_torch", model=spec.model)
    if spec.model not in open_clip.list_models():
        raise TaskError(f"task {spec.name}: open_clip has no model {spec.model!r}")
    with _untold():
        net = open_clip.create_model(spec.model, pretrained=None, **spec.options.get("build", {}))
    words = ClipWords(net, partial(open_clip.get_tokenizer, spec.model))
    kind = type(net.visual).__name__
    if kind == "ModifiedResNet":
        return Model(net=net, blocks=_resnet(net.visual), words=words)
    if kind == "VisionTransformer":
        return Model(net=net, blocks=_vit(net.visual), words=words)
    return Model(net=net, answers=net.visual, words=words)


@contextmanager
def _untold() -> Iterator[None]:
    """Without open_clip's warning that weights are drawn at random, and the log that it would set up."""
    root, nowhere = logging.getLogger(), logging.NullHandler()
    root.addHandler(nowhere)
    root.addFilter(_is_news)
    try:
        yield
    finally:
        root.removeFilter(_is_news)
        root.removeHandler(nowhere)


def _is_news(record: logging.LogRecord) -> bool:
    return "initialized randomly" not in record.getMessage()


def _resnet(visual: Any) -> tuple[Block, ...]:
    layers = (
        Block(name=f"layer{i}.{j}", run=block, form=Maps())
        for i in range(1, 5)
        for j, block in enumerate(getattr(visual, f"layer{i}"))
    )
    return (
        Block(name="stem", run=Call(visual, "stem"), form=Maps()),
        *layers,
        Block(name="attnpool", run=visual.attnpool),
    )


def _vit(visual: Any) -> tuple[Block, ...]:
    def tokens() -> Tokens:
        return Tokens(visual.grid_size, first=1, position=lambda: visual.positional_embedding[1:])

    blocks = (
        Block(name=f"blocks.{i}", run=block, form=tokens())
        for i, block in enumerate(visual.transformer.resblocks)
    )
    embed = Block(name="embed", run=Call(visual, "_embeds"), form=tokens())
    return embed, *blocks, Block(name="pool", run=_Pool(visual))


class _Pool(nn.Module):
    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, x: Tensor) -> Tensor:
        visual: Any = self.visual
        pooled: Tensor = visual._pool(x)[0]
        return pooled if visual.proj is None else pooled @ visual.proj
