"""What a net's outputs say, in the forms that scores are computed from."""

from __future__ import annotations

import torch
from torch import Tensor

from nvpstore.tasks.heads.detection import Objects
from nvpstore.tasks.registry import LoadedTask


def captions_of(task: LoadedTask, outputs: Tensor) -> list[str]:
    """A sentence a unit."""
    writer = getattr(task.head, "writer", None)
    assert writer is not None, "a task of captions has a writer"
    said: list[str] = writer.write(outputs)
    return said


def found_of(outputs: Tensor) -> list[Objects]:
    """(scores, classes, corners in fractions of the picture) a unit, of slots whose likeliest class is an
    object.
    """
    scores, classes = outputs[..., :-4].softmax(-1)[..., :-1].max(-1)
    objects = outputs[..., :-4].argmax(-1) != outputs.shape[-1] - 5
    centre, size = outputs[..., -4:-2], outputs[..., -2:]
    corners = torch.cat([centre - size / 2, centre + size / 2], dim=-1).clamp(0, 1)
    return [
        (s[o].cpu().numpy(), c[o].cpu().numpy(), b[o].cpu().numpy())
        for s, c, b, o in zip(scores, classes, corners, objects, strict=True)
    ]
