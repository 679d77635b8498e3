"""Untrusted files are opened in a child first: what they claim, what they take, and that nothing stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from nvpstore.api.jobs import probing
from nvpstore.api.jobs.probing import MOST_STREAMS, Probed, ProbeLimits, check, most_frames, probe_apart
from nvpstore.api.service.settings import ServiceSettings
from nvpstore.errors import SourceError

PLAIN = Probed(container="mp4", codec="h264", streams=1, width=64, height=48, seconds=1.0, declared_frames=25)


def gif(width: int, height: int) -> bytes:
    """A GIF of one picture that claims this size and has the data of almost none of it."""
    size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    screen = b"GIF89a" + size + b"\x80\x00\x00" + b"\x00\x00\x00\xff\xff\xff"
    return screen + b"\x2c\x00\x00\x00\x00" + size + b"\x00" + b"\x02\x02\x44\x01\x00" + b"\x3b"


def far_apart(path: Path) -> None:
    """Two pictures, twelve days apart."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj420p"
        stream.codec_context.time_base = Fraction(1)
        for pts in (0, 12 * 24 * 3600):
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def many_streams(path: Path, count: int) -> None:
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mpeg4", rate=25) for _ in range(count)]
        for stream in streams:
            stream.width = stream.height = 16
        for stream in streams:
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode())


