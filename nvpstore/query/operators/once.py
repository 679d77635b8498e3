"""Work on batches in which neighbours are equal: a camera at rest, stored with one latent for many frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

Found = TypeVar("Found", Tensor, Mapping[str, Tensor])


def once_each(work: Callable[..., Found], *batches: Tensor) -> Found:
    """`work` on `batches` [t, …], which goes frame by frame: on one of each run of equal neighbours alone."""
    repeats = _repeats(batches)
    if not repeats.any():
        return work(*batches)
    found = work(*(x[~repeats] for x in batches))
    places = (~repeats).cumsum(0) - 1
    if isinstance(found, Tensor):
        return found[places]
    return {name: x[places] for name, x in found.items()}


def _repeats(batches: tuple[Tensor, ...]) -> Tensor:
    """Whether each frame equals the one before in every batch, bool [t]."""
    first = batches[0]
    found = torch.zeros(len(first), dtype=torch.bool, device=first.device)
    if len(first) == 1 or not bool(_equal(first[:, :1]).any()):
        return found  # as nearly always, seen from one channel
    found[1:] = torch.stack([_equal(x) for x in batches]).all(0)
    return found


def _equal(x: Tensor) -> Tensor:
    """Whether each but the first equals its neighbour before, bool [t − 1]."""
    return (x[1:] == x[:-1]).flatten(1).all(1)
