"""Videos over workers: fitted and stored as one after another, failures alone, a rerun no work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nvpstore
from nvpstore.api.cli import main
from nvpstore.archive import Archive
from nvpstore.intake import Fitting, Spread, fit_all, ingest_all
from tests.conftest import open_micro
from tests.ingest.test_pipeline import clip, cut_clip

pytestmark = pytest.mark.slow  # fits
MICRO = Fitting(tasks=(), preset="micro", device="cpu")


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return open_micro(tmp_path / "archive", tmp_path / "cache", create=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two videos and a file that is none."""
    folder = tmp_path / "in"
    folder.mkdir()
    for frames in (3, 4):
        clip(folder, frames=frames, name=f"{frames}.mp4")
    (folder / "words.mp4").write_text("This is a text about videos.\n" * 50)
    return folder


def nvp(archive: Archive, *arguments: object) -> int:
    return main(["--archive", archive.store.root, "--json", *(str(a) for a in arguments)])


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Callable[[], tuple[Any, str]]:
    def read() -> tuple[Any, str]:
        out, err = capfd.readouterr()
        return json.loads(out), err

    return read


def test_processes_store_what_they_can_and_a_rerun_is_no_work(
    archive: Archive, folder: Path, said: Callable[[], tuple[Any, str]]
) -> None:
    command = (
        "ingest", f"{folder}/*.mp4", "--engine", "processes", "--workers", 2, "--preset", "micro",
        "--task", "labels", "--device", "cpu", "--tag", "camera=gate",
    )  # fmt: skip
    assert nvp(archive, *command) == 1
    first, err = said()
    assert [(one["name"], one["frames"], one["already_stored"]) for one in first["stored"]] == [
        ("3.mp4", 3, False),
        ("4.mp4", 4, False),
    ]
    (failure,) = first["failed"]
    assert failure["named"] == str(folder / "words.mp4")
    assert "words.mp4" in failure["error"]
    assert "1 of 3 videos failed, such as" in err
    rows = archive.sql("SELECT name, tags['camera'] FROM videos ORDER BY name").fetchall()
    assert rows == [("3.mp4", "gate"), ("4.mp4", "gate")]
    (folder / "words.mp4").unlink()
    assert nvp(archive, *command) == 0
    again, _ = said()
    assert [one["already_stored"] for one in again["stored"]] == [True, True]


def test_added_videos_are_fitted_by_workers(
    archive: Archive, folder: Path, said: Callable[[], tuple[Any, str]]
) -> None:
    for frames in (3, 4):
        archive.add(folder / f"{frames}.mp4", tasks=())
    gone = folder / "4.mp4"
    bytes_of = gone.read_bytes()
    gone.unlink()
    assert nvp(archive, "fit", "--workers", 2, "--preset", "micro", "--device", "cpu") == 1
    first, err = said()
    assert [one["name"] for one in first["stored"]] == ["3.mp4"]
    assert "4.mp4" in first["failed"][0]["error"]
    assert "1 of 2 videos failed" in err
    gone.write_bytes(bytes_of)
    assert nvp(archive, "fit", "--workers", 2, "--preset", "micro", "--device", "cpu") == 0
    assert [one["name"] for one in said()[0]["stored"]] == ["4.mp4"]


def test_what_is_named_in_full_comes_first(archive: Archive, folder: Path) -> None:
    (folder / "words.mp4").unlink()
    report = ingest_all(archive, [str(folder), str(folder / "4.mp4")], fitting=MICRO)
    assert [stored.name for stored in report.stored] == ["4.mp4", "3.mp4"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--gpus-a-worker", "0.5"), "--gpus-a-worker needs --engine"),
        (("--by", "segments"), "--by needs --engine"),
        (("--skip-known",), "--skip-known needs --engine"),
        (("--workers", "0"), "at least 1 is needed"),
        (("--workers", "2", "--fail-fast"), "--fail-fast is for videos one after another"),
        (("--workers", "2", "--name", "x"), "--name is for one video"),
        (("--engine", "processes", "--gpus-a-worker", "0.5"), "is for engine 'ray'"),
    ],
)
def test_options_that_cannot_go_together_are_one_line(
    archive: Archive, folder: Path, options: tuple[str, ...], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert nvp(archive, "ingest", folder / "3.mp4", "--device", "cpu", *options) == 2
    assert says in capfd.readouterr().err


def test_segments_of_one_video_are_fitted_by_workers(archive: Archive, tmp_path: Path) -> None:
    path = str(cut_clip(tmp_path, 5))
    spread = Spread(engine="processes", workers=2, by="segments")
    report = ingest_all(archive, [path], fitting=MICRO, spread=spread)
    assert report.failed == ()
    (stored,) = report.stored
    assert (stored.frames, stored.already_stored) == (6, False)
    alone = open_micro(tmp_path / "alone", tmp_path / "its-cache", create=True)
    alone.ingest(path, preset="micro", tasks=(), device="cpu")
    expected = alone.show(stored.video_id)
    assert stored.psnr == pytest.approx(expected["psnr"], abs=0.05)
    assert len(archive.show(stored.video_id)["segments"]) == len(expected["segments"]) == 2
    assert list((archive.catalog.folder / "fits").rglob("*.finished")) == []
    assert ingest_all(archive, [path], fitting=MICRO, spread=spread).stored[0].already_stored


@pytest.mark.s3
def test_objects_are_fetched_by_workers_and_known_ones_are_not(s3_root: str, tmp_path: Path) -> None:
    archive = open_micro(s3_root, tmp_path / "cache", create=True)
    place = nvpstore.archive.open_store(s3_root.replace("/archive", "/in"))
    for frames in (3, 4):
        place.put_file(f"day/{frames}.mp4", clip(tmp_path, frames=frames, name=f"{frames}.mp4"))
    spread = Spread(engine="processes", workers=2)
    everything = [f"{place.root}/**"]
    report = ingest_all(archive, everything, fitting=MICRO, spread=spread)
    assert [stored.name for stored in report.stored] == ["3.mp4", "4.mp4"]
    assert {row["source_uri"] for row in sources(archive)} == {
        f"{place.root}/day/{frames}.mp4" for frames in (3, 4)
    }
    place.put_file("day/5.mp4", clip(tmp_path, frames=5, name="5.mp4"))
    again = ingest_all(archive, everything, fitting=MICRO, spread=spread, skip_known=True)
    assert ([stored.name for stored in again.stored], again.skipped) == (["5.mp4"], 2)


def sources(archive: Archive) -> list[dict[str, Any]]:
    return archive.catalog.snapshot().ask("SELECT source_uri FROM idx.store.videos", {})


def test_ray_fits_what_this_machine_fits(archive: Archive, folder: Path) -> None:
    (folder / "words.mp4").unlink()
    archive.add(folder / "3.mp4", tasks=())
    report = fit_all(
        archive,
        [video["video_id"] for video in archive.videos()],
        fitting=MICRO,
        spread=Spread(engine="ray", workers=1),
    )
    assert report.failed == ()
    (stored,) = report.stored
    assert stored.name == "3.mp4"
    assert stored.psnr is not None  # an added video has none
