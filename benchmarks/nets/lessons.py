"""What each kind of net learns from: batches drawn from footage, and the loss of published training."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.nets.families import BEGIN, CAPTION_TOKENS, END, PAD, VOCABULARY, Family
from benchmarks.nets.footage import Footage
from benchmarks.world import CLASSES, HEIGHT, WIDTH, FrameTruth
from nvpstore.tasks.backbones.model import Model
from nvpstore.tasks.spec import TaskSpec
from nvpstore.types import TaskKind

CELLS_WEIGHT = 2.0
FROZEN = "DetrFrozenBatchNorm2d"  # of transformers, which is imported only where a net of it is built
NOTHING = 0.1  # as DETR weighs slots without an object
TRACKED = 2  # the block of SlowFast whose maps are looked at: an eighth of the pictures' sides
BOX_WEIGHT = 5.0  # as DETR weighs L1 of boxes against classes
JITTER = 0.25  # of brightness and contrast
_WORD = {word: number for number, word in enumerate(VOCABULARY)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """Units ready for the backbone, and what is true of each, and of each of its frames. `flipped`: left and
    right are exchanged.
    """

    x: Tensor
    truth: Sequence[FrameTruth]
    frames: Sequence[Sequence[FrameTruth]]
    flipped: Sequence[bool]


def draw(footage: Footage, family: Family, spec: TaskSpec, chance: random.Random) -> Lesson:
    """A batch of frames, or of clips, anywhere in the footage; flipped, lighter or darker."""
    pictures, truth, shown, flipped = [], [], [], []
    for _ in range(family.batch):
        clip = chance.randrange(footage.clips)
        frames = _unit(footage.frames, spec, chance)
        flip = chance.random() < 0.5
        rgb = footage.at(clip, frames)
        pictures.append(_varied(rgb.flip(-1) if flip else rgb, chance))
        truth.append(footage.truth[clip][middle(frames)])
        shown.append([footage.truth[clip][frame] for frame in frames])
        flipped.append(flip)
    return Lesson(x=spec.prepare(torch.cat(pictures)), truth=truth, frames=shown, flipped=flipped)


def middle(frames: Sequence[int]) -> int:
    """The frame that a clip is about: half of it comes before."""
    return frames[len(frames) // 2]


def _unit(frames: int, spec: TaskSpec, chance: random.Random) -> Sequence[int]:
    if spec.clip is None:
        return [chance.randrange(frames)]
    start = chance.randrange(frames - spec.clip.span + 1)
    return range(start, start + spec.clip.span, spec.clip.stride)


def _varied(rgb: Tensor, chance: random.Random) -> Tensor:
    light, contrast = (1 + chance.uniform(-JITTER, JITTER) for _ in range(2))
    mean = rgb.mean()
    return ((rgb - mean) * contrast + mean * light).clamp(0, 255)


# ---------------------------------------------------------------- losses

EXTRA = "cells."  # what a net has only while it learns


def prepare(model: Model, family: Family, device: str) -> None:
    """A net in training: bf16 in it (DETR: in the trunk alone, its boxes become NaN), and a second lesson."""
    net: Any = model.net
    if family.kind == "action":
        paths = net.blocks[TRACKED + 1].multipathway_blocks
        net.cells = Track([path.res_blocks[0].branch1_conv.in_channels for path in paths]).to(device)
        net.blocks[TRACKED].multipathway_fusion.register_forward_hook(net.cells.look_at)
        return
    part = net.model.backbone.model if family.kind == "detection" else net
    part.forward = torch.autocast(device, torch.bfloat16)(part.forward)
    if family.kind == "detection":
        _thaw(net.model.backbone)
        net.cells = Cells(net.model.input_projection.in_channels, len(CLASSES), nothing=NOTHING).to(device)
        net.model.backbone.register_forward_hook(net.cells.look_at_maps)
        net.model.encoder.register_forward_hook(net.cells.look_at_memory)
    elif family.kind == "classification":
        net.cells = Cells(net.layer3[-1].conv3.out_channels, len(CLASSES)).to(device)
        net.layer3.register_forward_hook(net.cells.look_at_map)
    elif family.kind == "caption":
        net.cells = Cells(net.config.vision_config.hidden_size, len(CLASSES)).to(device)
        net.vision_model.register_forward_hook(net.cells.look_at_tokens)


def _thaw(net: nn.Module) -> None:
    """DETR's normalisation has statistics that do not change, of a trunk that knows ImageNet: one that begins
    to learn needs its batches' own, which are kept under the same names.
    """
    for name, module in net.named_children():
        if type(module).__name__ == FROZEN:
            setattr(net, name, nn.BatchNorm2d(len(cast(Tensor, module.weight))))
        else:
            _thaw(module)


class Cells(nn.Module):
    """A second lesson: the class of what lies at each place of a map inside a net.

    By its own lesson alone a net takes very long to find out what it is to look at; published nets begin with
    a trunk that knows ImageNet. `nothing` is the weight of places without an object.
    """

    def __init__(self, channels: int, classes: int, *, nothing: float = 1.0) -> None:
        super().__init__()
        self.head = nn.Conv2d(channels, classes + 1, 1)
        self.register_buffer("weights", torch.tensor([1.0] * classes + [nothing]))
        self.seen = self.memory = torch.empty(0)

    def look_at_map(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """A forward hook on what makes a map [b, c, h, w]."""
        self.seen = output.float()

    def look_at_maps(self, module: nn.Module, inputs: Any, output: Sequence[tuple[Tensor, Tensor]]) -> Any:
        """A forward hook on DETR's trunk, whose maps go on in fp32."""
        maps = [(each.float(), mask) for each, mask in output]
        self.seen = maps[-1][0]
        return maps

    def look_at_memory(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A forward hook on DETR's encoder: tokens [b, h · w, c] for its maps."""
        self.memory = output.last_hidden_state

    def look_at_tokens(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A forward hook on a vision transformer: tokens [b, 1 + side², c]."""
        tokens = output.last_hidden_state[:, 1:].float()
        side = math.isqrt(tokens.shape[1])
        self.seen = tokens.transpose(1, 2).unflatten(2, (side, side))

    def forward(self, labels: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """The loss of the last pictures seen. `labels` as `boxes_of` makes them, the nearest object first."""
        said = self.head(self.seen)
        return F.cross_entropy(said, self._wanted(labels)[0], self.weights)

    def boxes(self, net: Any, labels: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """The loss of DETR's own heads on its memory: at each place the class and box of what lies there
        (proposals of Zhu et al., 2021), which the decoder's slots then only have to tell apart.
        """
        classes, boxes = self._wanted(labels)
        said = net.class_labels_classifier(self.memory).transpose(1, 2)
        found = net.bbox_predictor(self.memory).sigmoid()
        there = (classes < self.head.out_channels - 1).flatten(1)
        away = F.l1_loss(found[there], boxes.flatten(1, 2)[there], reduction="sum")
        return F.cross_entropy(
            said, classes.flatten(1), self.weights
        ) + BOX_WEIGHT * away / there.sum().clamp_min(1)

    def _wanted(self, labels: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """(class [b, h, w], the last one where there is nothing; box [b, h, w, 4]) of what lies there."""
        size, device = self.seen.shape[2:], self.seen.device
        classes = torch.full((len(labels), *size), self.head.out_channels - 1, device=device)
        boxes = torch.zeros(*classes.shape, 4, device=device)
        y, x = (torch.arange(n, device=device).add(0.5).div(n) for n in size)
        for row, told in enumerate(labels):
            for number, box in reversed(list(zip(told["class_labels"], told["boxes"], strict=True))):
                cx, cy, w, h = box
                here = ((y - cy).abs() < 0.4 * h)[:, None] & ((x - cx).abs() < 0.4 * w)
                classes[row][here], boxes[row][here] = number, box
        return classes, boxes


class Track(nn.Module):
    """A second lesson for SlowFast: where the object in front is, at each time, on both paths' maps."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv3d(each, 1, 1) for each in channels)
        self.seen: list[Tensor] = []

    def look_at(self, module: nn.Module, inputs: Any, output: Sequence[Tensor]) -> None:
        """A forward hook on what makes the paths' maps [b, c, t, h, w]."""
        self.seen = [each.float() for each in output]

    def forward(self, lesson: Lesson) -> Tensor:
        """The loss of the last clips seen."""
        wanted = torch.stack(
            [
                torch.stack([_front(told, flip=flip) for told in frames])
                for frames, flip in zip(lesson.frames, lesson.flipped, strict=True)
            ]
        ).to(lesson.x.device)
        return torch.stack(
            [self._loss(*each, wanted) for each in zip(self.heads, self.seen, strict=True)]
        ).sum()

    def _loss(self, head: nn.Module, seen: Tensor, boxes: Tensor) -> Tensor:
        """`boxes` [b, frames, 4] as centre and size in fractions, of size 0 where nothing is in front."""
        said = head(seen).squeeze(1)
        times = torch.linspace(0, boxes.shape[1] - 1, said.shape[1], device=said.device).long()
        cx, cy, w, h = boxes[:, times].unbind(-1)
        y, x = (torch.arange(n, device=said.device).add(0.5).div(n) for n in said.shape[2:])
        rows = (y - cy[..., None]).abs() < h[..., None] / 2
        columns = (x - cx[..., None]).abs() < w[..., None] / 2
        return F.binary_cross_entropy_with_logits(said, (rows[..., None] & columns[..., None, :]).float())


def _front(told: FrameTruth, *, flip: bool) -> Tensor:
    """The box [4] of the object that acts."""
    if not told.boxes or told.boxes[0][0] != told.label:
        return torch.zeros(4)
    return boxes_of(told, flip=flip)["boxes"][0]


def _classes(model: Model, lesson: Lesson, family: Family) -> Tensor:
    wanted = [family.labels.index(told.label) for told in lesson.truth]
    loss = F.cross_entropy(model.run(lesson.x), _on(lesson.x, wanted), label_smoothing=0.05)
    return loss + _cells(model, lesson)


def _actions(model: Model, lesson: Lesson, family: Family) -> Tensor:
    wanted = [family.labels.index(told.action) for told in lesson.truth]
    cells: Any = getattr(model.net, "cells", None)
    with torch.autocast(lesson.x.device.type, torch.bfloat16, enabled=cells is not None):
        said = model.run(lesson.x)
    loss = F.cross_entropy(said.float(), _on(lesson.x, wanted), label_smoothing=0.05)
    return loss if cells is None else loss + CELLS_WEIGHT * cells(lesson)


def _objects(model: Model, lesson: Lesson, family: Family) -> Tensor:
    """Hungarian matching, classes, L1 and generalised IoU, in every decoder layer (Carion et al., 2020)."""
    net: Any = model.net
    mask = torch.ones(len(lesson.x), *lesson.x.shape[2:], dtype=torch.long, device=lesson.x.device)
    labels = _boxes(lesson)
    loss: Tensor = net(pixel_values=lesson.x, pixel_mask=mask, labels=labels).loss
    if cells := getattr(net, "cells", None):
        loss = loss + CELLS_WEIGHT * (cells(labels) + cells.boxes(net, labels))
    return loss


def _cells(model: Model, lesson: Lesson) -> Tensor | float:
    """The second lesson, of a net that was prepared."""
    cells: Any = getattr(model.net, "cells", None)
    return CELLS_WEIGHT * cells(_boxes(lesson)) if cells is not None else 0.0


def _boxes(lesson: Lesson) -> list[dict[str, Tensor]]:
    pairs = zip(lesson.truth, lesson.flipped, strict=True)
    return [boxes_of(told, flip=flip, device=lesson.x.device) for told, flip in pairs]


def _captions(model: Model, lesson: Lesson, family: Family) -> Tensor:
    net: Any = model.net
    tokens = _on(lesson.x, [tokens_of(told.caption) for told in lesson.truth])
    said = tokens.masked_fill(tokens == PAD, -100)
    loss: Tensor = net(
        pixel_values=lesson.x, input_ids=tokens, attention_mask=(tokens != PAD).long(), labels=said
    ).loss
    return loss + _cells(model, lesson)


LOSSES: Mapping[TaskKind, Callable[[Model, Lesson, Family], Tensor]] = {
    "classification": _classes,
    "action": _actions,
    "detection": _objects,
    "caption": _captions,
}


def tokens_of(sentence: str) -> list[int]:
    """Ids of a caption, padded to CAPTION_TOKENS."""
    ids = [BEGIN, *(_WORD[word] for word in sentence.split()), END]
    return ids + [PAD] * (CAPTION_TOKENS - len(ids))


def boxes_of(told: FrameTruth, *, flip: bool, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """A frame's objects as DETR wants them: classes, and boxes as centre and size in fractions."""
    corners = torch.tensor([box[1:] for box in told.boxes]).reshape(-1, 4)
    corners = corners / torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    if flip:
        corners = torch.stack([1 - corners[:, 2], corners[:, 1], 1 - corners[:, 0], corners[:, 3]], dim=1)
    low, high = corners[:, :2], corners[:, 2:]
    classes = torch.tensor([CLASSES.index(box[0]) for box in told.boxes], dtype=torch.long)
    return {
        "class_labels": classes.to(device),
        "boxes": torch.cat([(low + high) / 2, high - low], dim=1).to(device),
    }


def _on(x: Tensor, values: Sequence[Any]) -> Tensor:
    return torch.tensor(values, device=x.device)
