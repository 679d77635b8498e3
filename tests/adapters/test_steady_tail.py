"""A tail with memory: any cut's tensors, one frame at a time, and back from what is stored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nvpstore.adapters.stabilizer import LIGHT, Place, Stabilizer, State
from nvpstore.adapters.steady_tail import SteadyTail, new_tail
from nvpstore.adapters.stored_steady import SteadyRecord, decode_record, decode_stabilizer, encode_stabilizer
from nvpstore.errors import CodecError
from nvpstore.tasks.backbone import Cut

CUT = Cut(name="late", shapes=((6, 4, 5), (6, 2)))


class Tail(nn.Module):
    """A map and tokens → logits."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(12, 9)

    def forward(self, grid: Tensor, tokens: Tensor) -> Tensor:
        out: Tensor = self.last(torch.cat([grid.mean((2, 3)), tokens.mean(2)], dim=1))
        return out


def made(variant: str = "controlled", *, with_output: bool = True) -> SteadyTail:
    torch.manual_seed(0)
    steady = new_tail(
        Tail().requires_grad_(False),
        CUT,
        LIGHT[variant],
        with_output=with_output,
        device="cpu",  # type: ignore[index]
    )
    for parameter in steady.stabilizer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return steady


def features(count: int = 6, batch: int = 2) -> Tensor:
    return torch.randn(count, batch, 6 * 4 * 5 + 6 * 2, generator=torch.Generator().manual_seed(1))


def test_packing_is_undone_by_unpacking() -> None:
    steady = made()
    grid, tokens = torch.rand(3, 6, 4, 5), torch.rand(3, 6, 2)
    back = steady.unpacked(steady.packed((grid, tokens)))
    assert torch.equal(back[0], grid)
    assert torch.equal(back[1], tokens)


@pytest.mark.parametrize("variant", ["learned", "controlled", "spatial"])
def test_one_frame_at_a_time_is_the_whole_clip(variant: str) -> None:
    steady, x = made(variant), features()
    whole, _ = steady.clip(x)
    state, parts = State(), []
    for frame in x:
        output, state = steady.step(frame, state)
        parts.append(output)
    assert torch.equal(torch.stack(parts), whole)
    each = torch.cat([steady.clip(x[:, i : i + 1])[0] for i in range(2)], dim=1)
    torch.testing.assert_close(each, whole)
    assert torch.equal(whole[0], steady.net(*steady.unpacked(x[0])))
    assert not torch.allclose(whole[1], steady.net(*steady.unpacked(x[1])))


def test_answers_without_a_place_are_the_tails_own() -> None:
    steady = made(with_output=False)
    assert [place.name for place in steady.stabilizer.places] == ["cut0", "cut1"]
    assert len(made().stabilizer.places) == 3


class TestStoring:
    def record(self, steady: SteadyTail) -> SteadyRecord:
        stabilizer = steady.stabilizer
        return SteadyRecord(
            kind="tail",
            name="labels",
            version="a" * 64,
            cut=CUT.name,
            seconds=0.04,
            shape=stabilizer.shape,
            places=stabilizer.places,
            picture_channels=stabilizer.picture_channels,
            training={"steps": 3},
        )

    def test_what_comes_back_does_the_same(self) -> None:
        steady = made()
        data = encode_stabilizer(self.record(steady), steady.stabilizer)
        record, stabilizer = decode_stabilizer(data)
        assert record == self.record(steady)
        assert record.gap(0.08) == pytest.approx(2)
        x = features()
        assert torch.equal(SteadyTail(steady.net, stabilizer, CUT).clip(x)[0], steady.clip(x)[0])
        assert encode_stabilizer(record, stabilizer) == data

    def test_what_is_damaged_or_of_another_kind_is_refused(self) -> None:
        steady = made()
        data = encode_stabilizer(self.record(steady), steady.stabilizer)
        with pytest.raises(CodecError, match="malformed"):
            decode_record(b"no safetensors at all")
        other = replace(self.record(steady), places=(Place(name="cut0", channels=7),))
        wrong = encode_stabilizer(other, steady.stabilizer)
        with pytest.raises(CodecError, match="does not fit"):
            decode_stabilizer(wrong)
        with pytest.raises(CodecError, match="format 2"):
            decode_record(data.replace(b'\\"format\\": 1', b'\\"format\\": 2'))


def test_the_current_frame_keeps_its_floor() -> None:
    shape = replace(LIGHT["controlled"], floor=0.1)
    stabilizer = Stabilizer(shape, (Place(name="", channels=3),))
    nn.init.constant_(stabilizer.heads["place0"].last.bias, 50.0)  # type: ignore[union-attr, arg-type]
    x = torch.rand(2, 1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    step = stabilizer.begin(x[0], State())
    step.fuse("", x[0])
    step = stabilizer.begin(x[1], step.done())
    torch.testing.assert_close(step.fuse("", x[1]), 0.1 * x[1] + 0.9 * x[0])
