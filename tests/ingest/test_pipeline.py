"""The write path: kinds of clips, sound, kept sources, other presets, and a crash before the commit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from torch import Tensor

from nvpstore.archive import Archive
from nvpstore.codec.hnerv import Decoder
from nvpstore.errors import NvpError, SourceError, UsageError
from nvpstore.ingest.pipeline import IngestProgress
from nvpstore.storage.log import Log, LogDraft
from tests.conftest import open_micro
from tests.video.conftest import Clip, picture, write_clip

pytestmark = pytest.mark.slow  # fits

FIRST = "SELECT frame, label, route, fidelity FROM labels{} WHERE rank = 1 ORDER BY frame"


def clip(folder: Path, **fields: Any) -> Path:
    return write_clip(folder, Clip(**{"frames": 6, **fields}))


def shown(path: Path) -> tuple[list[float], tuple[int, int]]:
    """(seconds of each frame, (width, height) as shown) by PyAV alone."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    times = [float((f.pts or 0) * f.time_base) for f in frames if f.time_base]
    turned = frames[0].rotation % 180 != 0
    size = (frames[0].height, frames[0].width) if turned else (frames[0].width, frames[0].height)
    return times, size


KINDS: dict[str, dict[str, Any]] = {
    "odd-sized": {"name": "odd.mkv", "width": 53, "height": 37, "pixel_format": "yuv444p"},
    "portrait": {"width": 96, "height": 64, "rotate_counterclockwise": 90},
    "one-frame": {"frames": 1, "options": {}},
    "10-bit": {"pixel_format": "yuv420p10le"},
    "variable-rate": {"pts": [0, 512, 600, 3000, 3001, 9000]},
    "late-start": {"pts": [6400, 6912, 7424, 7936, 8448, 8960]},
    "tiny": {"width": 16, "height": 16},
}


class TestKindsOfClips:
    @pytest.mark.parametrize("kind", KINDS)
    def test_frames_times_and_size_survive(self, archive: Archive, tmp_path: Path, kind: str) -> None:
        path = clip(tmp_path, **KINDS[kind])
        times, size = shown(path)
        video = archive.ingest(path, preset="micro", tasks=())
        assert video.frames == len(times)
        out = tmp_path / "out.mp4"
        assert archive.export(video.video_id, out).frames == len(times)
        exported, exported_size = shown(out)
        assert exported == pytest.approx([t - times[0] for t in times])
        assert exported_size == size
        rows = archive.sql("SELECT ts, width, height FROM frames ORDER BY frame").fetchall()
        assert [row[0] for row in rows] == pytest.approx(exported)
        assert {row[1:] for row in rows} == {size}

    def test_one_frame_is_answered_although_nothing_could_be_measured(
        self, archive: Archive, tmp_path: Path
    ) -> None:
        archive.ingest(clip(tmp_path, frames=1, options={}), preset="micro")
        (default,) = archive.sql(FIRST.format("")).fetchall()
        assert default[0] == 0
        assert default[3] is None or default[2] == "source"
        for route in ("adapter", "pixel", "source"):
            (row,) = archive.sql(FIRST.format(f"(route := '{route}')")).fetchall()
            assert (row[0], row[2]) == (0, route)

    @pytest.mark.parametrize("cut_at", [7, 8])
    def test_a_scene_of_one_frame_is_stored_and_answered(
        self, archive: Archive, tmp_path: Path, cut_at: int
    ) -> None:
        # Task terms see even frames only: such a scene has none to learn from, or none to be judged on.
        video = archive.ingest(cut_clip(tmp_path, cut_at), preset="micro")
        assert archive.sql("SELECT start_frame, frames FROM segments ORDER BY segment").fetchall() == [
            (0, cut_at),
            (cut_at, 1),
        ]
        rows = archive.sql(FIRST.format("")).fetchall()
        assert [row[0] for row in rows] == list(range(video.frames))


