"""The same on a real S3 server: copies there and back, verification, and videos of a prefix."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvpstore.catalog import Catalog
from nvpstore.storage.log import create_archive
from nvpstore.storage.objects import open_store
from nvpstore.upkeep.copying import copy_videos
from nvpstore.upkeep.folders import at_hand, expand
from nvpstore.upkeep.verify import verify
from tests.catalog.conftest import SmallArchive

pytestmark = pytest.mark.s3


def empty(uri: str, cache: Path) -> Catalog:
    store = open_store(uri)
    create_archive(store)
    return Catalog(store, cache)


def test_a_copy_there_and_back_is_whole(s3_root: str, tmp_path: Path) -> None:
    small = SmallArchive(open_store(str(tmp_path / "a")))
    task = small.add_task()
    video = small.add_video("gate", segments=3)
    small.add_routes(video, task)
    small.add_meta(video.video_id, name="the gate", tags={"camera": "gate"})
    here = Catalog(small.store, tmp_path / "cache")
    there, back = empty(f"{s3_root}/b", tmp_path / "cache"), empty(str(tmp_path / "c"), tmp_path / "cache")
    for source, target in ((here, there), (there, back)):
        report = copy_videos(source, target, [video.video_id])
        assert (report.videos, report.failures) == (1, ())
        assert verify(target.log.store).damages == ()
        assert copy_videos(source, target, [video.video_id]).skipped == 1
    first, last = here.snapshot(), back.snapshot()
    assert first.meta(video.video_id) == last.meta(video.video_id)
    for one, two in zip(first.segments(video.video_id), last.segments(video.video_id), strict=True):
        assert [part.sha256 for _, part in one.stages] == [part.sha256 for _, part in two.stages]


def test_damage_is_found(s3_root: str) -> None:
    small = SmallArchive(open_store(s3_root))
    video = small.add_video("gate")
    gone, changed = video.segments[0].latents.key, video.segments[0].stages[0][1]
    content = bytearray(small.store.get(changed.key))
    content[changed.offset] ^= 1
    for key in (gone, changed.key):
        small.store.delete(key)
    small.store.put(changed.key, bytes(content))
    damages = {(damage.object, damage.segment, damage.stage) for damage in verify(small.store).damages}
    assert damages == {(gone, None, None), (changed.key, 0, "0")}


def test_videos_of_a_prefix_and_of_a_glob(s3_root: str, tmp_path: Path) -> None:
    store = open_store(s3_root)
    for key in ("day 1/a.mp4", "day 1/deep/b.MOV", "day 1/notes.txt", "day 10/c.mp4", ".hidden/d.mp4"):
        store.put(key, key.encode())
    assert [str(v).removeprefix(f"{s3_root}/") for v in expand([f"{s3_root}/day 1"])] == [
        "day 1/a.mp4",
        "day 1/deep/b.MOV",
    ]
    (one, two) = expand([f"{s3_root}/day 1/a.mp4", f"{s3_root}/*/c.*"])
    for video, key in ((one, "day 1/a.mp4"), (two, "day 10/c.mp4")):
        with at_hand(video, tmp_path) as path:
            assert (path.name, path.read_bytes()) == (video.name, key.encode())
