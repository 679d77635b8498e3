"""A served archive answers as the same archive does when it is opened."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest

import nvpstore
from nvpstore import archive as local_archive
from nvpstore.client import values
from nvpstore.errors import (
    AccessDenied,
    JobCancelled,
    NotFound,
    SourceError,
    StoreError,
    UsageError,
)
from nvpstore.exports import ExportSummary
from nvpstore.ingest.training import TrainedVideo
from nvpstore.query.scans import Skipped
from nvpstore.upkeep.erasure import Erasure
from nvpstore.upkeep.tasks import AddedTask
from tests.api.conftest import write_clip
from tests.client.proxy import Fault, Proxy
from tests.serving import Serving

if TYPE_CHECKING:
    from nvpstore.archive import Archive
    from nvpstore.client.remote import RemoteArchive


FITTED, FRAMES = "golden.mp4", 16


@pytest.fixture
def clip(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A clip that no other test has: its bytes follow from the test's name."""
    path = tmp_path / "clip.mp4"
    write_clip(path, frames=8)
    with path.open("ab") as file:
        file.write(_free_box(request.node.name.encode()))
    return path


def _free_box(content: bytes) -> bytes:
    """An MP4 box that players skip."""
    return (8 + len(content)).to_bytes(4, "big") + b"free" + content


class TestValues:
    @pytest.mark.parametrize(
        "kind",
        [local_archive.VideoSummary, ExportSummary, TrainedVideo, Skipped, Erasure, AddedTask],
        ids=lambda kind: kind.__name__,
    )
    def test_have_the_fields_of_a_local_archive_s(self, kind: type) -> None:
        remote = getattr(values, kind.__name__)
        assert [f.name for f in dataclasses.fields(remote)] == [f.name for f in dataclasses.fields(kind)]

    def test_fields_of_newer_servers_are_left_out(self) -> None:
        answer = {"video_id": "v", "number": 3, "objects": 4, "more": 5}
        assert values.of(values.Erasure, answer) == values.Erasure(video_id="v", number=3, objects=4)


class TestReading:
    def test_videos_are_the_same(self, remote: RemoteArchive, local: Archive) -> None:
        assert [v["video_id"] for v in remote.videos()] == [v["video_id"] for v in local.videos()]
        assert remote.videos() == local.videos()

    def test_pages_are_put_together(
        self, remote: RemoteArchive, monkeypatch: pytest.MonkeyPatch, clip: Path
    ) -> None:
        remote.add(clip)
        whole = remote.videos()
        monkeypatch.setattr("nvpstore.client.remote._PAGE", 1)
        assert len(whole) > 1
        assert remote.videos() == whole

    def test_a_video_is_shown_with_segments_and_routes(self, remote: RemoteArchive, local: Archive) -> None:
        shown, expected = remote.show(FITTED), local.show(FITTED)
        assert {name: shown[name] for name in expected} == expected
        assert shown["routes"]

    def test_names_may_hold_anything(self, remote: RemoteArchive, clip: Path) -> None:
        name = "50 % of the gate?#&=é😀.mp4"
        video = remote.add(clip, name=name)
        assert remote.show(name)["video_id"] == video.video_id

    def test_an_unknown_video_is_not_found(self, remote: RemoteArchive) -> None:
        with pytest.raises(NotFound, match="nothing"):
            remote.show("nothing")

    def test_tasks_are_the_same(self, remote: RemoteArchive, local: Archive) -> None:
        assert remote.tasks() == local.tasks()
        assert remote.tasks(available=True) == local.tasks(available=True)
        labels = remote.task("labels")
        assert labels["labels"] == list(local.task("labels")["labels"])
        assert remote.task(f"labels@{labels['version'][:8]}")["version"] == labels["version"]

    def test_videos_are_chosen_by_a_predicate(self, remote: RemoteArchive, local: Archive) -> None:
        where = "tags['camera'] = 'gate' -- at the gate"
        assert remote.videos_where(where) == local.videos_where(where) != []


class TestFrames:
    def test_are_the_local_ones_bit_by_bit(self, remote: RemoteArchive, local: Archive) -> None:
        far, near = list(remote.frames(FITTED)), list(local.frames(FITTED))
        assert np.array_equal(
            np.concatenate([b.rgb_thwc for b in far]), np.concatenate([b.rgb_thwc for b in near])
        )
        assert np.array_equal(np.concatenate([b.pts for b in far]), np.concatenate([b.pts for b in near]))
        assert far[0].first_frame == near[0].first_frame == 0

    def test_of_a_part(self, remote: RemoteArchive, local: Archive) -> None:
        far = list(remote.frames(FITTED, start=0.2, end=0.6, batch_frames=4))
        near = list(local.frames(FITTED, start=0.2, end=0.6))
        assert far[0].first_frame == near[0].first_frame
        assert sum(map(len, far)) == sum(map(len, near))
        assert max(map(len, far)) <= 4

    def test_end_where_the_reader_does(self, remote: RemoteArchive) -> None:
        batches = remote.frames(FITTED, batch_frames=2)
        assert len(next(batches)) == 2
        batches.close()  # type: ignore[attr-defined]
        assert remote.tasks()

    def test_need_at_least_one_a_batch(self, remote: RemoteArchive) -> None:
        with pytest.raises(UsageError, match="at least 1"):
            next(remote.frames(FITTED, batch_frames=0))


