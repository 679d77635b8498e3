"""What is stored decodes to what was fitted, to any stage, within 8-bit error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvpstore.codec.artifact import (
    coded_frames,
    load_decoder,
    load_latents,
    shown_rgb,
    store_latents,
    store_weights,
)
from nvpstore.codec.build import PRESETS, build_architecture
from nvpstore.codec.hnerv import Decoder
from nvpstore.codec.quantize import decode_latents, decode_tensor, encode_latents, encode_tensor
from nvpstore.errors import CodecError
from nvpstore.types import StoredTensor


@given(st.integers(1, 5), st.integers(1, 7), st.floats(1e-6, 1e3), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_weights_come_back_within_half_a_step_of_their_channel(
    channels: int, inputs: int, size: float, seed: int
) -> None:
    values = (np.random.default_rng(seed).normal(size=(channels, inputs, 3, 3)) * size).astype(np.float32)
    back = decode_tensor(encode_tensor("w", values))
    step = np.abs(values).reshape(channels, -1).max(1) / 127
    assert (np.abs(back - values).reshape(channels, -1) <= step[:, None] * 0.501).all()


def test_latents_come_back_within_half_a_step_of_their_channel() -> None:
    values = np.random.default_rng(0).normal(size=(9, 4, 2, 3)).astype(np.float32)
    encoding, scale, payload = encode_latents(values)
    back = decode_latents(encoding, scale, payload, (4, 2, 3))
    step = (values.max(axis=(0, 2, 3)) - values.min(axis=(0, 2, 3))) / 255
    assert payload.dtype == np.uint8
    assert (np.abs(back - values) <= step[:, None, None] * 0.502).all()


def test_unknown_encoding_is_refused_by_name() -> None:
    tensor = StoredTensor(name="w", shape=(1,), dtype="float32", encoding="int3", scale=b"", payload=b"")
    with pytest.raises(CodecError, match="int3"):
        decode_tensor(tensor)


@pytest.mark.parametrize("preset", ["micro", "nerv-micro"])
def test_a_prefix_of_the_stages_gives_the_same_features_as_the_whole_decoder(preset: str) -> None:
    arch = build_architecture(36, 50, 24, PRESETS[preset])
    torch.manual_seed(0)
    stored = [stage.tensors for stage in store_weights(Decoder(arch), segment=0)]
    latents = torch.rand(3, *arch.latent_shape)
    whole = load_decoder(arch, stored).taps(latents, arch.stage_names)
    for depth, stage in enumerate(arch.stage_names, start=1):
        partial = load_decoder(arch, stored[:depth])
        assert len(partial.stages) == depth
        torch.testing.assert_close(partial.taps(latents, (stage,))[stage], whole[stage])


@pytest.mark.parametrize("preset", ["micro", "nerv-micro"])
def test_stored_latents_keep_frames_and_times(preset: str) -> None:
    arch = build_architecture(32, 48, 24, PRESETS[preset])
    latents = torch.rand(5, *arch.latent_shape)
    pts = np.array([0, 3, 7, 8, 20], np.int64)
    stored = store_latents(latents, segment=2, start_frame=10, pts=pts)
    assert stored.frames.tolist() == [10, 11, 12, 13, 14]
    torch.testing.assert_close(load_latents(stored), latents, atol=1 / 255, rtol=0)


@pytest.mark.parametrize("size", [(33, 49), (32, 48), (90, 121), (1, 1)])
def test_coding_and_showing_keep_the_source_size(size: tuple[int, int]) -> None:
    arch = build_architecture(*size, 24, PRESETS["micro"])
    source = torch.full((2, 3, *size), 200, dtype=torch.uint8)
    coded = coded_frames(source, arch)
    assert coded.shape == (2, 3, arch.coded_height, arch.coded_width)
    shown = shown_rgb(coded, arch, *size)
    assert shown.dtype == torch.uint8
    assert torch.equal(shown, source)
