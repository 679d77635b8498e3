"""What a file's packets tell, against decoding all of it."""

from __future__ import annotations

import os
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from nvpstore.errors import SourceError
from nvpstore.video import listing
from nvpstore.video.listing import LONGEST_SEGMENT, SHORTEST_SEGMENT, divide_at, list_frames
from nvpstore.video.source import scan
from tests.video.conftest import Clip, write_clip

SHORT_GOPS = {"bf": "3", "g": "12", "preset": "veryfast"}
KINDS: dict[str, dict[str, Any]] = {
    "b-frames": {},
    "keyframes": {"options": SHORT_GOPS},
    "matroska": {"name": "clip.mkv", "options": SHORT_GOPS},
    "transport-stream": {"name": "clip.ts", "options": SHORT_GOPS},
    "hevc": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "av1": {"codec": "libsvtav1", "options": {"preset": "12"}, "frames": 20},
    "vp9": {"name": "clip.webm", "codec": "libvpx-vp9", "options": {"deadline": "realtime"}, "frames": 20},
    "vp8": {"name": "clip.webm", "codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "mpeg4": {"name": "clip.avi", "codec": "mpeg4", "options": {"bf": "2"}},
    "intra-only": {"name": "clip.mkv", "codec": "ffv1", "options": {}},
    "variable-rate": {"frames": 6, "pts": [0, 512, 600, 3000, 3001, 9000]},
    "late-start": {"frames": 6, "pts": [6400, 6912, 7424, 7936, 8448, 8960]},
    "one-frame": {"frames": 1, "options": {}},
    "rotated": {"rotate_counterclockwise": 90},
    "with-sound": {"audio": "aac"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_says_what_decoding_says(tmp_path: Path, kind: str) -> None:
    path = str(write_clip(tmp_path, Clip(**KINDS[kind])))
    listed, decoded = list_frames(path), scan(path, max_segment_frames=1000)
    assert listed.pts.tolist() == decoded.pts.tolist()
    assert (listed.sha256, listed.info) == (decoded.sha256, decoded.info)
    assert sum(span.frames for span in listed.segments) == decoded.frames


def test_a_written_clip_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    write_clip(tmp_path, Clip(**KINDS["av1"]))
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.fixture
def decoded_whole(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were decoded from end to end."""
    found: list[str] = []

    def noted(path: str, **options: Any) -> Any:
        found.append(path)
        return scan(path, **options)

    monkeypatch.setattr(listing, "scan", noted)
    return found


@pytest.mark.parametrize(
    ("kind", "whole"), [("b-frames", False), ("vp9", False), ("vp8", True), ("mpeg4", True)]
)
def test_decodes_all_only_where_packets_say_too_little(
    tmp_path: Path, decoded_whole: list[str], kind: str, whole: bool
) -> None:
    path = str(write_clip(tmp_path, Clip(**KINDS[kind])))
    list_frames(path)
    assert decoded_whole == ([path] if whole else [])


def test_packets_that_do_not_decode_so_are_not_believed(tmp_path: Path, decoded_whole: list[str]) -> None:
    whole = write_clip(tmp_path, Clip(name="whole.ts", options=SHORT_GOPS))
    path = str(begun_late(whole, tmp_path / "late.ts", packets=5))
    listed = list_frames(path)
    assert decoded_whole == [path]
    assert listed.pts.tolist() == scan(path, max_segment_frames=1000).pts.tolist()


def begun_late(whole: Path, path: Path, *, packets: int) -> Path:
    """`whole` without its first packets, nothing encoded again: those before the next keyframe give no
    frames.
    """
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in islice(source.demux(video=0), packets, None):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return path


def test_segments_begin_at_keyframes() -> None:
    spans = divide_at(range(0, 1000, 50), frames=1000)
    assert [span.start_frame for span in spans] == list(range(0, 1000, 100))
    assert all(span.scene == 0 for span in spans)


@pytest.mark.parametrize(("starts", "frames"), [([0], 1), ([0], 2000), ([0, 97, 500, 1300], 1301), ([], 400)])
def test_segments_cover_all_frames_within_bounds(starts: list[int], frames: int) -> None:
    spans = divide_at(starts, frames=frames)
    assert spans[0].start_frame == 0
    assert all(a.start_frame + a.frames == b.start_frame for a, b in pairwise(spans))
    assert spans[-1].start_frame + spans[-1].frames == frames
    assert [span.segment for span in spans] == list(range(len(spans)))
    assert max(span.frames for span in spans) <= LONGEST_SEGMENT
    assert min(span.frames for span in spans[:-1] or spans) >= min(SHORTEST_SEGMENT, frames)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    whole = write_clip(tmp_path, Clip(name="clip.mkv", options=SHORT_GOPS))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(SourceError, match=r"truncated|damaged"):
        list_frames(str(cut))


def test_progress_ends_with_all_frames(tmp_path: Path) -> None:
    seen: list[int] = []
    found = list_frames(str(write_clip(tmp_path, Clip(frames=30))), progress=seen.append)
    assert seen[-1] == found.frames == 30
    assert np.all(np.diff(seen) >= 0)
