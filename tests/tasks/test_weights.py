"""Weights from files: safetensors and checkpoints of tensors, nothing that runs code."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from nvpstore.errors import TaskError
from nvpstore.tasks.weights import as_safetensors, digest_of, load_into, read_weights


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_safetensors_and_checkpoints_give_the_same_tensors(tmp_path: Path, net: nn.Module) -> None:
    state = net.state_dict()
    (tmp_path / "a.safetensors").write_bytes(as_safetensors(state))
    torch.save(state, tmp_path / "b.pth")
    torch.save({"epoch": 3, "model_state": state}, tmp_path / "c.pyth")
    for name in ("a.safetensors", "b.pth", "c.pyth"):
        other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        load_into(other, read_weights(tmp_path / name), what=name)
        for key, value in other.state_dict().items():
            assert torch.equal(value, state[key])


def test_the_same_tensors_are_the_same_bytes(tmp_path: Path, net: nn.Module) -> None:
    state = net.state_dict()
    data = as_safetensors(state)
    assert as_safetensors(dict(reversed(state.items()))) == data
    (tmp_path / "w").write_bytes(data)
    assert digest_of(tmp_path / "w") == hashlib.sha256(data).hexdigest()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this must never be printed",)


def test_a_pickle_with_code_is_never_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"w": Evil()}))
    torch.save({"w": Evil()}, tmp_path / "zip.pth")
    for name in ("evil.pth", "zip.pth"):
        with pytest.raises(TaskError, match="a pickle that runs code is never loaded"):
            read_weights(tmp_path / name)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_broken_files_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(TaskError, match="there is no such file"):
        read_weights(tmp_path / name)
    (tmp_path / name).write_bytes(b"\x80\x00not weights")
    with pytest.raises(TaskError, match=name):
        read_weights(tmp_path / name)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(TaskError, match="not a mapping of names to tensors"):
        read_weights(tmp_path / "list.pth")


def test_what_does_not_fit_is_named(net: nn.Module) -> None:
    state = dict(net.state_dict())
    with pytest.raises(TaskError, match=r"x: weights missing: 0.weight$"):
        load_into(net, {k: v for k, v in state.items() if k != "0.weight"}, what="x")
    with pytest.raises(TaskError, match=r"weights unknown: head$"):
        load_into(net, {**state, "head": torch.zeros(1)}, what="x")
    with pytest.raises(TaskError, match=r"of another shape: 0.bias \(5,\), not \(4,\)"):
        load_into(net, {**state, "0.bias": torch.zeros(5)}, what="x")
    with pytest.raises(TaskError, match=r"missing: .* and 3 more"):
        load_into(net, {}, what="x")


def test_checkpoints_from_before_batches_were_counted_fit(net: nn.Module) -> None:
    state = {k: v + 1 for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    load_into(net, state, what="x")
    assert torch.equal(net.state_dict()["1.running_mean"], state["1.running_mean"])
