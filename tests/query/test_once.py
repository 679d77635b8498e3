"""Equal neighbours in a batch are worked on once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nvpstore.query.operators.once import once_each


def test_runs_are_worked_on_once_and_shown_everywhere() -> None:
    seen: list[Tensor] = []

    def work(x: Tensor, y: Tensor) -> Tensor:
        seen.append(x)
        return x.flatten(1).sum(1) + y[:, 0]

    a, b = torch.rand(2, 3, 2, 2)
    x = torch.stack([a, a, b, b, a])
    y = torch.tensor([[1.0], [1.0], [1.0], [2.0], [2.0]])
    torch.testing.assert_close(once_each(work, x, y), x.flatten(1).sum(1) + y[:, 0])
    assert len(seen[0]) == 4  # the second alone equals the one before it in both
    assert torch.equal(once_each(work, x[2:3], y[2:3]), seen[-1].flatten(1).sum(1) + 1)


def test_what_differs_anywhere_is_worked_on() -> None:
    x = torch.zeros(4, 3, 2, 2)
    x[2:, 2, 1, 1] = 1  # alike in the channel that is looked at first
    found = once_each(
        lambda part: {"mean": part.mean((1, 2, 3)), "size": torch.full((len(part),), len(part))}, x
    )
    assert found["mean"].tolist() == pytest.approx([0, 0, 1 / 12, 1 / 12])
    assert found["size"].tolist() == [2] * 4
