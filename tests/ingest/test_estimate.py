"""What an ingest would take: the kind of footage, and figures that fit each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from nvpstore.api.cli import main
from nvpstore.codec.build import find_preset
from nvpstore.errors import SourceError
from nvpstore.ingest import estimate
from nvpstore.ingest.estimate import estimate_fit, estimate_ingest
from nvpstore.ingest.task_costs import TaskCost, task_cost
from nvpstore.tasks.registry import builtin_spec, load
from nvpstore.video.source import probe
from tests.video.conftest import Clip, picture, write_clip

pytestmark = pytest.mark.slow  # fits a little

FRAMES = 40
LABELS = [load(builtin_spec("labels"))]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "PROBE_SECONDS", 0.2)


def still(folder: Path) -> Path:
    return written(folder, [picture(0, 96, 64)] * FRAMES)


def moving(folder: Path) -> Path:
    return write_clip(folder, Clip(frames=FRAMES))


def film(folder: Path) -> Path:
    shots = [lambda rgb: rgb, lambda rgb: 255 - rgb, lambda rgb: rgb[::-1]]
    return written(folder, [shots[3 * i // FRAMES](picture(i, 96, 64)) for i in range(FRAMES)])


def written(folder: Path, pictures: list[NDArray[np.uint8]]) -> Path:
    path = folder / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for rgb in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("make", "kind"), [(still, "static"), (moving, "moving"), (film, "film")])
def test_footage_is_what_it_looks_like(tmp_path: Path, make: Any, kind: str) -> None:
    found = estimate_ingest(str(make(tmp_path)), find_preset("micro"), tasks=LABELS, device="cpu")
    assert (found.kind, found.frames) == (kind, FRAMES)
    assert (found.cuts_a_minute > 0) == (kind == "film")
    assert found.seconds > 0
    assert found.stored_bytes > 1000


def test_an_hour_is_the_file_many_times(tmp_path: Path) -> None:
    found = estimate_ingest(str(moving(tmp_path)), find_preset("micro"), tasks=(), device="cpu")
    files_an_hour = 3600 * 25 / FRAMES
    assert found.full_rate.frames_a_second == 25
    assert found.full_rate.device_hours == pytest.approx(found.seconds / 3600 * files_an_hour)
    assert found.full_rate.stored_bytes == pytest.approx(found.stored_bytes * files_an_hour, rel=0.2)
    assert found.one_a_second.frames_a_second == 1
    assert found.one_a_second.device_hours < found.full_rate.device_hours
    assert found.one_a_second.stored_bytes < found.full_rate.stored_bytes


def test_cuts_make_an_hour_dearer(tmp_path: Path) -> None:
    # Short segments have less than their share of a network's budget taken off, and so more of it an hour.
    (tmp_path / "a").mkdir()
    one = estimate_ingest(str(moving(tmp_path)), find_preset("micro"), tasks=LABELS, device="cpu")
    cut = estimate_ingest(str(film(tmp_path / "a")), find_preset("micro"), tasks=LABELS, device="cpu")
    assert cut.full_rate.stored_bytes > one.full_rate.stored_bytes


def test_tasks_take_their_time(tmp_path: Path) -> None:
    path, preset = moving(tmp_path), replace(find_preset("micro"), epochs=10, least_steps=0)
    labels = TaskCost(spec=LABELS[0].spec, whole=1.0, tail=0.25, tail_gflops=0.2)
    uncut = replace(labels, tail=0.0)
    asked: Any = {"frames": 15, "distinct": 15, "epochs": 10, "epoch_seconds": 4.0}
    assert uncut.seconds(preset, **asked) == 15
    # 10 of 15 frames teach. Five joint epochs: each frame and its view through the tail and back, the view's
    # answer, and a quarter of what two thirds of the frames take to decode.
    joint = 5 * (10 * (2 * 2 * 0.25 + 1) + 2 / 3 * 0.25 * 4)
    assert labels._joint_epoch(preset, 2 / 3, 15, 4.0) == pytest.approx(joint / 5)
    routes = labels._routes(preset, 10, 5)
    taken = labels.seconds(preset, **asked)
    assert taken == pytest.approx(15 + joint + 2 * 10 * 8 / 4 * 0.25 + routes)
    # Of frames that rest few are learned from, and all are answered.
    assert labels.seconds(preset, **{**asked, "distinct": 5}) < taken
    for estimated in (estimate_fit, estimate_ingest):
        given: Any = probe(str(path)) if estimated is estimate_fit else str(path)
        one = estimated(given, preset, tasks=LABELS, device="cpu")
        none = estimated(given, preset, tasks=(), device="cpu")
        assert one.stored_bytes > none.stored_bytes
        assert one.seconds > none.seconds


def test_what_rests_is_learned_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    rests = estimate_ingest(str(still(tmp_path)), find_preset("micro"), tasks=(), device="cpu")
    moves = estimate_ingest(str(moving(tmp_path / "a")), find_preset("micro"), tasks=(), device="cpu")
    assert rests.distinct == pytest.approx(1 / 24)  # of the frames that are tried
    assert moves.distinct == 1
    assert rests.full_rate.stored_bytes < moves.full_rate.stored_bytes
    # Another second may show something else.
    assert rests.one_a_second.stored_bytes == moves.one_a_second.stored_bytes


def test_a_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(SourceError, match="not a video"):
        estimate_ingest(str(tmp_path / "no.mp4"), find_preset("micro"), tasks=LABELS, device="cpu")


def test_the_command_needs_no_archive_and_stores_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = moving(tmp_path)
    assert main(["ingest", str(path), "--preset", "micro", "--estimate", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["path"], found["kind"], found["preset"]) == (str(path), "moving", "micro")
    assert found["full_rate"].keys() == {"frames_a_second", "device_hours", "stored_bytes"}
    assert main(["ingest", str(path), str(path), "--preset", "micro", "--estimate"]) == 0
    assert "an hour like it at 25 frames a second: " in capfd.readouterr().out
    assert list(tmp_path.iterdir()) == [path]


def test_a_target_that_is_met_soon_waits_for_tasks(tmp_path: Path) -> None:
    preset = replace(find_preset("micro"), epochs=100, target_psnr=10.0)
    path = str(moving(tmp_path))
    assert estimate_ingest(path, preset, tasks=(), device="cpu").epochs < 75
    assert estimate_ingest(path, preset, tasks=LABELS, device="cpu").epochs == 75
    # The tail of a real backbone takes some time.
    (cost,) = map(task_cost, LABELS)
    assert 0 < cost.tail < cost.whole