class TestExport:
    def test_a_clip_is_marked_as_reconstructed(self, remote: RemoteArchive, tmp_path: Path) -> None:
        out = tmp_path / "out.mp4"
        summary = remote.export(FITTED, out)
        assert summary == values.ExportSummary(path=str(out), frames=FRAMES, reconstructed=True)
        with av.open(str(out)) as container:
            assert "Reconstructed" in container.metadata["comment"]
            assert sum(1 for _ in container.decode(video=0)) == FRAMES

    def test_a_part_of_it(self, remote: RemoteArchive, tmp_path: Path) -> None:
        summary = remote.export(FITTED, tmp_path / "part.mp4", start=0.2, end=0.6)
        assert 0 < summary.frames < FRAMES

    def test_pictures_are_the_local_ones(self, remote: RemoteArchive, local: Archive, tmp_path: Path) -> None:
        far, near = tmp_path / "far", tmp_path / "near"
        remote.export(FITTED, f"{far}/", end=0.2)
        local.export(FITTED, f"{near}/", end=0.2)
        names = sorted(path.name for path in near.iterdir())
        assert sorted(path.name for path in far.iterdir()) == names
        assert all((far / name).read_bytes() == (near / name).read_bytes() for name in names)

    def test_the_original_s_own_bytes(self, remote: RemoteArchive, clip: Path, tmp_path: Path) -> None:
        video = remote.add(clip)
        remote.export(video.video_id, tmp_path / "back.mp4", original=True)
        assert (tmp_path / "back.mp4").read_bytes() == clip.read_bytes()

    def test_a_download_that_breaks_off_begins_anew(self, served: Serving, tmp_path: Path) -> None:
        out = tmp_path / "out.mp4"
        with Proxy(served.url, Fault(cut_after=1000), only="clip.mp4") as proxy:
            assert nvpstore.connect(proxy.url).export(FITTED, out).frames == FRAMES
        assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]

    def test_what_is_refused_leaves_nothing(self, remote: RemoteArchive, tmp_path: Path) -> None:
        with pytest.raises(UsageError):
            remote.export(FITTED, tmp_path / "out.mp4", start=500.0)
        assert list(tmp_path.iterdir()) == []

    def test_what_is_there_is_not_overwritten(self, remote: RemoteArchive, tmp_path: Path) -> None:
        (tmp_path / "out.mp4").write_bytes(b"mine")
        with pytest.raises(StoreError, match="exists"):
            remote.export(FITTED, tmp_path / "out.mp4")
        assert (tmp_path / "out.mp4").read_bytes() == b"mine"

    def test_other_kinds_of_files_are_refused(self, remote: RemoteArchive, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="lossless"):
            remote.export(FITTED, tmp_path / "out.mkv", lossless=True)
        with pytest.raises(UsageError, match=r"\.mp4"):
            remote.export(FITTED, tmp_path / "out.avi")


