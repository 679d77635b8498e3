"""Decoding a real archive again, and what that finds beyond digests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nvpstore.archive import Archive
from nvpstore.codec.build import Architecture
from nvpstore.storage import keys
from nvpstore.storage.commit import Base, PreparedVideo, commit_video
from nvpstore.storage.tables import decode_manifest
from nvpstore.types import VideoMeta, VideoRecord
from nvpstore.upkeep.verify import verify
from tests.conftest import CLIP_FRAMES, Micro

pytestmark = pytest.mark.slow  # one fit


def recommit(archive: Archive, folder: Path, change: Callable[[VideoRecord], VideoRecord]) -> VideoRecord:
    """The archive's video in a new attempt whose manifest says something else."""
    snapshot = archive.catalog.snapshot()
    (video_id,) = (row["video_id"] for row in archive.videos())
    files: dict[str, Path] = {}
    for obj in snapshot.objects(video_id):
        if keys.parse_key(obj.key).kind in ("weights", "latents", "audio"):
            files[obj.key] = folder / str(len(files))
            archive.store.get_file(obj, files[obj.key])
        if keys.parse_key(obj.key).kind == "manifest":
            record = decode_manifest(archive.store.get_verified(obj))
    prepared = PreparedVideo(
        video=change(record), routes=(), files=files, meta=VideoMeta(video_id=video_id, name="")
    )
    base = Base(number=snapshot.number, stored=True, fitted=True, latest_attempt=snapshot.latest_attempt)
    return commit_video(archive.log, prepared, base, replaces=True)


def test_a_whole_archive_is_decoded_and_compared(micro: Micro) -> None:
    report = verify(micro.archive.store, deep=True)
    assert report.damages == ()
    assert report.deep is not None
    assert (report.deep.videos, report.deep.frames) == (1, CLIP_FRAMES)
    assert (report.deep.compared, report.deep.not_compared) == (1, 0)


def test_a_psnr_that_is_not_what_is_decoded_is_damage(micro: Micro, tmp_path: Path) -> None:
    def change(video: VideoRecord) -> VideoRecord:
        first, *rest = video.segments
        return replace(video, psnr=video.psnr + 0.1, segments=(replace(first, psnr=first.psnr - 0.1), *rest))

    archive = micro.copy(tmp_path)
    video = recommit(archive, tmp_path, change)
    segment, whole = verify(archive.store, deep=True).damages
    assert (segment.segment, segment.object) == (
        0,
        video.segments[0].latents.key.replace("latents", "weights"),
    )
    assert (whole.segment, whole.object) == (None, keys.manifest_key(video.video_id, video.attempt))
    assert "PSNR" in segment.found
    assert "PSNR" in whole.found


@pytest.mark.parametrize("uri", [None, "file:///nowhere/clip.mp4", "other"])
def test_without_the_original_everything_is_decoded_and_not_compared(
    micro: Micro, tmp_path: Path, uri: str | None
) -> None:
    if uri == "other":  # the right size, another file
        path = tmp_path / "clip.mp4"
        path.write_bytes(bytes(micro.clip.stat().st_size))
        uri = path.as_uri()
    archive = micro.copy(tmp_path)
    recommit(archive, tmp_path, lambda video: replace(video, source_uri=uri, psnr=99.0))
    report = verify(archive.store, deep=True)
    assert report.damages == ()
    assert report.deep is not None
    assert (report.deep.frames, report.deep.compared, report.deep.not_compared) == (CLIP_FRAMES, 0, 1)


def test_an_architecture_that_does_not_fit_is_damage_of_its_segment(micro: Micro, tmp_path: Path) -> None:
    def change(video: VideoRecord) -> VideoRecord:
        first, second, *rest = video.segments
        other = Architecture.from_json(second.architecture)
        wrong = replace(other, widths=tuple(width + 1 for width in other.widths))
        return replace(video, segments=(first, replace(second, architecture=wrong.to_json()), *rest))

    archive = micro.copy(tmp_path)
    wrong = recommit(archive, tmp_path, change)
    (damage,) = verify(archive.store, deep=True).damages
    assert (damage.video_id, damage.segment) == (wrong.video_id, 1)
    assert "decoded" in damage.found


def test_damaged_bytes_are_said_once(micro: Micro, tmp_path: Path) -> None:
    archive = micro.copy(tmp_path)
    (weights,) = (obj for obj in archive.catalog.snapshot().objects() if "/weights-" in obj.key)
    path = Path(str(archive.store.local_path(weights.key)))
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.unlink()
    path.write_bytes(content)
    report = verify(archive.store, deep=True)
    (damage,) = report.damages
    assert (damage.object, damage.segment, damage.stage) == (weights.key, 0, "0")
    assert report.deep is not None
    assert 0 < report.deep.frames < CLIP_FRAMES
    assert report.deep.not_compared == 1
