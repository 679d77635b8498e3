"""The reduced nets learn from the world's own truth, resume, and become tasks."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.accuracy.answers import accuracy, from_outputs
from benchmarks.nets import WEIGHTS
from benchmarks.nets.__main__ import constant_score, trained
from benchmarks.nets.__main__ import test_score as score_of
from benchmarks.nets.families import BEGIN, CAPTION_TOKENS, END, FAMILIES, PAD, VOCABULARY
from benchmarks.nets.footage import Footage, footage
from benchmarks.nets.lessons import EXTRA, LOSSES, boxes_of, draw, tokens_of
from benchmarks.nets.training import train
from benchmarks.world import CLASSES, HEIGHT, WIDTH, caption
from nvpstore.tasks.registry import build_model


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Footage:
    return footage(tmp_path_factory.mktemp("world"), split="train", clips=2, frames=36)


def test_footage_is_half_size_and_made_once(tmp_path: Path) -> None:
    once = footage(tmp_path, split="test", clips=1, frames=3)
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = footage(tmp_path, split="test", clips=1, frames=3)
    assert once.rgb.shape == (1, 3, 3, HEIGHT // 2, WIDTH // 2)
    assert (once.rgb == again.rgb).all()
    assert once.truth == again.truth
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files


def test_every_caption_can_be_said() -> None:
    said = caption([CLASSES[0]] * 3, "spins")
    tokens = tokens_of(said)
    assert len(tokens) == CAPTION_TOKENS
    assert tokens[0] == BEGIN
    words = [VOCABULARY[t] for t in tokens if t not in (BEGIN, END, PAD)]
    assert " ".join(words) == said


def test_boxes_are_fractions_and_turn_with_the_picture(seen: Footage) -> None:
    told = next(truth for truth in seen.truth[0] if truth.boxes)
    family = FAMILIES["world_objects"]
    plain, flipped = (boxes_of(told, flip=flip)["boxes"] for flip in (False, True))
    assert float(plain.min()) >= 0
    assert float(plain.max()) <= 1
    torch.testing.assert_close(flipped[:, 0], 1 - plain[:, 0])
    torch.testing.assert_close(flipped[:, 1:], plain[:, 1:])
    name, x0, y0, x1, y1 = told.boxes[0]
    assert family.labels[int(boxes_of(told, flip=False)["class_labels"][0])] == name
    torch.testing.assert_close(
        plain[0],
        torch.tensor([(x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT]),
    )


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_net_learns_one_batch_by_heart(name: str, seen: Footage) -> None:
    family = replace(FAMILIES[name], batch=2)
    spec = family.spec(name)
    model = build_model(spec)
    net = model.net.eval().requires_grad_(True)
    lessons = (draw(seen, family, spec, random.Random(chance)) for chance in range(20))
    lesson = next(one for one in lessons if len({told.label for told in one.truth}) == 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-4)
    losses = []
    for _ in range(14):
        loss = LOSSES[family.kind](model, lesson, family)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_what_is_stored_is_the_net_without_its_second_lesson(
    name: str, tmp_path: Path, seen: Footage
) -> None:
    family = replace(FAMILIES[name], batch=2)
    done = train(name, family, seen, tmp_path, device="cpu", steps=1, told=print)
    assert any(key.startswith(EXTRA) for key in done.model.net.state_dict())
    stored = load_file(tmp_path / f"{name}.safetensors")
    assert not any(key.startswith(EXTRA) for key in stored)
    assert {tensor.dtype for tensor in stored.values() if tensor.ndim > 1} == {torch.float16}
    task = trained(name, family, tmp_path)
    answers = task.backbone.whole(torch.zeros(1, *task.spec.input_shape))
    assert answers.isfinite().all()


def test_the_committed_nets_know_the_world(tmp_path: Path) -> None:
    fresh = footage(tmp_path, split="test", clips=8, frames=40)
    for name, family in FAMILIES.items():
        task = trained(name, family, WEIGHTS)
        assert score_of(task, family, fresh) > 0.05 + constant_score(task, family, fresh), name


def test_training_goes_on_where_it_was_killed(tmp_path: Path, seen: Footage) -> None:
    family = replace(FAMILIES["world_class"], batch=2)
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    train("n", family, seen, tmp_path / "whole", device="cpu", steps=3, told=print)
    done = train("n", family, seen, tmp_path / "parts", device="cpu", steps=3, told=print)
    assert done.steps == 3
    weights = [(tmp_path / folder / "n.safetensors").read_bytes() for folder in ("whole", "parts")]
    assert weights[0] == weights[1]
    task = trained("n", family, tmp_path / "whole")
    fresh = replace(seen, rgb=seen.rgb[:1], truth=seen.truth[:1])
    assert 0 <= score_of(task, family, fresh) <= 1
    answers = from_outputs(task, task.backbone.whole(torch.zeros(1, *task.spec.input_shape)))
    assert accuracy(family, answers[0], seen.truth[0][0]) in (0.0, 1.0)
