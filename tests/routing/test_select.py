"""Ranking pairs: what may be a candidate, and that the pair which holds the features wins."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from nvpstore.codec.build import PRESETS, build_architecture, stage_gflops
from nvpstore.routing import select
from nvpstore.routing.select import (
    Candidate,
    Place,
    cut_samples,
    decided,
    held_out,
    most_parameters,
    places,
    rank_pairs,
    ridge_for,
    short_list,
    stage_samples,
    worthwhile_cuts,
)
from nvpstore.tasks.cuts import CutBackbone
from nvpstore.tasks.registry import builtin_spec, load

ARCH = build_architecture(128, 320, 128, PRESETS["demo"])


@pytest.fixture(scope="module")
def backbone() -> CutBackbone:
    return load(builtin_spec("labels")).backbone


def random_taps(frames: int) -> dict[str, torch.Tensor]:
    return {stage: torch.randn(frames, *ARCH.stage_shape(stage)) for stage in ARCH.stage_names[:-1]}


def laid(taps: dict[str, torch.Tensor], backbone: CutBackbone) -> dict[Place, dict[str, torch.Tensor]]:
    wanted = dict.fromkeys(place for cut in worthwhile_cuts(backbone) for place in places(cut))
    return {place: stage_samples(taps, place, seed=0) for place in wanted}


def test_worthwhile_cuts_leave_between_a_tenth_and_half_of_the_backbone(backbone: CutBackbone) -> None:
    names = [cut.name for cut in worthwhile_cuts(backbone)]
    assert names == ["blocks.9", "blocks.10", "blocks.11", "blocks.12", "blocks.13", "blocks.14"]


def test_candidates_are_micro_and_cheaper_than_pixels(backbone: CutBackbone) -> None:
    taps = random_taps(6)
    features = {cut.name: (torch.randn(6, *cut.shapes[0]),) for cut in worthwhile_cuts(backbone)}
    ranked = rank_pairs(laid(taps, backbone), cut_samples(features, seed=0), arch=ARCH, backbone=backbone)
    pixel = stage_gflops(ARCH)[-1] + backbone.whole_gflops()
    for candidate in ranked:
        assert candidate.stages[0] == "0"
        assert candidate.stage != "0"
        assert candidate.gflops < pixel
        channels = sum(ARCH.stage_shape(stage)[0] for stage in candidate.stages)
        assert channels * backbone.cut(candidate.cut).channels[0] <= 0.01 * backbone.parameters
    scores = [candidate.score for candidate in ranked]
    assert scores == sorted(scores, reverse=True)


def test_adapters_of_small_backbones_may_have_a_larger_share(
    backbone: CutBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert most_parameters(backbone) == 0.01 * backbone.parameters
    monkeypatch.setattr(backbone, "parameters", 1_500_000)
    assert most_parameters(backbone) == 40_000
    monkeypatch.setattr(backbone, "parameters", 20_000)
    assert most_parameters(backbone) == 2_000


def test_the_stage_that_holds_a_cuts_features_ranks_first_and_its_ridge_fit_explains_them(
    backbone: CutBackbone,
) -> None:
    torch.manual_seed(0)
    taps = random_taps(12)
    cut = backbone.cut("blocks.10")
    mixing = torch.linalg.qr(torch.randn(cut.channels[0], ARCH.stage_shape("1")[0]))[0]  # a rotation
    on_grid = F.interpolate(taps["1"], cut.shapes[0][1:], mode="bilinear", align_corners=False)
    features = {c.name: (torch.randn(12, *c.shapes[0]),) for c in worthwhile_cuts(backbone)}
    features["blocks.10"] = (torch.einsum("oc,tchw->tohw", mixing, on_grid),)
    samples = cut_samples(features, seed=0)
    placed = laid(taps, backbone)
    best = rank_pairs(placed, samples, arch=ARCH, backbone=backbone)[0]
    assert (best.stage, best.cut) == ("1", "blocks.10")
    assert best.cka > 0.95
    fitted, held = held_out(torch.arange(12)[:, None])
    (fit,) = ridge_for(best, placed, samples["blocks.10"], cut, fitted=fitted, held=held)
    assert fit.r2 > 0.95


def test_samples_of_stage_and_cut_are_of_the_same_positions(backbone: CutBackbone) -> None:
    cut = backbone.cut("blocks.11")
    grid = torch.arange(7 * 7).float().reshape(1, 1, 7, 7)
    (of_cut,) = cut_samples({"blocks.11": (grid,)}, seed=3)["blocks.11"]
    of_stage = stage_samples({"1": grid}, places(cut)[0], seed=3)["1"]
    torch.testing.assert_close(of_cut, of_stage)
    assert of_cut.shape == (select.POSITIONS_PER_UNIT, 1)


def pair(stage: str, cut: str, gflops: float = 1.0) -> Candidate:
    return Candidate(stages=("0", stage), cut=cut, cka=0.5, gflops=gflops, score=1.0)


@pytest.mark.parametrize(
    ("count", "wanted"),
    [
        (1, "1c"),
        (2, "1a 1c"),
        (3, "1a 1c 2a"),
        (4, "1a 1b 1c 2a"),
        (5, "1a 1b 1c 2a 2b"),
        (9, "1a 1b 1c 2a 2b"),
    ],
)
def test_the_short_list_has_the_cheapest_and_as_many_of_each_stage(count: int, wanted: str) -> None:
    ranked = [pair(stage, cut, 0.5 if cut == "c" else 1) for stage, cut in ("1a", "1b", "1c", "2a", "2b")]
    assert " ".join(c.stage + c.cut for c in short_list(ranked, count)) == wanted


def test_answers_decide_among_pairs_that_nothing_cheaper_beats() -> None:
    errors = {
        pair("1", "a", 2): 0.9,
        pair("1", "b", 1): 0.8,  # the cheapest, and better than the first
        pair("2", "a", 3): 0.25,  # nearly as near as the nearest
        pair("2", "b", 4): 0.5,  # dearer and further
        pair("3", "a", 9): 0.2,
        pair("3", "b", 20): 0.199,  # the nearest, for nothing
    }
    named = [c.stage + c.cut for c in decided(errors, 6)]
    assert named == ["3a", "1b", "2a", "3b", "1a", "2b"]
    assert [c.stage + c.cut for c in decided(errors, 2)] == ["3a", "1b"]
    for error in (0.5, 0.0, -1e-8, math.inf):
        alike = {pair("1", "a"): error, pair("1", "b"): error}
        assert [c.cut for c in decided(alike, 3)] == ["a", "b"]


@pytest.mark.parametrize(
    ("frames", "fitted", "held"),
    [
        ([[0]], [0], [0]),
        ([[0], [2], [4]], [0, 1, 2], [0, 1, 2]),
        ([[0], [2], [4], [6], [8]], [0, 1, 2, 4], [3]),
        # Clips overlap: the last quarter judges, what shares a picture with it is left out.
        ([[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]], [0, 1], [3, 4]),
        ([[8, 9], [0, 1], [2, 3], [4, 5]], [1, 2, 3], [0]),
        # One clip shown in several ways has nothing to hold out.
        ([[0, 1], [1, 0], [0, 0]], [0, 1, 2], [0, 1, 2]),
    ],
)
def test_what_judges_is_not_what_is_fitted_to(
    frames: list[list[int]], fitted: list[int], held: list[int]
) -> None:
    found = held_out(torch.tensor(frames))
    assert [mask.nonzero().flatten().tolist() for mask in found] == [fitted, held]
