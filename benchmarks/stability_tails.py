"""Stabilized tails on videos that were corrupted before they came into the store.

Short clips each show one photograph under a slow camera, then within three frames another one: where the
label must change is known. Some photographs are only in test clips. Each clip is corrupted in one way, by
the paper's strength or a share of it, encoded and added; a stabilizer learns from the training clips alone,
without labels or clean sources, which only the figures look at. Beside it: an exponential average of the
logits, of the weights tried on the training clips the one with the fewest flips whose median delay is no
longer than the stabilizer's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

import nvpstore
from benchmarks.footage import PHOTOGRAPHS, TILE
from nvpstore.adapters.corruptions import corrupted
from nvpstore.archive import Archive
from nvpstore.config import load_settings
from nvpstore.steadiness import Run, Steadiness, steadiness

FRAMES, CHANGE, OVER = 24, 12, 3
VIEW = 192  # pixels, of TILE
FPS = 25
TRAIN_CLIPS, TEST_CLIPS = 96, 16
FRESH_CLIPS = 32  # more to judge by, looked at once: λ and steps were chosen with the first ones in sight
TUNING_CLIPS = 4  # of the training clips, on which the average's weight is tuned
TEST_PHOTOGRAPHS = (0, 1, 5, 7)  # of PHOTOGRAPHS
KINDS = ("noise", "patch_drop", "jpeg", "salt_and_pepper")
STEPS = 1000
STABILITY = 0.45
WEIGHTS = (0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LABELS = 1000

Answers = Mapping[str, Tensor]  # log-probabilities [t, labels] by clip


def tails(folder: Path, *, strength: float) -> dict[str, Any]:
    """Figures on the test clips, all kinds together and each; `folder` gets clips and an archive.

    `strength` of what corrupts, in 0 … 1: at 1, the paper's, the network says of most frames nothing right,
    and there is no answer to be held on to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clips = {clip.name: clip for split in ("train", "test") for clip in _clips(split, strength)}
    archive = _archive(folder, clips)
    summary = archive.stabilize(
        "labels", steps=STEPS, share=1.0, stability=STABILITY, videos="tags['split'] = 'train'"
    )
    judged = [name for name, clip in clips.items() if clip.split == "test"]
    test, fresh = judged[:TEST_CLIPS], judged[TEST_CLIPS:]
    train = [name for name, clip in clips.items() if clip.split == "train"][:TUNING_CLIPS]
    asked = [*judged, *train]
    clean = _answers(archive, "clean", asked)
    plain = _answers(archive, "corrupted", asked)
    steady = _answers(archive, "corrupted", asked, "stabilize := true, ")
    found = _figures(steady, clean, test)
    weight, tuned = _tuned(plain, clean, train, at_most=_figures(steady, clean, train).median_delay)
    averaged = {name: _averaged(x, weight) for name, x in plain.items()}
    return {
        "strength": strength,
        "train_clips": TRAIN_CLIPS,
        "tuning_clips": len(train),
        "test_clips": len(test),
        "frames": FRAMES,
        "kinds": list(KINDS),
        "stability": STABILITY,
        "stabilizer": asdict(summary),
        "average_weight": weight,
        "average_on_train": asdict(tuned),
        "clean": asdict(_figures(clean, clean, test)),
        "plain": asdict(_figures(plain, clean, test)),
        "stabilized": asdict(found),
        "averaged": asdict(_figures(averaged, clean, test)),
        "fresh_clips": len(fresh),
        "fresh": {
            which: asdict(_figures(own, clean, fresh))
            for which, own in (("plain", plain), ("stabilized", steady), ("averaged", averaged))
        },
        "by_kind": {
            kind: {
                which: asdict(_figures(own, clean, [n for n in test if clips[n].kind == kind]))
                for which, own in (("plain", plain), ("stabilized", steady), ("averaged", averaged))
            }
            for kind in KINDS
        },
    }


# ---------------------------------------------------------------- clips


class _Clip:
    """Two photographs, one after the other, and what happens to their pictures."""

    def __init__(self, split: str, number: int, strength: float) -> None:
        self.split, self.name, self.strength = split, f"{split}{number}", strength
        self.kind, self.number = KINDS[number % len(KINDS)], number

    def clean(self) -> Tensor:
        """[t, 3, VIEW, VIEW] in 0 … 1."""
        chance = np.random.default_rng((self.number, self.split == "test"))
        known = [i for i in range(len(PHOTOGRAPHS)) if i not in TEST_PHOTOGRAPHS]
        pool = list(TEST_PHOTOGRAPHS) if self.split == "test" else known
        first, second = (PHOTOGRAPHS[i].tile() / 255 for i in chance.choice(pool, 2, replace=False))
        room = TILE - VIEW
        start, speed = chance.uniform(0.2, 0.8, (2, 2)) * room, chance.uniform(-0.6, 0.6, (2, 2))
        frames = []
        for t in range(FRAMES):
            shares = min(1.0, max(0.0, (t - CHANGE + 1) / OVER))
            shown = [_view(x, start[i] + speed[i] * t) for i, x in enumerate((first, second))]
            frames.append((1 - shares) * shown[0] + shares * shown[1])
        return torch.stack(frames)

    def corrupted(self) -> Tensor:
        clean = self.clean()
        return clean.lerp(corrupted(clean, self.kind, seed=1000 + self.number), self.strength)