class TestWriting:
    def test_an_added_file_is_sent_and_kept(self, remote: RemoteArchive, local: Archive, clip: Path) -> None:
        heard: list[values.Progress] = []
        when = datetime(2026, 5, 1, 12, tzinfo=UTC)
        video = remote.add(
            clip, name="hall", tags={"camera": "hall"}, recorded_at=when, progress=heard.append
        )
        assert (video.state, video.name, video.psnr, video.already_stored) == ("added", "hall", None, False)
        assert heard[0].phase == "upload"
        sent = [p for p in heard if p.phase == "upload"][-1]
        assert sent.done == sent.total == clip.stat().st_size
        shown = local.show(video.video_id)
        assert (shown["tags"], shown["recorded_at"]) == ({"camera": "hall"}, when)

    def test_an_ingested_file_is_fitted(self, remote: RemoteArchive, local: Archive, clip: Path) -> None:
        heard: list[values.Progress] = []
        video = remote.ingest(clip, preset="micro", progress=heard.append)
        assert video.psnr == local.show(video.video_id)["psnr"]
        assert {"upload", "fit"} <= {p.phase for p in heard}
        again = remote.ingest(clip, preset="micro")
        assert (again.already_stored, again.video_id) == (True, video.video_id)

    def test_an_added_video_is_fitted_later(self, remote: RemoteArchive, clip: Path) -> None:
        added = remote.add(clip)
        fitted = remote.fit(added.video_id, preset="micro")
        assert (fitted.video_id, fitted.state == "added") == (added.video_id, False)

    def test_what_is_no_video_is_a_source_error(self, remote: RemoteArchive, tmp_path: Path) -> None:
        path = tmp_path / "notes.mp4"
        path.write_bytes(b"no video at all" * 100)
        with pytest.raises(SourceError):
            remote.add(path)

    def test_a_file_that_is_not_there_is_a_source_error(self, remote: RemoteArchive, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="No such file"):
            remote.add(tmp_path / "nothing.mp4")

    def test_an_answer_that_is_lost_makes_no_second_job(self, served: Serving, clip: Path) -> None:
        before = len(nvpstore.connect(served.url).jobs())
        with Proxy(served.url, Fault(lose=True), only="/videos") as proxy:
            archive = nvpstore.connect(proxy.url)
            archive.add(clip)
            sent = [seen for seen in proxy.seen if seen.method == "POST"]
            assert len(sent) == 2
            assert len({seen.headers["Idempotency-Key"] for seen in sent}) == 1
            assert len(archive.jobs()) == before + 1

    def test_events_that_break_off_are_taken_up(self, served: Serving, clip: Path) -> None:
        with Proxy(served.url, Fault(cut_after=80), only="/events") as proxy:
            assert nvpstore.connect(proxy.url).ingest(clip, preset="micro").psnr
            asked = [seen for seen in proxy.seen if seen.path.endswith("/events")]
        assert len(asked) >= 2
        assert "Last-Event-ID" not in asked[0].headers

    def test_what_people_say_is_changed(self, remote: RemoteArchive, clip: Path) -> None:
        ref = remote.add(clip, tags={"a": "1", "b": "2"}).video_id
        meta = remote.tag(ref, tags={"c": "3"}, remove=["a"], name="new", hold=True)
        assert (dict(meta.tags), meta.name, meta.hold) == ({"b": "2", "c": "3"}, "new", True)
        assert remote.tag(ref).tags == meta.tags

    def test_a_held_video_is_not_erased(self, remote: RemoteArchive, local: Archive, clip: Path) -> None:
        ref = remote.add(clip).video_id
        remote.tag(ref, hold=True)
        with pytest.raises(UsageError, match="hold"):
            remote.erase(ref)
        remote.tag(ref, hold=False)
        assert remote.erase(ref).objects > 0
        with pytest.raises(NotFound):
            local.show(ref)

    def test_tasks_are_registered_and_trained(self, remote: RemoteArchive) -> None:
        added = remote.add_task("again", like="labels")
        assert (added.kind, added.already_registered) == ("classification", False)
        trained = remote.train_task("again", videos="name = 'golden.mp4'", share=0.2, measured=8)
        assert [(row.name, row.state) for row in trained] == [(FITTED, "trained")]

    def test_devices_are_the_server_s_business(self, remote: RemoteArchive, clip: Path) -> None:
        with pytest.raises(UsageError, match="cuda"):
            remote.ingest(clip, device="cuda")
        with pytest.raises(UsageError, match="dry run"):
            remote.train_task("labels", dry_run=True)


class TestJobs:
    def test_are_listed_newest_first(self, remote: RemoteArchive, clip: Path) -> None:
        remote.add(clip)
        jobs = remote.jobs(kind="add")
        assert jobs[0].state == "done"
        assert [job.id for job in jobs] == sorted((job.id for job in jobs), reverse=True)
        assert remote.job(jobs[0].id) == jobs[0]
        assert len(remote.jobs(limit=1)) == 1

    def test_a_cancelled_one_is_said_to_be(self, served_root: Path, tmp_path: Path, clip: Path) -> None:
        shutil.copytree(served_root, tmp_path / "archive")
        with Serving(tmp_path / "archive", tmp_path) as idle, nvpstore.connect(idle.url) as archive:
            # No worker takes it, so that it waits until somebody cancels it.
            stopper = threading.Thread(target=_cancel_first, args=(archive,))
            stopper.start()
            with pytest.raises(JobCancelled):
                archive.add(clip)
            stopper.join()


def _cancel_first(archive: RemoteArchive) -> None:
    """Cancels the first job that waits."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for job in archive.jobs(state="queued"):
            archive.cancel(job.id)
            return
        time.sleep(0.05)


class TestKeys:
    def test_decide_what_may_be_done(self, served_root: Path, tmp_path: Path, clip: Path) -> None:
        shutil.copytree(served_root, tmp_path / "archive")
        with Serving(tmp_path / "archive", tmp_path) as server:
            reader = server.nvp("keys", "add", "reader", "--scope", "read").strip()
            with pytest.raises(AccessDenied, match="key"):
                nvpstore.connect(server.url).videos()
            archive = nvpstore.connect(server.url, key=reader)
            assert archive.videos()
            with pytest.raises(AccessDenied, match="query"):
                archive.sql("SELECT 1").arrow()
            with pytest.raises(AccessDenied, match="ingest"):
                archive.add(clip)
            with pytest.raises(AccessDenied) as caught:
                nvpstore.connect(server.url, key=reader[:-1] + "x").videos()
            assert reader[:-1] not in str(caught.value)
            assert reader not in "".join(server.log)
