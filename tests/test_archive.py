"""The whole archive through its one object: what SQL says of a real clip, and what comes out again.

Oracles: PyAV's own frames of the source in numpy float64, files on disk, the formulas of the design.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation
from numpy.typing import NDArray
from PIL import Image

from nvpstore.archive import Archive
from nvpstore.errors import NotFound, SourceError, StoreError, UsageError
from tests.conftest import CLIP_FRAMES, Micro, open_micro

pytestmark = pytest.mark.slow  # one fit


@pytest.fixture(scope="module", params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def micro(request: pytest.FixtureRequest) -> Micro:
    """The stored clip, once as files and once on a real S3 server."""
    found: Micro = request.getfixturevalue(f"micro_{request.param}")
    return found


LABELS = "SELECT frame, rank, label, score, ts, route FROM labels ORDER BY frame, rank"
VIEWS = ("videos", "segments", "tasks", "routes")
EXACT = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
)


def pyav_frames(path: Path) -> tuple[NDArray[np.uint8], list[int], Fraction]:
    """(RGB uint8 [t, h, w, 3], pts, time base) of a file, by PyAV alone."""
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
        rgb = [frame.reformat(format="rgb24", interpolation=EXACT).to_ndarray() for frame in decoded]
        time_base = container.streams.video[0].time_base
    assert time_base is not None
    return np.stack(rgb), [frame.pts or 0 for frame in decoded], time_base


def stored_frames(archive: Archive, ref: str, **times: float) -> NDArray[np.uint8]:
    """RGB uint8 [t, h, w, 3] as the archive decodes them."""
    return np.concatenate([batch.rgb_thwc for batch in archive.frames(ref, **times)])


def row(archive: Archive, sql: str) -> dict[str, Any]:
    (found,) = archive.sql(sql).arrow().to_pylist(maps_as_pydicts="strict")
    return dict(found)


def psnr(squared_error: NDArray[np.float64]) -> float:
    return float(10 * np.log10(255**2 / squared_error.mean()))


def squared_errors(micro: Micro) -> NDArray[np.float64]:
    """Mean squared error of every frame of the clip, float64 [t]."""
    source, _, _ = pyav_frames(micro.clip)
    stored = stored_frames(micro.archive, micro.video_id)
    assert stored.shape == source.shape
    return ((stored.astype(np.float64) - source) ** 2).mean(axis=(1, 2, 3))


def sizes_of(micro: Micro) -> dict[str, int]:
    """Bytes of every object under the video, as the store says."""
    store = micro.archive.store
    return {key: store.size(key) for key in store.list(f"videos/{micro.video_id}/")}


class TestVideos:
    def test_size_times_and_name_are_the_source_s(self, micro: Micro) -> None:
        source, pts, time_base = pyav_frames(micro.clip)
        video = row(micro.archive, "SELECT * FROM videos")
        digest = hashlib.sha256(micro.clip.read_bytes()).hexdigest()
        assert video["video_id"] == digest[:32]
        assert (video["frames"], video["height"], video["width"]) == source.shape[:3]
        assert (video["name"], video["tags"]) == (micro.clip.name, {"camera": "gate"})
        assert video["source_bytes"] == micro.clip.stat().st_size
        assert video["fps"] == pytest.approx(25)
        # The last frame lasts as long as the one before it.
        assert video["duration"] == pytest.approx(float((2 * pts[-1] - pts[-2] - pts[0]) * time_base))

    def test_psnr_is_that_of_the_frames_that_come_out(self, micro: Micro) -> None:
        errors = squared_errors(micro)
        video = row(micro.archive, "SELECT psnr, psnr_p5 FROM videos")
        assert video["psnr"] == pytest.approx(psnr(errors), abs=0.01)
        each = 10 * np.log10(255**2 / errors)
        assert video["psnr_p5"] == pytest.approx(float(np.percentile(each, 5)), abs=0.01)

    def test_psnr_of_a_segment_is_that_of_its_frames(self, micro: Micro) -> None:
        errors = squared_errors(micro)
        for segment in micro.archive.sql("SELECT * FROM segments").arrow().to_pylist():
            part = errors[segment["start_frame"] : segment["start_frame"] + segment["frames"]]
            assert segment["psnr"] == pytest.approx(psnr(part), abs=0.01)

    def test_stored_bytes_are_the_files_and_bpp_follows(self, micro: Micro) -> None:
        sizes = sizes_of(micro)
        video = row(micro.archive, "SELECT * FROM videos")
        assert video["stored_bytes"] == sum(sizes.values())
        pixels = video["width"] * video["height"] * video["frames"]
        assert video["bpp"] == pytest.approx(8 * video["stored_bytes"] / pixels)

    def test_state_says_whether_the_target_was_met(self, micro: Micro) -> None:
        assert (micro.video.psnr >= 24.0) == (micro.video.state == "ready")


class TestSegments:
    def test_they_cover_the_video_and_end_at_scene_cuts(self, micro: Micro) -> None:
        segments = micro.archive.sql("SELECT * FROM segments ORDER BY segment").arrow().to_pylist()
        starts = [segment["start_frame"] for segment in segments]
        ends = [segment["start_frame"] + segment["frames"] for segment in segments]
        assert [0, *ends] == [*starts, CLIP_FRAMES]
        assert [s["start_frame"] for s in segments if s["scene"] == 1][:1] == [30]
        assert {segment["codec"] for segment in segments} == {"hnerv"}

    def test_their_times_are_those_of_their_frames(self, micro: Micro) -> None:
        _, pts, time_base = pyav_frames(micro.clip)
        for segment in micro.archive.sql("SELECT * FROM segments").arrow().to_pylist():
            start = float((pts[segment["start_frame"]] - pts[0]) * time_base)
            assert segment["start_ts"] == pytest.approx(start)

    def test_their_bytes_are_those_of_their_row_groups(self, micro: Micro) -> None:
        sizes = sizes_of(micro)
        total = sum(size for key, size in sizes.items() if "/weights-" in key or "/latents-" in key)
        stored = row(micro.archive, "SELECT sum(stored_bytes)::BIGINT AS n FROM segments")["n"]
        assert 0.85 * total < stored < total  # what is left are footers


class TestFrames:
    def test_frames_have_the_source_s_numbers_times_and_size(self, micro: Micro) -> None:
        source, pts, time_base = pyav_frames(micro.clip)
        table = micro.archive.sql("SELECT frame, ts, width, height FROM frames ORDER BY frame").arrow()
        assert table["frame"].to_pylist() == list(range(CLIP_FRAMES))
        seconds = [float((p - pts[0]) * time_base) for p in pts]
        assert table["ts"].to_pylist() == pytest.approx(seconds)
        assert set(table["width"].to_pylist()) == {source.shape[2]}
        assert set(table["height"].to_pylist()) == {source.shape[1]}

    def test_images_are_the_decoded_frames(self, micro: Micro, tmp_path: Path) -> None:
        found = row(micro.archive, "SELECT image FROM frames(format := 'png') WHERE frame = 33")
        path = tmp_path / "frame.png"
        path.write_bytes(found["image"])
        expected = stored_frames(micro.archive, micro.video_id)[33].astype(int)
        # Decoded in another batch: sums round differently, and so, rarely, does an 8-bit value.
        assert np.abs(np.asarray(Image.open(path)) - expected).max() <= 1

    def test_a_part_equals_the_same_frames_of_the_whole(self, micro: Micro) -> None:
        _, pts, time_base = pyav_frames(micro.clip)
        inside = [0.5 <= float((p - pts[0]) * time_base) < 1.3 for p in pts]
        part = stored_frames(micro.archive, micro.video_id, start=0.5, end=1.3).astype(int)
        assert np.abs(part - stored_frames(micro.archive, micro.video_id)[inside]).max() <= 1

    def test_batches_do_not_change_frames(self, micro: Micro) -> None:
        small = [b.rgb_thwc for b in micro.archive.frames(micro.video_id, batch_frames=3)]
        assert max(len(part) for part in small) == 3
        whole = stored_frames(micro.archive, micro.video_id).astype(int)
        assert np.abs(np.concatenate(small) - whole).max() <= 1


class TestTasks:
    def test_there_is_one_task_with_its_labels(self, micro: Micro) -> None:
        task = row(micro.archive, "SELECT * FROM tasks")
        assert (task["name"], task["kind"], len(task["labels"])) == ("labels", "classification", 1000)
        assert len(task["version"]) == 64
        assert micro.archive.task("labels")["labels"] == tuple(task["labels"])
        assert task["weights"] == micro.archive.task("labels")["weights"] == "package"

    def test_what_this_release_knows_is_listed_beside_it(self, micro: Micro) -> None:
        from nvpstore.tasks.registry import available

        listed = {t["name"]: t for t in micro.archive.tasks(available=True)}
        assert set(listed) == set(available())
        fields = {"name", "version", "kind", "cuts", "weights"}
        assert {frozenset(task) for task in listed.values()} == {frozenset(fields)}

    def test_cuts_are_those_of_the_backbone(self, micro: Micro) -> None:
        from nvpstore.tasks.registry import builtin_spec, load

        assert row(micro.archive, "SELECT cuts FROM tasks")["cuts"] == len(
            load(builtin_spec("labels")).backbone.cuts
        )


class TestResults:
    def test_every_view_reads_back_as_python_values(self, micro: Micro) -> None:
        for view in VIEWS:
            rows = micro.archive.sql(f"SELECT * FROM {view}").fetchall()
            assert rows
            assert len(rows[0]) == len(micro.archive.sql(f"SELECT * FROM {view}").columns)

    def test_a_missing_package_for_data_frames_is_said(
        self, micro: Micro, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for package, method in (("pandas", "df"), ("polars", "pl")):
            monkeypatch.setitem(__import__("sys").modules, package, None)
            with pytest.raises(UsageError, match=f"pip install {package}"):
                getattr(micro.archive.sql("SELECT 1 AS one"), method)()


class TestRebuild:
    def test_the_store_alone_gives_the_same_rows(self, micro: Micro, tmp_path: Path) -> None:
        queries = [*(f"SELECT * FROM {view} ORDER BY ALL" for view in VIEWS if view != "videos"),
                   "SELECT * EXCLUDE (tags), tags['camera'] FROM videos ORDER BY ALL", LABELS]  # fmt: skip
        copy = micro.copy(tmp_path)
        before = [copy.sql(query).fetchall() for query in queries]
        shutil.rmtree(tmp_path / "cache")
        fresh = open_micro(copy.store.root, tmp_path / "cache")
        fresh.rebuild_catalog()
        assert [fresh.sql(query).fetchall() for query in queries] == before


class TestSameBytesAgain:
    def test_under_another_name_nothing_is_fitted(self, micro: Micro, tmp_path: Path) -> None:
        archive = micro.copy(tmp_path)
        entries = len(list(archive.log.entries()))
        other = shutil.copy(micro.clip, tmp_path / "other.mp4")
        seen: list[object] = []
        again = archive.ingest(other, preset="micro", progress=seen.append)
        assert (again.already_stored, again.video_id, seen) == (True, micro.video_id, [])
        assert again.name == micro.clip.name
        assert len(list(archive.log.entries())) == entries
        assert again.fit_seconds == micro.video.fit_seconds

    def test_changed_tags_and_name_are_one_entry(self, micro: Micro, tmp_path: Path) -> None:
        archive = micro.copy(tmp_path)
        entries = len(list(archive.log.entries()))
        archive.ingest(micro.clip, preset="micro", tags={"camera": "yard", "day": "1"}, name="ride")
        video = row(archive, "SELECT name, tags FROM videos")
        assert video == {"name": "ride", "tags": {"camera": "yard", "day": "1"}}
        assert [e.kind for e in archive.log.entries()][entries:] == ["meta"]
        archive.ingest(micro.clip, preset="micro", tags={"camera": "yard"}, name="ride")
        assert len(list(archive.log.entries())) == entries + 1

    def test_a_refit_replaces(self, micro: Micro, tmp_path: Path) -> None:
        archive = micro.copy(tmp_path)
        attempt = archive.catalog.snapshot().video(micro.video_id).attempt
        again = archive.ingest(micro.clip, preset="micro", tasks=(), refit=True, keep_source="none")
        assert (again.already_stored, again.video_id) == (False, micro.video_id)
        assert archive.catalog.snapshot().video(micro.video_id).attempt != attempt
        assert row(archive, "SELECT count(*)::INTEGER AS n FROM videos")["n"] == 1
        assert row(archive, "SELECT sum(frames)::INTEGER AS n FROM segments")["n"] == CLIP_FRAMES
        # The old routes belong to decoders that are no longer read.
        assert row(archive, "SELECT count(*)::INTEGER AS n FROM routes")["n"] == 0
        frames = stored_frames(archive, micro.video_id)
        source = pyav_frames(micro.clip)[0].astype(np.float64)
        assert again.psnr == pytest.approx(psnr((frames - source) ** 2), abs=0.01)


class TestOriginal:
    def test_a_reference_gives_the_bytes(self, micro: Micro, tmp_path: Path) -> None:
        out = tmp_path / "original.mp4"
        assert not micro.archive.export(micro.video_id, out, original=True).reconstructed
        assert out.read_bytes() == micro.clip.read_bytes()

    def test_an_existing_file_is_not_overwritten(self, micro: Micro, tmp_path: Path) -> None:
        out = tmp_path / "original.mp4"
        out.write_text("mine")
        with pytest.raises(StoreError, match=r"original\.mp4"):
            micro.archive.export(micro.video_id, out, original=True)
        assert out.read_text() == "mine"


def timestamps(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [float((f.pts or 0) * f.time_base) for f in container.decode(video=0) if f.time_base]


def comment(path: Path) -> str:
    with av.open(str(path)) as container:
        tags = {key.lower(): value for key, value in container.metadata.items()}
    return tags["comment"]


class TestExport:
    def test_frames_times_and_size_are_the_source_s(self, micro: Micro, tmp_path: Path) -> None:
        out = tmp_path / "out.mp4"
        assert micro.archive.export(micro.video_id, out).frames == CLIP_FRAMES
        source, pts, time_base = pyav_frames(micro.clip)
        assert timestamps(out) == pytest.approx([float((p - pts[0]) * time_base) for p in pts])
        assert pyav_frames(out)[0].shape == source.shape

    def test_it_shows_what_is_stored(self, micro: Micro, tmp_path: Path) -> None:
        micro.archive.export(micro.video_id, tmp_path / "out.mp4")
        shown = pyav_frames(tmp_path / "out.mp4")[0].astype(np.float64)
        assert psnr((shown - stored_frames(micro.archive, micro.video_id)) ** 2) > 35

    def test_it_says_that_it_is_reconstructed_and_from_what(self, micro: Micro, tmp_path: Path) -> None:
        digest = hashlib.sha256(micro.clip.read_bytes()).hexdigest()
        for name, lossless in (("out.mp4", False), ("out.mkv", True)):
            micro.archive.export(micro.video_id, tmp_path / name, lossless=lossless)
            text = comment(tmp_path / name)
            assert "econstructed" in text
            assert digest in text
            assert f"{micro.video.psnr:.2f} dB" in text

    def test_lossless_is_bit_for_bit(self, micro: Micro, tmp_path: Path) -> None:
        micro.archive.export(micro.video_id, tmp_path / "out.mkv", lossless=True)
        with av.open(str(tmp_path / "out.mkv")) as container:
            shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        np.testing.assert_array_equal(shown, stored_frames(micro.archive, micro.video_id))

    def test_an_excerpt_starts_at_time_0(self, micro: Micro, tmp_path: Path) -> None:
        out = tmp_path / "part.mp4"
        summary = micro.archive.export(micro.video_id, out, start=0.5, end=1.3)
        _, pts, time_base = pyav_frames(micro.clip)
        inside = [p for p in pts if 0.5 <= float((p - pts[0]) * time_base) < 1.3]
        assert summary.frames == len(inside)
        assert timestamps(out) == pytest.approx([float((p - inside[0]) * time_base) for p in inside])

    def test_an_excerpt_of_nothing_is_said(self, micro: Micro, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"no frames from 99 s"):
            micro.archive.export(micro.video_id, tmp_path / "part.mp4", start=99)
        assert os.listdir(tmp_path) == []

    def test_it_tells_how_far_it_is_and_can_be_stopped(self, micro: Micro, tmp_path: Path) -> None:
        told: list[int] = []
        micro.archive.export(micro.video_id, tmp_path / "whole.mp4", progress=told.append)
        assert told[0] == 0
        assert told == sorted(set(told))
        assert told[-1] < CLIP_FRAMES

        def stop(done: int) -> None:
            if done:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            micro.archive.export(micro.video_id, tmp_path / "part.mp4", progress=stop)
        assert os.listdir(tmp_path) == ["whole.mp4"]

    def test_a_folder_gets_a_png_a_frame(self, micro: Micro, tmp_path: Path) -> None:
        folder = tmp_path / "pngs"
        micro.archive.export(micro.video_id, f"{folder}/", start=1.0)
        names: Sequence[Path] = sorted(folder.iterdir())
        wanted = stored_frames(micro.archive, micro.video_id, start=1.0)
        assert len(names) == len(wanted)
        for path, expected in zip(names, wanted, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
        assert names[-1].name == f"frame-{CLIP_FRAMES - 1:08d}.png"


class TestFrame:
    def test_it_is_that_of_the_video(self, micro: Micro) -> None:
        expected = stored_frames(micro.archive, micro.video_id)
        errors = squared_errors(micro)
        _, pts, time_base = pyav_frames(micro.clip)
        for number in (0, 29, 30, CLIP_FRAMES - 1):
            found = micro.archive.frame(micro.video_id, number)
            # Decoded in a batch, a value may be rounded the other way.
            np.testing.assert_allclose(found.rgb_hwc.astype(int), expected[number].astype(int), atol=1)
            assert (found.frame, found.video.video_id) == (number, micro.video_id)
            assert found.ts == pytest.approx(float((pts[number] - pts[0]) * time_base))
            assert found.psnr == pytest.approx(float(10 * np.log10(255**2 / errors[number])), abs=0.01)

    @pytest.mark.parametrize("number", [-1, CLIP_FRAMES, 2**40])
    def test_one_that_is_not_there_is_said(self, micro: Micro, number: int) -> None:
        with pytest.raises(NotFound, match=f"no frame {number}: it has frames 0 to {CLIP_FRAMES - 1}"):
            micro.archive.frame(micro.video_id, number)


class TestSourceGone:
    @pytest.fixture
    def orphan(self, micro: Micro, tmp_path: Path) -> Archive:
        """An archive whose original has been moved away."""
        archive = open_micro(tmp_path / "archive", tmp_path / "cache", create=True)
        moved = Path(shutil.copy(micro.clip, tmp_path / "moved.mp4"))
        archive.ingest(moved, preset="micro", tasks=())
        moved.unlink()
        return archive

    def test_the_source_route_says_where_it_looked(self, orphan: Archive) -> None:
        with pytest.raises(SourceError, match=r"moved\.mp4") as caught:
            orphan.sql("SELECT image FROM frames(route := 'source') WHERE frame = 0").fetchall()
        assert "\n" not in str(caught.value)