def _clips(split: str, strength: float) -> list[_Clip]:
    count = TRAIN_CLIPS if split == "train" else TEST_CLIPS + FRESH_CLIPS
    return [_Clip(split, number, strength) for number in range(count)]


def _view(x: Tensor, place: np.ndarray) -> Tensor:
    top, left = (float(np.clip(p, 0, TILE - VIEW - 1)) for p in place)
    y, column = int(top), int(left)
    part = x[:, y : y + VIEW + 1, column : column + VIEW + 1]
    down, right = top - y, left - column
    part = part[:, :-1] * (1 - down) + part[:, 1:] * down
    return part[:, :, :-1] * (1 - right) + part[:, :, 1:] * right


def _archive(folder: Path, clips: Mapping[str, _Clip]) -> Archive:
    settings = load_settings({"NVP_CACHE": str(folder / "cache"), "NVP_THREADS": "1"})
    archive = nvpstore.open(folder / "archive", create=True, settings=settings)
    there = {video["name"] for video in archive.videos()}
    for clip in clips.values():
        for which in ("clean", "corrupted"):
            name = f"{which}-{clip.name}"
            unused = which == "clean" and clip.split == "train" and clip.number >= TUNING_CLIPS
            if name in there or unused:
                continue
            path = folder / f"{name}.mkv"
            _write(path, clip.clean() if which == "clean" else clip.corrupted())
            split = clip.split if which == "corrupted" else "clean"
            archive.add(path, name=name, tags={"split": split, "kind": clip.kind})
    return archive


def _write(path: Path, x: Tensor) -> None:
    """H.264 at crf 12: what corrupts is drawn, not the encoder's."""
    rgb = (x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "12", "preset": "veryfast"})
        stream.width = stream.height = VIEW
        stream.pix_fmt = "yuv420p"
        for i, picture in enumerate(rgb):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


# ---------------------------------------------------------------- figures


def _answers(archive: Archive, which: str, names: Sequence[str], options: str = "") -> dict[str, Tensor]:
    """Of each clip the log-probabilities [t, labels] of its frames."""
    labels = archive.task("labels")["labels"]
    place = {label: i for i, label in enumerate(labels)}
    found: dict[str, Tensor] = {}
    for video in archive.videos():
        kind, _, name = video["name"].partition("-")
        if kind != which or name not in names:
            continue
        sql = f"SELECT frame, label, score FROM labels({options}top := {LABELS}) WHERE video_id = $id"
        table = archive.sql(sql, params={"id": video["video_id"]}).arrow()
        scores = np.zeros((FRAMES, len(labels)))
        columns = [place[label] for label in table["label"].to_pylist()]
        np.add.at(scores, (table["frame"].to_numpy(), columns), table["score"].to_numpy())
        found[name] = torch.from_numpy(scores).clamp_min(1e-12).log()
    return found


def _figures(answers: Answers, clean: Answers, names: Sequence[str]) -> Steadiness:
    """Truth is what the backbone says of the clean clip, the most frequent label of each half of it."""
    ts = [t / FPS for t in range(FRAMES)]
    return steadiness(
        [Run(ts=ts, labels=answers[n].argmax(1).tolist(), truth=_scripted(clean[n])) for n in names]
    )


def _scripted(x: Tensor) -> list[int]:
    """Before and after the change, each the label that the clean frames have most often."""
    first, second = (int(part.argmax(1).mode().values) for part in (x[:CHANGE], x[CHANGE + OVER :]))
    return [first] * (CHANGE + OVER // 2) + [second] * (FRAMES - CHANGE - OVER // 2)


def _averaged(x: Tensor, weight: float) -> Tensor:
    memory, out = x[0], [x[0]]
    for frame in x[1:]:
        memory = weight * frame + (1 - weight) * memory
        out.append(memory)
    return torch.stack(out)


def _tuned(
    plain: Answers, clean: Answers, names: Sequence[str], *, at_most: float | None
) -> tuple[float, Steadiness]:
    """The weight of the current frame with the fewest flips of those whose delay is no longer."""
    found = {w: _figures({n: _averaged(plain[n], w) for n in names}, clean, names) for w in WEIGHTS}
    near = {w: f for w, f in found.items() if at_most is None or (f.median_delay or 0) <= at_most}
    best = min(near or {WEIGHTS[-1]: found[WEIGHTS[-1]]}, key=lambda w: (found[w].flips, -w))
    return best, found[best]
