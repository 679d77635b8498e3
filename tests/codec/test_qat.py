"""Kernels rounded while they learn: steps of their own, a budget, and stored as they were used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nvpstore.codec.artifact import load_decoder, load_latents, store_latents, store_weights
from nvpstore.codec.build import PRESETS, build_architecture
from nvpstore.codec.fit import FittedSegment, SegmentFit
from nvpstore.codec.hnerv import Decoder
from nvpstore.codec.qat import LEVELS, Rounded, RoundedWeights
from nvpstore.codec.quantize import decode_latents, decode_tensor, encode_latents
from tests.codec.test_fit import moving_square

MICRO = replace(PRESETS["micro"], epochs=20, target_psnr=None)


def test_rounding_begins_as_plain_eight_bits() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    rounded = Rounded(weight)
    symbols = rounded(weight) / rounded.steps
    assert (symbols - symbols.round()).abs().max() < 1e-3
    assert LEVELS - 1 <= float(symbols.detach().abs().max()) <= LEVELS + 1e-3
    assert (
        float((rounded(weight) - weight).detach().abs().max())
        <= float(rounded.steps.detach().max()) / 2 + 1e-6
    )


def test_gradients_pass_the_rounding_and_reach_the_steps() -> None:
    weight = torch.randn(2, 3, requires_grad=True)
    rounded = Rounded(weight)
    upstream = torch.randn(2, 3)
    (rounded(weight) * upstream).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, upstream)
    # d/ds of s · round(w / s), the rounding's own derivative left out (learned step size quantization).
    exact = weight.detach() / rounded.steps.detach()
    expected = ((exact.round() - exact) * upstream).sum(1) * rounded.steps.detach().squeeze(1)
    torch.testing.assert_close(rounded.log_step.grad, expected)


def test_coarser_steps_need_fewer_bits() -> None:
    weight = torch.randn(8, 16)
    rounded = Rounded(weight)
    fine = float(rounded.bits(weight))
    with torch.no_grad():
        rounded.log_step += 2.0
    assert float(rounded.bits(weight)) < fine - 1.5 * weight.numel()


def test_the_estimate_is_near_an_entropy() -> None:
    laplace = torch.distributions.Laplace(0.0, 1.0)
    torch.manual_seed(0)
    weight = laplace.sample((64, 256))
    rounded = Rounded(weight)
    with torch.no_grad():
        rounded.log_step.fill_(float(np.log(0.2)))
    symbols = (weight / rounded.steps).round()
    _, counts = symbols.unique(return_counts=True)
    share = counts / counts.sum()
    entropy = float(-(share * share.log2()).sum()) * weight.numel()
    assert float(rounded.bits(weight)) == pytest.approx(entropy, rel=0.06)


def test_finishing_leaves_an_ordinary_network() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 2, 1))
    names = list(net.state_dict())
    weights = RoundedWeights(net, bits=5)
    assert float(weights.bits_a_weight()) == pytest.approx(5, abs=0.01)
    assert weights.count == 3 * 4 * 9 + 4 * 2
    x = torch.randn(1, 3, 8, 8)
    used = net(x)
    steps = weights.finish()
    assert list(net.state_dict()) == names
    assert set(steps) == {"0.weight", "2.weight"}
    torch.testing.assert_close(net(x), used)


def fitted(bits: float | None, **changes: object) -> FittedSegment:
    settings = replace(MICRO, weight_bits=bits, **changes)  # type: ignore[arg-type]
    return SegmentFit(moving_square(), build_architecture(32, 48, 24, settings), settings).run()


def symbols_of(fit: FittedSegment) -> np.ndarray:
    stored = store_weights(fit.decoder, segment=0, steps=fit.steps)
    kernels = [t for stage in stored for t in stage.tensors if t.encoding == "int8-channel"]
    return np.concatenate([np.frombuffer(t.payload, np.int8) for t in kernels])


def entropy_bits(symbols: np.ndarray) -> float:
    share = np.unique(symbols, return_counts=True)[1] / len(symbols)
    return float(-(share * np.log2(share)).sum())


def test_a_fit_keeps_to_its_budget_and_its_picture() -> None:
    plain, small = fitted(None), fitted(4.0)
    assert plain.steps == {}
    assert entropy_bits(symbols_of(plain)) > 6.5
    assert entropy_bits(symbols_of(small)) < 4.6
    assert small.psnr > plain.psnr - 0.7


def test_latents_are_rounded_too_and_stored_as_they_were_used() -> None:
    plain, small = fitted(None), fitted(4.0)
    assert plain.latent_steps is None
    assert small.latent_steps is not None
    pts = np.arange(24)
    stored = {
        fit.latents: store_latents(fit.latents, segment=0, start_frame=0, pts=pts, steps=fit.latent_steps)
        for fit in (plain, small)
    }
    back = load_latents(stored[small.latents])
    torch.testing.assert_close(back, small.latents, atol=1e-4, rtol=1e-5)
    fine, coarse = (entropy_bits(each.payload.flatten()) for each in stored.values())
    assert coarse < fine - 1


def test_latents_beyond_the_steps_they_learned_with_are_stored_as_eight_bit() -> None:
    values = np.random.default_rng(0).normal(size=(9, 2, 2, 3)).astype(np.float32)
    steps = np.array([1e-4, 0.5], dtype=np.float32)
    encoding, scale, payload = encode_latents(values, steps)
    back = decode_latents(encoding, scale, payload, (2, 2, 3))
    span = np.ptp(values, axis=(0, 2, 3))
    assert (np.abs(back - values)[:, 0] <= span[0] / 255 * 1.01).all()
    np.testing.assert_allclose(back[:, 1] / 0.5, np.rint(values[:, 1] / 0.5), atol=1e-4)


def test_what_is_stored_is_what_was_used() -> None:
    fit = fitted(4.0)
    stored = store_weights(fit.decoder, segment=0, steps=fit.steps)
    again = load_decoder(fit.arch, [stage.tensors for stage in stored])
    for (name, own), other in zip(fit.decoder.state_dict().items(), again.state_dict().values(), strict=True):
        if name.endswith("weight"):
            torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-5)
    shapes = {t.name: decode_tensor(t).shape for stage in stored for t in stage.tensors}
    assert shapes["conv.weight"][0] > 0


def test_a_resumed_fit_goes_on_rounding(tmp_path: Path) -> None:
    settings = replace(MICRO, epochs=8, weight_bits=4.0)
    arch = build_architecture(32, 48, 24, settings)
    whole = SegmentFit(moving_square(), arch, settings).run()
    begun = SegmentFit(moving_square(), arch, settings, checkpoint=tmp_path / "fit.pt")
    while begun.epoch < 6:
        begun._round_weights()
        begun.run_epoch()
        begun.epoch += 1
    begun._save()
    rest = SegmentFit(moving_square(), arch, settings, checkpoint=tmp_path / "fit.pt").run()
    assert isinstance(rest.decoder, Decoder)
    for own, resumed in zip(
        whole.decoder.state_dict().values(), rest.decoder.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(own, resumed)
    for name, steps in whole.steps.items():
        torch.testing.assert_close(steps, rest.steps[name])
    torch.testing.assert_close(whole.latent_steps, rest.latent_steps)
    torch.testing.assert_close(whole.latents, rest.latents)


def test_an_early_target_still_rounds() -> None:
    fit = fitted(4.0, target_psnr=5.0)
    assert fit.epochs >= 0.8 * MICRO.epochs
    assert fit.steps
