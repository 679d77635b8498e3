"""Answers in one form, what they are compared with, and the alternatives at the same bytes."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from benchmarks.accuracy import cached
from benchmarks.accuracy.answers import Answer, accuracy, agreement, from_rows, kl, steadiness
from benchmarks.accuracy.clips import units_of
from benchmarks.accuracy.codecs import ENCODERS, TOLERANCE, Encoder, at_bytes
from benchmarks.accuracy.ours import seen_at_ingest, seen_later
from benchmarks.accuracy.statistics import paired
from benchmarks.accuracy.summary import summarised
from benchmarks.evidence.answers import accuracy_losses
from benchmarks.nets.families import FAMILIES
from benchmarks.world import ACTIONS, CLASSES, HEIGHT, WIDTH, FrameTruth

TOLD = FrameTruth(
    label=CLASSES[3],
    action="spins",
    caption="a striped circle spins",
    unseen=False,
    boxes=((CLASSES[3], 32.0, 24.0, 96.0, 72.0),),
)


def classes(*favoured: int) -> list[Answer]:
    rows = []
    for index in favoured:
        p = np.full(len(CLASSES), 0.5 / (len(CLASSES) - 1))
        p[index] = 0.5
        rows.append(Answer(probabilities=p))
    return rows


def test_rows_and_truth_meet_for_every_kind() -> None:
    right = {
        "world_class": {"frame": 4, "label": CLASSES[3], "score": 0.9},
        "world_action": {"frame": 4, "label": "spins", "score": 0.9},
        "world_caption": {"frame": 4, "caption": "a striped circle spins"},
        "world_objects": {
            "frame": 4,
            "label": CLASSES[3],
            "score": 0.9,
            "box": {"x0": 32.0, "y0": 24.0, "x1": 96.0, "y1": 72.0},
        },
    }
    for name, row in right.items():
        (answer,) = from_rows(FAMILIES[name], [row, {**row, "frame": 5}], [4])
        assert accuracy(FAMILIES[name], answer, TOLD) == 1.0
        assert agreement(answer, answer) == 1.0
    (nothing,) = from_rows(FAMILIES["world_objects"], [], [4])
    assert accuracy(FAMILIES["world_objects"], nothing, TOLD) == 0.0


def test_kl_is_of_probabilities_alone() -> None:
    one, other = classes(1, 2)
    assert kl(one, one) == pytest.approx(0, abs=1e-6)
    p, q = other.probabilities, one.probabilities
    assert p is not None
    assert q is not None
    assert kl(one, other) == pytest.approx(float((p * np.log(p / q)).sum()))
    assert kl(Answer(caption="a"), Answer(caption="a")) is None


def test_steadiness_counts_changes() -> None:
    assert steadiness(classes(1, 1, 2, 2)) == pytest.approx(2 / 3)
    assert steadiness(classes(1)) == 1.0


def test_dumb_answers() -> None:
    source = classes(1, 2, 2, 3)
    assert [
        int(a.probabilities.argmax()) for a in cached.constant(source) if a.probabilities is not None
    ] == [2] * 4
    assert [agreement(a, b) for a, b in zip(cached.held(source, every=2), source, strict=True)] == [
        1,
        0,
        1,
        0,
    ]
    assert cached.answers_alone(source).stored_bytes > 0


@pytest.mark.parametrize("bits", [8, 4])
def test_features_come_back_within_their_step(bits: int) -> None:
    x = torch.randn(3, 5, 4, 6)
    back, size = cached._quantised(x, bits)
    span = (x.amax((2, 3)) - x.amin((2, 3)))[:, :, None, None]
    halves = 4e-3  # scale and zero are kept in half precision
    assert ((back - x).abs() <= span / (2**bits - 1) / 2 + halves).all()
    assert size <= x.numel() * bits / 8 + 200


def pictures(frames: int = 12) -> torch.Tensor:
    """A textured square that moves over noise."""
    chance = torch.Generator().manual_seed(0)
    # Half of it is the smallest picture that every encoder takes.
    ground = torch.randint(60, 120, (3, 128, 192), generator=chance, dtype=torch.uint8)
    clip = ground.repeat(frames, 1, 1, 1)
    for t in range(frames):
        clip[t, :, 20:80, 6 * t : 6 * t + 60] += 90
    return clip


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda e: e.name)
@pytest.mark.parametrize("scale", [1, 2])
def test_codecs_keep_to_the_bytes(encoder: Encoder, scale: int) -> None:
    policy = os.sched_getscheduler(0)
    wanted = 10_000 // scale
    found = at_bytes(encoder, pictures(), wanted, scale=scale)
    assert found.rgb.shape == pictures().shape
    assert found.stored_bytes <= wanted * (1 + TOLERANCE)
    if not encoder.whole:
        assert found.stored_bytes > 0.8 * wanted
    assert float((found.rgb.float() - pictures().float()).abs().mean()) < 30
    assert os.sched_getscheduler(0) == policy


def test_pairs_of_clips_have_an_interval() -> None:
    own = [[1.0] * 8 + [0.0] * 2, [1.0] * 6 + [0.0] * 4]
    reference = [[1.0] * 10, [1.0] * 10]
    found = paired(own, reference)
    assert found.mean == pytest.approx(-0.3)
    assert found.low == pytest.approx(-0.4)
    assert found.high == pytest.approx(-0.2)


def test_units_that_training_saw_are_told_apart() -> None:
    single, clip = (FAMILIES[name].spec(name) for name in ("world_class", "world_action"))
    frames = 160
    assert seen_at_ingest(single, frames, units_of(single, frames))[:4] == [True, True, False, True]
    assert seen_at_ingest(clip, frames, units_of(clip, frames)) == [True, True, False, True, True]
    later = seen_later(single, frames, units_of(single, frames), share=0.10)
    assert sum(later) == 16


def test_the_summary_keeps_columns_apart() -> None:
    rows = [
        {
            "net": "n",
            "clip": "c",
            "artefact": "source",
            "bpp": None,
            "accuracy": [1, 1, 1, 0],
            "agreement": [1] * 4,
        },
        {
            "net": "n",
            "clip": "c",
            "artefact": "joint",
            "route": "adapter",
            "bpp": 0.1,
            "accuracy": [1, 0, 1, 0],
            "agreement": [1, 0, 1, 1],
            "seen": [True, False, True, False],
        },
    ]
    joint = next(row for row in summarised(rows) if row["artefact"] == "joint")
    assert joint["seen"]["accuracy"] == 1.0
    assert joint["unseen"]["accuracy"] == 0.0
    assert joint["unseen"]["source_accuracy"] == 0.5
    assert joint["unseen"]["agreement"] == 0.5
    assert joint["seen"]["difference"]["mean"] == 0.0


def test_what_learned_nothing_is_compared_on_the_joint_fits_unseen_units() -> None:
    def row(artefact: str, accuracy: list[float], **more: object) -> dict[str, object]:
        alike = {"net": "n", "clip": "c", "bpp": 0.1, "agreement": accuracy, "kl": None, "steadiness": 1.0}
        return {**alike, "artefact": artefact, "accuracy": accuracy, **more}

    rows = [
        row("source", [1.0, 1.0, 0.0, 1.0]),
        row("x264 0.1", [0.0, 0.0, 0.0, 1.0]),
        row("hnerv joint 0.1", [1.0, 1.0, 1.0, 0.0], route="adapter", seen=[True, True, False, False]),
        row("hnerv task unknown 0.1", [1.0, 0.0, 0.0, 1.0], route="adapter", seen=[True] + 3 * [False]),
    ]
    found = {one["artefact"]: one for one in summarised(rows)}
    assert found["x264 0.1"]["unseen"]["units"] == 2
    assert found["x264 0.1"]["unseen"]["difference"]["mean"] == 0.0
    assert found["source"]["unseen"]["accuracy"] == 0.5
    assert found["hnerv joint 0.1"]["unseen"]["accuracy"] == 0.5
    assert found["hnerv task unknown 0.1"]["unseen"]["units"] == 3


def of_net(artefact: str, mean: float, *, bpp: float, with_task: float | None = None) -> dict[str, object]:
    route = None if with_task is None else "adapter"
    column = {"difference": {"mean": mean}}
    alike = {"net": "n", "route": route, "bpp_with_task": with_task, "unseen": column}
    return {"artefact": artefact, "bpp": bpp, **alike}


def test_answers_are_lost_to_the_best_codec_of_fewer_bytes() -> None:
    ours = of_net("hnerv joint 0.1", -0.05, bpp=0.1, with_task=0.12)
    worse, better, larger = (
        of_net("x264 0.1", -0.2, bpp=0.1),
        of_net("x265 0.1 half size", -0.01, bpp=0.1),
        of_net("av1 0.5", 0.0, bpp=0.5),
    )
    (said,) = accuracy_losses({"summary": [ours, worse, better, larger]})
    assert "-5.0 points" in said
    assert "x265 0.1 half size -1.0" in said
    assert not list(accuracy_losses({"summary": [ours, worse, larger]}))
    assert not list(accuracy_losses({"summary": [ours]}))


def test_actions_are_the_worlds() -> None:
    assert FAMILIES["world_action"].labels == ACTIONS
    assert (HEIGHT, WIDTH) == (240, 320)
