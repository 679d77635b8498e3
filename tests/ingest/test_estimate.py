"""What an ingest would take: the kind of footage, and figures that fit each other."""

from __future__ import annotations

import json
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
from nvpstore.ingest.estimate import estimate_ingest
from tests.video.conftest import Clip, picture, write_clip

pytestmark = pytest.mark.slow  # fits a little

FRAMES = 40


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
    found = estimate_ingest(str(make(tmp_path)), find_preset("micro"), tasks=1, device="cpu")
    assert (found.kind, found.frames) == (kind, FRAMES)
    assert (found.cuts_a_minute > 0) == (kind == "film")
    assert found.seconds > 0
    assert found.stored_bytes > 1000


def test_an_hour_is_the_file_many_times(tmp_path: Path) -> None:
    found = estimate_ingest(str(moving(tmp_path)), find_preset("micro"), tasks=0, device="cpu")
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
    one = estimate_ingest(str(moving(tmp_path)), find_preset("micro"), tasks=1, device="cpu")
    cut = estimate_ingest(str(film(tmp_path / "a")), find_preset("micro"), tasks=1, device="cpu")
    assert cut.full_rate.stored_bytes > one.full_rate.stored_bytes


def test_what_rests_is_learned_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    rests = estimate_ingest(str(still(tmp_path)), find_preset("micro"), tasks=0, device="cpu")
    moves = estimate_ingest(str(moving(tmp_path / "a")), find_preset("micro"), tasks=0, device="cpu")
    assert rests.distinct == pytest.approx(1 / 24)  # of the frames that are tried
    assert moves.distinct == 1
    assert rests.full_rate.stored_bytes < moves.full_rate.stored_bytes
    # Another second may show something else.
    assert rests.one_a_second.stored_bytes == moves.one_a_second.stored_bytes


def test_a_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(SourceError, match="not a video"):
        estimate_ingest(str(tmp_path / "no.mp4"), find_preset("micro"), tasks=1, device="cpu")


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