def test_a_camera_at_rest_is_stored_small_and_decoded_once(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = archive.ingest(clip(tmp_path, frames=24, name="moving.mp4"), preset="micro", tasks=())
    still = archive.ingest(still_clip(tmp_path, frames=24), preset="micro", tasks=("labels",))
    assert still.stored_bytes < 0.7 * moving.stored_bytes  # although it has adapters

    decoded: list[int] = []
    taps = Decoder.taps

    def counted(self: Decoder, latents: Tensor, stages: Sequence[str]) -> Any:
        decoded.append(len(latents))
        return taps(self, latents, stages)

    monkeypatch.setattr(Decoder, "taps", counted)
    asked = (
        "SELECT frame, label, score FROM labels(route := 'adapter') "
        "WHERE rank = 1 AND video_id = ? ORDER BY 1"
    )
    rows = archive.sql(asked, params=[still.video_id]).fetchall()
    assert [row[0] for row in rows] == list(range(24))
    assert len({row[1:] for row in rows}) == 1
    assert set(decoded) == {1}
    assert sum(decoded) <= 24 // 4  # one of each batch


def still_clip(folder: Path, *, frames: int) -> Path:
    """One picture for all of it."""
    path = folder / "still.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(0, 96, 64), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def cut_clip(folder: Path, cut_at: int) -> Path:
    """Dark frames, then one bright one."""
    path = folder / "cut.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(cut_at + 1):
            picture = np.full((64, 96, 3), 230 if index == cut_at else 20, np.uint8)
            picture[10:30, 10 + index : 40 + index] = 120
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


class TestPresets:
    def test_nerv_is_stored_and_answers(self, archive: Archive, real_clip: Path, tmp_path: Path) -> None:
        video = archive.ingest(real_clip, preset="nerv-micro")
        assert archive.sql("SELECT DISTINCT codec FROM segments").fetchall() == [("nerv",)]
        assert video.psnr > 10
        rows = archive.sql(FIRST.format("(route := 'adapter')")).fetchall()
        assert [row[0] for row in rows] == list(range(video.frames))
        assert archive.export(video.video_id, tmp_path / "out.mp4").frames == video.frames

    def test_a_video_without_tasks_has_no_routes(self, archive: Archive, tmp_path: Path) -> None:
        archive.ingest(clip(tmp_path), preset="micro", tasks=())
        assert archive.sql("SELECT count(*) FROM routes").fetchall() == [(0,)]

    def test_a_task_that_is_missing_says_to_refit(self, archive: Archive, tmp_path: Path) -> None:
        path = clip(tmp_path)
        archive.ingest(path, preset="micro", tasks=())
        with pytest.raises(UsageError, match="--refit"):
            archive.ingest(path, preset="micro")

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({"preset": "vast"}, "micro"),
            ({"preset": "micro", "tasks": ("lables",)}, "labels"),
            ({"preset": "micro", "device": "tpu"}, "cuda"),
        ],
    )
    def test_unknown_names_are_said_with_the_known(
        self, archive: Archive, tmp_path: Path, arguments: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(NvpError, match=says):
            archive.ingest(clip(tmp_path), **arguments)
        assert archive.videos() == []


def packets(path: Path) -> list[tuple[float, bytes]]:
    """(seconds, bytes) of every packet of the first audio stream."""
    with av.open(str(path)) as container:
        found = [p for p in container.demux(audio=0) if p.size]
        return [(float((p.pts or 0) * p.time_base), bytes(p)) for p in found]


class TestSound:
    def test_it_is_kept_when_the_source_is_gone(self, archive: Archive, tmp_path: Path) -> None:
        path = clip(tmp_path, frames=12, audio="aac")
        video = archive.ingest(path, preset="micro", tasks=(), keep_source="none")
        original = packets(path)
        path.unlink()
        archive.export(video.video_id, tmp_path / "out.mp4")
        exported = packets(tmp_path / "out.mp4")
        assert [data for _, data in exported] == [data for _, data in original]
        assert [t for t, _ in exported] == pytest.approx([t for t, _ in original], abs=0.001)

    def test_it_is_the_source_s_own_while_that_is_there(self, archive: Archive, tmp_path: Path) -> None:
        path = clip(tmp_path, frames=12, audio="aac")
        video = archive.ingest(path, preset="micro", tasks=())
        archive.export(video.video_id, tmp_path / "out.mp4")
        assert packets(tmp_path / "out.mp4") == packets(path)

    def test_bpp_leaves_it_out_and_stored_bytes_count_it(self, archive: Archive, tmp_path: Path) -> None:
        video = archive.ingest(clip(tmp_path, frames=12, audio="aac"), preset="micro", tasks=())
        found = archive.store.list(f"videos/{video.video_id}/")
        sizes = {key.rpartition("/")[2]: archive.store.size(key) for key in found}
        assert video.stored_bytes == sum(sizes.values())
        assert sizes["audio.mka"] > 0
        pixels = 96 * 64 * 12
        assert video.bpp == pytest.approx(8 * (video.stored_bytes - sizes["audio.mka"]) / pixels)

    def test_sound_of_a_kind_that_nobody_knows_is_left_out(self, archive: Archive, tmp_path: Path) -> None:
        path = clip(tmp_path, name="sound.mov", frames=12, audio="pcm_s16le")
        path.write_bytes(path.read_bytes().replace(b"sowt", b"apac"))
        video = archive.ingest(path, preset="micro", tasks=())
        out = tmp_path / "out.mp4"
        assert archive.export(video.video_id, out).frames == 12
        with av.open(str(out)) as container:
            assert not container.streams.audio

    def test_sound_that_matroska_does_not_hold_is_encoded(self, archive: Archive, tmp_path: Path) -> None:
        path = clip(tmp_path, name="law.mov", frames=12, audio="pcm_mulaw")
        video = archive.ingest(path, preset="micro", tasks=(), keep_source="none")
        archive.export(video.video_id, tmp_path / "out.mp4")
        assert packets(tmp_path / "out.mp4")[-1][0] > 0.3

    def test_a_silent_video_stays_silent(self, archive: Archive, tmp_path: Path) -> None:
        video = archive.ingest(clip(tmp_path), preset="micro", tasks=())
        archive.export(video.video_id, tmp_path / "out.mp4")
        with av.open(str(tmp_path / "out.mp4")) as container:
            assert not container.streams.audio


class TestKeptSources:
    def stored(self, archive: Archive, tmp_path: Path, keep: Any) -> tuple[str, bytes]:
        """A video whose original has been moved away."""
        path = clip(tmp_path)
        content = path.read_bytes()
        video = archive.ingest(path, preset="micro", keep_source=keep)
        path.rename(tmp_path / "moved-away.mp4")
        return video.video_id, content

    def test_a_copy_answers_and_comes_back_bit_for_bit(self, archive: Archive, tmp_path: Path) -> None:
        video_id, content = self.stored(archive, tmp_path, "copy")
        archive.export(video_id, tmp_path / "o.mp4", original=True)
        assert (tmp_path / "o.mp4").read_bytes() == content
        (kept,) = archive.store.list("sources/")
        assert archive.store.get(kept) == content
        rows = archive.sql(FIRST.format("(route := 'source')")).fetchall()
        assert [(row[0], row[2]) for row in rows] == [(frame, "source") for frame in range(6)]

    def test_a_moved_source_is_one_clear_line(self, archive: Archive, tmp_path: Path) -> None:
        video_id, _ = self.stored(archive, tmp_path, "reference")
        for ask in (
            lambda: archive.sql(FIRST.format("(route := 'source')")),
            lambda: archive.export(video_id, tmp_path / "o.mp4", original=True),
        ):
            with pytest.raises(SourceError, match=r"clip\.mp4") as caught:
                ask()
            assert "\n" not in str(caught.value)
        # Everything that does not need it goes on.
        assert len(archive.sql(FIRST.format("(route := 'adapter')")).fetchall()) == 6

    def test_another_file_in_its_place_is_noticed(self, archive: Archive, tmp_path: Path) -> None:
        video_id, content = self.stored(archive, tmp_path, "reference")
        (tmp_path / "clip.mp4").write_bytes(content + b"more")
        with pytest.raises(SourceError, match="not the file that was ingested"):
            archive.export(video_id, tmp_path / "o.mp4", original=True)
        with pytest.raises(SourceError, match="not the file that was ingested"):
            archive.sql(FIRST.format("(route := 'source')"))

    def test_none_keeps_no_way_back(self, archive: Archive, tmp_path: Path) -> None:
        video_id, _ = self.stored(archive, tmp_path, "none")
        with pytest.raises(UsageError, match="not kept"):
            archive.export(video_id, tmp_path / "o.mp4", original=True)
        with pytest.raises(NvpError, match=r"source"):
            archive.sql(FIRST.format("(route := 'source')"))
        assert archive.store.list("sources/") == []


class Crash(BaseException):
    """Stands for the end of the process."""


class TestCrashes:
    def test_between_the_puts_and_the_entry_nothing_is_visible(
        self, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = clip(tmp_path)
        append: Callable[..., object] = Log.append

        def crash(log: Log, draft: LogDraft, **options: Any) -> object:
            if draft.kind == "video":
                raise Crash
            return append(log, draft, **options)

        with monkeypatch.context() as patched:
            patched.setattr(Log, "append", crash)
            with pytest.raises(Crash):
                archive.ingest(path, preset="micro", tasks=())
        assert [key for key in archive.store.list("videos/") if key.endswith("manifest.parquet")]
        for view in ("videos", "segments", "routes"):
            assert archive.sql(f"SELECT count(*) FROM {view}").fetchall() == [(0,)]
        assert archive.verify(deep=True).damages == ()
        seen: list[IngestProgress] = []
        video = archive.ingest(path, preset="micro", tasks=(), progress=seen.append)
        assert (video.already_stored, video.frames) == (False, 6)
        assert not [p for p in seen if p.phase == "fit"]  # the fit was there already
        assert archive.verify(deep=True).damages == ()

    def test_a_resumed_fit_gives_what_an_undisturbed_one_gives(self, tmp_path: Path) -> None:
        path = cut_clip(tmp_path, 7)  # two segments
        weights = []
        for name, interrupt in (("calm", False), ("disturbed", True)):
            archive = open_micro(tmp_path / name, tmp_path / f"{name}-cache", create=True)
            if interrupt:
                with pytest.raises(Crash):
                    archive.ingest(path, preset="micro", progress=crash_in_the_second_segment)
            archive.ingest(path, preset="micro")
            (file,) = (tmp_path / name).rglob("weights-*.parquet")
            weights.append(hashlib.sha256(file.read_bytes()).hexdigest())
        assert weights[0] == weights[1]

    def test_a_file_that_changes_while_it_is_read_is_not_stored(
        self, archive: Archive, tmp_path: Path
    ) -> None:
        path = clip(tmp_path)

        def replace_it(progress: IngestProgress) -> None:
            if progress.phase == "fit":
                path.write_bytes(path.read_bytes() + b"more")

        with pytest.raises(NvpError, match="changed"):
            archive.ingest(path, preset="micro", tasks=(), keep_source="copy", progress=replace_it)
        assert archive.videos() == []


def crash_in_the_second_segment(progress: IngestProgress) -> None:
    if progress.phase == "fit" and progress.done > progress.total * 0.88:
        raise Crash


def test_progress_runs_from_scan_to_the_end(archive: Archive, tmp_path: Path) -> None:
    seen: list[IngestProgress] = []
    archive.ingest(clip(tmp_path), preset="micro", tasks=(), progress=seen.append)
    assert seen[0].phase == "scan"
    fits = [p for p in seen if p.phase == "fit"]
    assert [p.done for p in fits] == sorted(p.done for p in fits)
    assert fits[-1].done <= fits[-1].total
    assert fits[-1].eta_seconds == pytest.approx(0, abs=0.1)


def test_ingest_leaves_no_checkpoints_behind(archive: Archive, tmp_path: Path) -> None:
    archive.ingest(clip(tmp_path), preset="micro", tasks=())
    assert not list((tmp_path / "cache").rglob("*.pt"))
