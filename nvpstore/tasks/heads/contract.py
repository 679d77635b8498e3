"""What a backbone's output means, whatever its kind."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from nvpstore.codec.grids import Region

CONFIDENT = 0.4  # agreement is also reported over the units on which the reference is at least this sure


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a backbone was shown: `region` of pictures of `height` × `width` pixels."""

    height: int
    width: int
    region: Region


class Head(Protocol):
    """One output kind. `output` [u, …] is the backbone's own output for u units (pictures, or clips)."""

    def rows(
        self, output: Tensor, *, top: int, view: View, columns: Collection[str]
    ) -> tuple[NDArray[np.int64], pa.Table]:
        """(position of the unit that each row belongs to, the kind's own columns).

        Columns that are costly to make may be missing where they are not in `columns`.
        """
        ...

    def confidence(self, output: Tensor) -> Tensor:
        """How sure each answer is, [u] in 0 … 1."""
        ...

    def agreement(self, output: Tensor, reference: Tensor) -> Tensor:
        """How far each answer is the reference's, [u] in 0 … 1."""
        ...

    def loss(self, output: Tensor, reference: Tensor) -> Tensor:
        """The task term: a scalar ≥ 0, 0 where output and reference say the same."""
        ...

    def labels_of(self, output_shape: tuple[int, ...]) -> int | None:
        """How many labels a backbone with outputs [u, *output_shape] tells apart; None for kinds without."""
        ...
