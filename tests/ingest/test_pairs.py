"""Pairs of a segment: sampled in parts as at once, fitted once, judged by answers; adapters that are kept."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nvpstore.codec.build import PRESETS, build_architecture
from nvpstore.codec.hnerv import Decoder
from nvpstore.ingest import pairs as pairs_module
from nvpstore.ingest.pairs import Pairs, inputs_of_units, taps_of_units
from nvpstore.ingest.references import ReferenceBuilder, References
from nvpstore.ingest.routes import RouteSettings, worth_keeping
from nvpstore.ingest.units import units_at_ingest
from nvpstore.routing.choice import choose
from nvpstore.routing.select import Candidate, decided
from nvpstore.tasks.registry import builtin_spec, load
from nvpstore.types import RouteRecord

FRAMES = 12
SIZE = 128, 128
ARCH = build_architecture(*SIZE, FRAMES, PRESETS["demo"])


@pytest.fixture(scope="module")
def references() -> References:
    torch.manual_seed(0)
    task = load(builtin_spec("labels"))
    plan = units_at_ingest(task.spec, start_frame=0, frames=FRAMES)
    builder = ReferenceBuilder(task, plan, size=SIZE, seed=0)
    builder.add(range(FRAMES), torch.randint(256, (FRAMES, 3, *SIZE), dtype=torch.uint8))
    return builder.build()


@pytest.fixture(scope="module")
def stored() -> tuple[Decoder, torch.Tensor]:
    torch.manual_seed(1)
    return Decoder(ARCH).eval(), torch.randn(FRAMES, *ARCH.latent_shape)


def test_what_stages_say_is_the_same_in_small_parts(
    references: References, stored: tuple[Decoder, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = Pairs(*stored, references, ARCH, seed=0)
    monkeypatch.setattr(pairs_module, "DECODE_BATCH", 2)
    assert [len(taps["1"]) for taps in taps_of_units(*stored, torch.arange(5)[:, None], ["1"])] == [2, 2, 1]
    assert [len(taps["1"]) for taps in taps_of_units(*stored, torch.arange(6).reshape(2, 3), ["1"])] == [3, 3]
    assert not list(taps_of_units(*stored, torch.empty(0, 1, dtype=torch.long), ["1"]))
    parts = Pairs(*stored, references, ARCH, seed=0)
    for place, of_stages in at_once.placed.items():
        for stage, samples in of_stages.items():
            torch.testing.assert_close(parts.placed[place][stage], samples)
    adapter = parts.from_ridge(parts.ranked()[0])
    seen = references.frames[references.seen]
    (inputs,) = inputs_of_units(*stored, seen, adapter)
    (own,) = adapter.inputs(stored[0].taps(stored[1][seen.flatten()], adapter.stages))
    torch.testing.assert_close(inputs, own)


def test_answers_are_judged_on_units_that_the_ridge_was_not_fitted_to(
    references: References, stored: tuple[Decoder, torch.Tensor]
) -> None:
    pairs = Pairs(*stored, references, ARCH, seed=0)
    best = pairs.ranked()[0]
    assert pairs.ridge(best) is pairs.ridge(best)
    seen = references.seen.nonzero().flatten()
    held = seen[3::4]
    adapter, tail = pairs.from_ridge(best), references.task.backbone.tail(best.cut)
    with torch.no_grad():
        output = tail(*adapter(stored[0].taps(stored[1][held], best.stages)))
        wanted = references.task.head.loss(output, references.output[held])
    assert pairs.answers_error(best) == pytest.approx(float(wanted), rel=1e-4)


def test_pairs_whose_answers_are_no_numbers_come_last(
    references: References, stored: tuple[Decoder, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = Pairs(*stored, references, ARCH, seed=0)
    ranked = pairs.ranked()
    broken = pairs.decided(ranked, 1)[0]
    sound = Pairs.from_ridge

    def from_ridge(own: Pairs, candidate: Candidate) -> Any:
        adapter = sound(own, candidate)
        if candidate == broken:
            torch.nn.init.constant_(adapter.convolutions[0].weight, math.nan)
        return adapter

    monkeypatch.setattr(Pairs, "from_ridge", from_ridge)
    assert pairs.answers_error(broken) == math.inf
    assert pairs.decided(ranked, 1)[0] != broken
    assert pairs.decided((), 3) == ()


def adapter(cut: str, gflops: float, fidelity: float | None) -> RouteRecord:
    return RouteRecord(
        segment=0,
        route="adapter",
        stages=("0", "1"),
        cut=cut,
        scope="segment",
        cka=0.5,
        ridge_r2=0.5,
        fidelity=fidelity,
        fidelity_confident=fidelity,
        confident_frames=3,
        gflops=gflops,
        bytes=1,
    )


def test_an_adapter_that_a_cheaper_one_is_as_good_as_is_not_kept() -> None:
    routes = [adapter("c", 3, 0.9), adapter("b", 2, 0.8), adapter("a", 1, 0.8), adapter("d", 4, 0.95)]
    assert [r.cut for r in worth_keeping(routes)] == ["a", "c", "d"]
    assert [r.cut for r in worth_keeping([*routes, adapter("e", 5, 0.94)])] == ["a", "c", "d"]
    unknown = [adapter("a", 1, None), adapter("b", 2, None)]
    assert [r.cut for r in worth_keeping(unknown)] == ["a", "b"]
    assert worth_keeping([]) == []


def test_no_query_chooses_otherwise_for_what_is_not_kept() -> None:
    chance = torch.Generator().manual_seed(0)
    for _ in range(200):
        drawn = torch.randint(8, (5, 2), generator=chance).tolist()
        routes = [adapter(str(i), 1 + gflops, fidelity / 8) for i, (gflops, fidelity) in enumerate(drawn)]
        for floor in (None, *(i / 8 for i in range(9))):
            own, kept = (choose(some, min_fidelity=floor) for some in (routes, worth_keeping(routes)))
            assert (own and own.gflops) == (kept and kept.gflops)


def test_every_segment_has_the_cheapest_pair(
    references: References, stored: tuple[Decoder, torch.Tensor]
) -> None:
    ranked = Pairs(*stored, references, ARCH, seed=0).ranked()
    cheapest = min(ranked, key=lambda c: c.gflops)
    errors = {candidate: 1 + candidate.cka for candidate in ranked}
    assert cheapest in decided(errors, 2)


def test_few_units_are_learned_from_for_longer_as_far_as_the_tail_is_cheap() -> None:
    settings = RouteSettings(epochs=8, least_steps=480, least_gflops=600)
    cheap, dear = (settings.training(12, tail_gflops=g) for g in (0.1, 5.0))
    assert cheap.epochs * math.ceil(12 / cheap.batch_frames) == 480
    assert dear.epochs * math.ceil(12 / dear.batch_frames) == 16  # 600 / (8 · 5) steps
    assert settings.training(1600, tail_gflops=5.0).epochs == 8  # enough units are learned from in any case


def test_what_a_joint_fit_ended_with_is_learned_on_more_carefully() -> None:
    settings = RouteSettings()
    begun, joined = (settings.training(60, tail_gflops=0.1, joined=j) for j in (False, True))
    assert joined.learning_rate < begun.learning_rate
    assert joined.epochs == begun.epochs
