"""Means with their intervals, of clips that are compared pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000
LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and the middle 95 % of its bootstrap."""

    mean: float
    low: float
    high: float


def paired(
    own: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], *, seed: int = 0
) -> Interval:
    """The difference of two scores of the same units, clip by clip; clips are drawn with replacement
    (Efron, 1979), since the frames of one clip are alike.
    """
    sums = np.array([sum(a) - sum(b) for a, b in zip(own, reference, strict=True)])
    counts = np.array([len(a) for a in own])
    chance = np.random.default_rng(seed)
    drawn = chance.integers(0, len(sums), (DRAWS, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean=float(sums.sum() / counts.sum()), low=float(low), high=float(high))
