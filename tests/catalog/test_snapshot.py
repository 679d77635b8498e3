"""Typed readers and views: what ingest stored is what the engine gets."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from nvpstore.catalog import Catalog
from nvpstore.errors import IntegrityError, NotFound, TaskError, UsageError
from nvpstore.storage.tables import decode_latents, decode_route, decode_stages
from tests.catalog.conftest import view_of


@pytest.mark.parametrize("pts", [(0, 512, 1024, 1536), (0, 512, 1024, 1700), (0,)])
def test_segments_come_back_as_stored(archive: Any, catalog: Catalog, pts: tuple[int, ...]) -> None:
    video = archive.add_video("one", pts=pts)
    snapshot = catalog.snapshot()
    for stored in video.segments:
        found = snapshot.segment(video.video_id, stored.segment)
        np.testing.assert_array_equal(found.pts, stored.pts)
        np.testing.assert_array_equal(found.frame_psnr, stored.frame_psnr)
        none = {"pts": stored.pts, "frame_psnr": stored.frame_psnr}
        assert replace(found, **none) == replace(stored, **none)
    assert len(snapshot.segments(video.video_id)) == len(video.segments)
    with pytest.raises(UsageError, match="no segment 7"):
        snapshot.segment(video.video_id, 7)


@pytest.mark.parametrize("archive", ["local", "memory"], indirect=True)
def test_a_partial_decode_needs_one_range_and_no_footer_read(archive: Any, catalog: Catalog) -> None:
    video = archive.add_video("one")
    snapshot = catalog.snapshot()
    segment = snapshot.segment(video.video_id, 1)
    prefix = segment.prefix("1")
    data = archive.store.get_range(prefix.key, prefix.offset, prefix.size_bytes)
    groups = [part for _, part in segment.stages[:2]]
    stages = decode_stages(data, prefix.offset, snapshot.footer(prefix.key), groups)
    assert [tensors[0].name for tensors in stages] == ["0.weight", "1.weight"]
    part = segment.latents
    body = archive.store.get_range(part.key, part.offset, part.size_bytes)
    latents = decode_latents(body, part.offset, snapshot.footer(part.key), part)
    np.testing.assert_array_equal(latents.pts, segment.pts)


@pytest.mark.parametrize("archive", ["local", "memory"], indirect=True)
def test_one_routes_adapter_is_one_small_range(archive: Any, catalog: Catalog) -> None:
    video = archive.add_video("one")
    task = archive.add_task()
    stored = archive.add_routes(video, task)
    snapshot = catalog.snapshot()
    found = snapshot.routes(video.video_id, task.version)
    assert [item.route for item in found] == [replace(route, adapter=()) for route in stored.routes]
    for item, route in zip(found, stored.routes, strict=True):
        part = item.row_group
        assert (part is None) == (not route.adapter)
        if part is not None:
            data = archive.store.get_range(part.key, part.offset, part.size_bytes)
            assert decode_route(data, snapshot.footer(part.key), part) == route.adapter


def test_a_newer_routes_object_replaces_the_older(archive: Any, catalog: Catalog) -> None:
    video, task = archive.add_video("one"), archive.add_task()
    archive.add_routes(video, task, fidelity=0.5)
    catalog.snapshot()
    archive.add_routes(video, task, fidelity=0.75)
    found = catalog.snapshot().routes(video.video_id, task.version)
    assert {item.route.fidelity for item in found} == {0.75}
    assert len(found) == 4


def test_videos_count_all_stored_bytes(archive: Any, catalog: Catalog) -> None:
    video, task = archive.add_video("one"), archive.add_task()
    archive.add_routes(video, task)
    archive.add_meta(video.video_id, name="gate", tags={"camera": "gate"})
    keys = archive.store.list(f"videos/{video.video_id}/")
    total = sum(archive.store.size(key) for key in keys)
    audio = sum(archive.store.size(key) for key in keys if key.endswith("audio.mka"))
    with catalog.snapshot().connect() as connection:
        (row,) = connection.sql(
            "SELECT stored_bytes, bpp, frames, duration, fps, tags['camera'], name, psnr, "
            "resize_bound_psnr, state FROM videos"
        ).fetchall()
    pixels = 320 * 180 * 8
    assert row[0] == total
    assert row[1] == pytest.approx(8 * (total - audio) / pixels)
    assert row[2:] == (8, 4096 / 12800, 25.0, "gate", "gate", 30.5, None, "ready")


def test_segment_times_are_half_open_and_meet(archive: Any, catalog: Catalog) -> None:
    archive.add_video("one", pts=(0, 512, 1024, 1700))
    with catalog.snapshot().connect() as connection:
        rows = connection.sql("SELECT start_ts, end_ts FROM segments ORDER BY segment").fetchall()
    assert rows == [(0.0, 2048 / 12800), (2048 / 12800, (2048 + 1700 + 676) / 12800)]


def test_views_are_reachable_by_plain_name_and_nothing_can_be_written(archive: Any, catalog: Catalog) -> None:
    archive.add_video("one")
    with catalog.snapshot().connect() as connection:
        assert connection.sql("SELECT count(*) FROM videos JOIN segments USING (video_id)").fetchall() == [
            (2,)
        ]
        connection.execute("CREATE TABLE mine AS SELECT 1")
        for table in ("idx.store.videos", "base.store.videos"):
            with pytest.raises(duckdb.Error, match=r"read-only|base table"):
                connection.execute(f"DELETE FROM {table}")
    with catalog.snapshot().connect() as connection, pytest.raises(duckdb.Error):
        connection.execute("FROM mine")


def test_a_video_is_found_by_id_prefix_and_name(archive: Any, catalog: Catalog) -> None:
    one, two = archive.add_video("one", name="gate"), archive.add_video("two", name="gate")
    three = archive.add_video("three")
    snapshot = catalog.snapshot()
    for ref in (three.video_id, three.video_id[:8], "three.mp4"):
        assert snapshot.find_video(ref) == three.video_id
    assert snapshot.find_video(one.video_id) == one.video_id
    with pytest.raises(UsageError, match="ambiguous") as ambiguous:
        snapshot.find_video("gate")
    assert one.video_id[:12] in str(ambiguous.value)
    assert two.video_id[:12] in str(ambiguous.value)
    for ref in ("nothing", "", "%"):
        with pytest.raises(UsageError, match=r"three\.mp4"):
            snapshot.find_video(ref)


def test_the_segment_of_each_frame_is_found(archive: Any, catalog: Catalog) -> None:
    stored = archive.add_video("one", segments=2)
    archive.add_video("two", segments=3)
    snapshot = catalog.snapshot()
    assert [snapshot.segment_of(stored.video_id, frame) for frame in range(8)] == [0] * 4 + [1] * 4
    for frame in (-1, 8, 2**40):
        with pytest.raises(NotFound, match="it has frames 0 to 7"):
            snapshot.segment_of(stored.video_id, frame)
    with pytest.raises(NotFound, match="no video"):
        snapshot.segment_of("f" * 32, 0)


def test_an_indexed_video_has_all_fields(archive: Any, catalog: Catalog) -> None:
    stored = archive.add_video("one")
    meta = archive.add_meta(stored.video_id, name="gate", tags={"camera": "gate", "": "ü"})
    snapshot = catalog.snapshot()
    found = snapshot.video(stored.video_id)
    assert (found.sha256, found.time_base, found.average_fps, found.audio, found.frames) == (
        stored.sha256, stored.time_base, stored.average_fps, stored.audio, 8,
    )  # fmt: skip
    assert found.pts_origin == 100
    assert snapshot.meta(stored.video_id) == meta
    assert snapshot.has_video(stored.video_id)
    assert not snapshot.has_video("f" * 32)
    with pytest.raises(UsageError, match="no video 'ffff"):
        snapshot.video("f" * 32)


def test_the_last_entry_about_a_view_wins(archive: Any, catalog: Catalog, cache_dir: Path) -> None:
    archive.add_view("night", "SELECT 1")
    catalog.snapshot()
    night, day = archive.add_view("night", "SELECT 2"), archive.add_view("day")
    assert catalog.snapshot().views() == (day, night)
    archive.commit("view", "day", [])
    assert catalog.snapshot().views() == (night,)
    assert catalog.rebuild().views() == (night,)
    catalog.checkpoint(force=True)
    assert Catalog(archive.store, cache_dir / "fresh").snapshot().views() == (night,)


@pytest.mark.parametrize("names", [("day",), ("night", "night")])
def test_a_view_entry_names_its_own_view_once(archive: Any, catalog: Catalog, names: tuple[str, ...]) -> None:
    archive.commit("view", "night", [archive.put_view(view_of(name)) for name in names])
    with pytest.raises(IntegrityError, match="saves the view night as"):
        catalog.snapshot()


def test_a_view_object_with_another_view_in_it_is_named(archive: Any, catalog: Catalog) -> None:
    stored = archive.put_view(view_of("day"), under="night")
    archive.commit("view", "night", [stored])
    with pytest.raises(IntegrityError, match=f"{stored.key} holds the view day"):
        catalog.snapshot()


def test_tasks_newest_by_default_pinned_by_prefix(archive: Any, catalog: Catalog) -> None:
    old, new = archive.add_task(), archive.add_task(spec='{"v":2}')
    archive.add_task("depth_small")
    snapshot = catalog.snapshot()
    assert snapshot.task("labels") == new
    assert snapshot.task("labels", old.version[:6]) == old
    assert snapshot.has_task("labels", old.version)
    assert not snapshot.has_task("labels", hashlib.sha256(b"").hexdigest())
    assert [task.name for task in snapshot.tasks()] == ["depth_small", "labels"]
    with pytest.raises(TaskError, match="no task 'label' in this archive: it has depth_small, labels"):
        snapshot.task("label")
    with pytest.raises(TaskError, match=f"no version starts with 'zz', of {new.version[:12]}"):
        snapshot.task("labels", "zz")
    with snapshot.connect() as connection:
        assert connection.sql("SELECT version FROM tasks WHERE name = 'labels'").fetchall() == [
            (new.version,)
        ]