def as_child(path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs in the place of the child that probes."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


class TestProbing:
    def test_a_video_is_described(self, upload: Callable[[str], Path], settings: ServiceSettings) -> None:
        probed = probe_apart(upload("clip.mp4"), settings)
        assert (probed.codec, probed.streams, probed.width, probed.height) == ("h264", 1, 96, 64)
        assert (probed.declared_frames, probed.decoded) == (12, True)
        assert probed.seconds == pytest.approx(1.2)

    @pytest.mark.parametrize("name", ["-i.mp4", "concat:x.mp4", "a b'c\".mp4", "ä%d.mp4", "$(id).mp4"])
    def test_a_name_is_only_a_name(
        self, upload: Callable[[str], Path], settings: ServiceSettings, name: str
    ) -> None:
        assert probe_apart(upload(name), settings).decoded

    def test_what_is_no_video_says_so(self, tmp_path: Path, settings: ServiceSettings) -> None:
        for name, data, said in (
            ("text.mp4", b"no video at all" * 100, "not a video"),
            ("empty.mp4", b"", "is empty"),
            ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not a video|playlist"),
        ):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(SourceError, match=said):
                probe_apart(tmp_path / name, settings)
        with pytest.raises(SourceError, match="No such file"):
            probe_apart(tmp_path / "none.mp4", settings)
        os.mkfifo(tmp_path / "pipe.mp4")
        with pytest.raises(SourceError, match="not a regular file"):
            probe_apart(tmp_path / "pipe.mp4", settings)

    def test_a_truncated_file_says_so(self, upload: Callable[[str], Path], settings: ServiceSettings) -> None:
        path = upload("clip.mp4")
        whole = path.read_bytes()
        for left in (len(whole) - 200, len(whole) // 2, 40):
            path.write_bytes(whole[:left])
            with pytest.raises(SourceError, match="needed"):
                probe_apart(path, settings)


class TestBombs:
    def test_huge_pictures_are_refused_before_they_are_decoded(
        self, tmp_path: Path, settings: ServiceSettings
    ) -> None:
        path = tmp_path / "bomb.gif"
        path.write_bytes(gif(4000, 3000))
        with pytest.raises(SourceError, match="4000x3000 pixels; at most 9437184 pixels"):
            probe_apart(path, settings)

    def test_pictures_that_no_decoder_takes_are_refused(
        self, tmp_path: Path, settings: ServiceSettings
    ) -> None:
        path = tmp_path / "bomb.gif"
        path.write_bytes(gif(65535, 65535))
        with pytest.raises(SourceError, match="one that no decoder takes"):
            probe_apart(path, settings)

    def test_huge_raw_pictures_are_refused(self, tmp_path: Path, settings: ServiceSettings) -> None:
        path = tmp_path / "bomb.y4m"
        path.write_bytes(b"YUV4MPEG2 W60000 H60000 F25:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(4096))
        with pytest.raises(SourceError, match=r"60000x60000 pixels|could not be opened|not a video"):
            probe_apart(path, settings)

    def test_what_lasts_for_days_is_refused(self, tmp_path: Path, settings: ServiceSettings) -> None:
        path = tmp_path / "long.mkv"
        far_apart(path)
        with pytest.raises(SourceError, match=r"lasts \d+ s; at most 43200 s"):
            probe_apart(path, settings)

    def test_more_streams_than_anybody_needs_are_refused(
        self, tmp_path: Path, settings: ServiceSettings
    ) -> None:
        path = tmp_path / "streams.mp4"
        many_streams(path, MOST_STREAMS + 1)
        with pytest.raises(SourceError, match="has 65 streams; at most 64"):
            probe_apart(path, settings)

    @pytest.mark.parametrize("box", [b"stsz", b"stts", b"stco", b"stsc"])
    def test_tables_that_claim_billions_are_not_believed(
        self, upload: Callable[[str], Path], settings: ServiceSettings, box: bytes
    ) -> None:
        path = upload("clip.mp4")
        data = bytearray(path.read_bytes())
        at = data.index(box) + 4
        if box == b"stsz":
            data[at + 4 : at + 12] = (1).to_bytes(4, "big") + (0x7FFFFFFF).to_bytes(4, "big")
        else:
            data[at + 4 : at + 8] = (0x7FFFFFFF).to_bytes(4, "big")
        path.write_bytes(data)
        # FFmpeg mends some of them by the size of their box.
        try:
            frames = probe_apart(path, settings).declared_frames
        except SourceError:
            frames = 0
        assert frames <= 12

    @pytest.mark.parametrize(
        ("claim", "said"),
        [
            ({"streams": 65}, "65 streams"),
            ({"width": 4096, "height": 2305}, "4096x2305 pixels"),
            ({"seconds": 43201.0}, "lasts 43201 s"),
            ({"declared_frames": 43200 * 240 + 1}, "10368001 frames"),
        ],
    )
    def test_each_claim_is_held_against_the_settings(
        self, settings: ServiceSettings, claim: dict[str, Any], said: str
    ) -> None:
        check(PLAIN, settings, "clip")
        with pytest.raises(SourceError, match=said):
            check(replace(PLAIN, **claim), settings, "clip")

    def test_frames_are_bounded_by_the_longest_video(self, tmp_path: Path) -> None:
        assert most_frames(ServiceSettings(state_dir=tmp_path, upload_seconds=2)) == 480


class TestLimits:
    def test_memory_is_bounded(self, upload: Callable[[str], Path], settings: ServiceSettings) -> None:
        with pytest.raises(SourceError, match="memory"):
            probe_apart(upload("clip.mp4"), settings, limits=ProbeLimits(memory_bytes=1))

    def test_computing_is_bounded(
        self, tmp_path: Path, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        endless = "from nvpstore.api.jobs import probing as p; p._limit(p.ProbeLimits(cpu_seconds=1))"
        python = sys.executable
        as_child(tmp_path / "child", f"exec {python} -c '{endless}\nwhile True: pass'", monkeypatch)
        with pytest.raises(SourceError, match="within 1 s of computing"):
            probe_apart(tmp_path / "clip.mp4", settings, limits=ProbeLimits(cpu_seconds=1))

    def test_time_is_bounded(self, upload: Callable[[str], Path], settings: ServiceSettings) -> None:
        with pytest.raises(SourceError, match=r"within 0\.001 s"):
            probe_apart(upload("clip.mp4"), settings, limits=ProbeLimits(wall_seconds=0.001))

    def test_a_child_that_hangs_is_ended_with_all_that_it_started(
        self, tmp_path: Path, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(probing, "_START_SECONDS", 0.5)
        as_child(tmp_path / "child", f"sleep 600 & echo $! > {tmp_path}/pid; sleep 600", monkeypatch)
        with pytest.raises(SourceError, match=r"within 0\.1 s"):
            probe_apart(tmp_path / "clip.mp4", settings, limits=ProbeLimits(wall_seconds=0.1))
        grandchild = Path("/proc") / (tmp_path / "pid").read_text().strip()
        while grandchild.exists() and "zombie" not in (grandchild / "status").read_text():
            time.sleep(0.01)

    def test_a_child_that_crashes_says_how(
        self, tmp_path: Path, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        as_child(tmp_path / "child", "kill -SEGV $$", monkeypatch)
        with pytest.raises(SourceError, match="made to crash its reader"):
            probe_apart(tmp_path / "clip.mp4", settings)

    def test_what_it_claimed_first_explains_its_end(
        self, tmp_path: Path, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        claim = (
            '{"container": "x", "codec": "y", "streams": 1, "width": 99999, "height": 99999, "seconds": 1.0,'
            ' "declared_frames": 1, "decoded": false}'
        )
        as_child(tmp_path / "child", f"echo '{claim}'; kill -SEGV $$", monkeypatch)
        with pytest.raises(SourceError, match="99999x99999 pixels"):
            probe_apart(tmp_path / "clip.mp4", settings)

    def test_it_knows_no_secrets_of_its_parents(
        self, upload: Callable[[str], Path], settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        given: list[dict[str, str]] = []
        popen = subprocess.Popen

        def noted(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
            given.append(options["env"])
            return popen(*arguments, **options)

        monkeypatch.setattr(subprocess, "Popen", noted)
        probe_apart(upload("clip.mp4"), settings)
        assert "secret" not in given[0].values()
        assert set(given[0]) <= {*probing._KEPT_VARIABLES, "MALLOC_ARENA_MAX"}
