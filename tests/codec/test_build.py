"""Architectures: the paper's widths, budgets, geometry."""

from __future__ import annotations

import pytest
import torch

from nvpstore.codec.build import (
    PRESETS,
    Architecture,
    build_architecture,
    find_preset,
    stage_gflops,
    stage_parameters,
)
from nvpstore.codec.hnerv import Decoder
from nvpstore.errors import CodecError, UsageError
from nvpstore.tasks.flops import gflops


@pytest.mark.parametrize(
    ("preset", "width"), [("hnerv-0.35m", 32), ("hnerv-0.75m", 48), ("hnerv-1.5m", 68), ("hnerv-3m", 97)]
)
def test_paper_presets_have_the_widths_of_the_published_models(preset: str, width: int) -> None:
    arch = build_architecture(640, 1280, 132, PRESETS[preset])
    assert abs(arch.widths[0] - width) <= 1
    assert arch.stage_shape("2") == (arch.widths[2], 40, 80)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_counted_parameters_and_gflops_are_those_of_the_built_decoder(preset: str) -> None:
    arch = build_architecture(96, 160, 132, PRESETS[preset])
    decoder = Decoder(arch)
    counted = [sum(p.numel() for p in stage.parameters()) for stage in decoder.stages]
    assert tuple(counted) == stage_parameters(arch)
    # The FLOP counter sees no biases; ours counts one addition each, as a multiplication.
    measured = gflops(decoder, torch.zeros(1, *arch.latent_shape))
    assert measured == pytest.approx(stage_gflops(arch)[-1], rel=0.03)


@pytest.mark.parametrize("size", [(1, 1), (17, 33), (272, 640), (480, 270), (1080, 1920)])
def test_any_geometry_is_coded_in_whole_strides(size: tuple[int, int]) -> None:
    for name in ("demo", "micro", "hnerv-1.5m"):
        arch = build_architecture(*size, 24, PRESETS[name])
        height, width = arch.latent_hw
        assert height >= 1
        assert width >= 1
        assert arch.stage_shape("rgb") == (3, arch.coded_height, arch.coded_width)
        assert arch.content_height <= arch.coded_height
        assert arch.content_width <= arch.coded_width


def test_what_is_mostly_alike_takes_a_quarter_of_the_steps_at_least() -> None:
    preset = PRESETS["demo"]
    assert preset.epochs_for(160) == preset.epochs_for(160, distinct=160) == 40
    assert preset.epochs_for(160, distinct=80) == 40
    assert preset.epochs_for(160, distinct=4) == 700  # as a segment of four frames: 1,400 steps
    paper = PRESETS["hnerv-1.5m"]
    assert paper.epochs_for(132) == 300
    assert paper.epochs_for(132, distinct=1) == 300 * 66 // 4


def test_budget_bounds_decoder_and_latents() -> None:
    preset = PRESETS["demo"]
    arch = build_architecture(272, 640, 128, preset)
    latents = preset.max_segment_frames * torch.zeros(arch.latent_shape).numel()
    total = sum(stage_parameters(arch)) + latents
    assert 0.95 * preset.parameters < total <= preset.parameters


def test_architecture_survives_json() -> None:
    arch = build_architecture(272, 640, 128, PRESETS["demo"])
    assert Architecture.from_json(arch.to_json()) == arch


def test_a_codec_of_a_later_release_is_refused() -> None:
    text = build_architecture(272, 640, 128, PRESETS["demo"]).to_json().replace('"hnerv"', '"later"')
    with pytest.raises(CodecError, match=r"codec 'later': .* decodes hnerv, nerv"):
        Architecture.from_json(text)


def test_unknown_preset_is_named_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"'tiny'.*demo.*micro"):
        find_preset("tiny")
