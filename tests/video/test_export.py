"""Files out: the frames, timestamps, size and sound that went in, under their name only when whole."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from nvpstore.errors import SourceError, StoreError, UsageError
from nvpstore.types import FrameBatch, SourceScan
from nvpstore.video.export import write_pngs, write_video
from nvpstore.video.source import probe, read_frames, scan

MakeClip = Callable[..., Path]
MARKS = {"comment": "reconstructed from 0a1b, 33.1 dB: ä", "nvpstore_model": "hnerv"}


def export(source: Path, out: Path, **options: Any) -> SourceScan:
    """Write all frames of `source` to `out`; returns the scan of `source`."""
    found = scan(str(source), max_segment_frames=1000)
    frames = write_video(
        read_frames(str(source)),
        str(out),
        **{
            "width": found.info.width,
            "height": found.info.height,
            "time_base": found.info.time_base,
            "average_fps": found.info.average_fps,
            "metadata": MARKS,
            **options,
        },
    )
    assert frames == found.frames
    return found


def rgb(path: Path) -> NDArray[np.uint8]:
    return np.concatenate([b.rgb_thwc for b in read_frames(str(path))])


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def times(found: SourceScan) -> list[Fraction]:
    return [pts * found.info.time_base for pts in found.pts.tolist()]


def tags(path: Path) -> dict[str, str]:
    with av.open(str(path)) as container:
        return {key.lower(): value for key, value in container.metadata.items()}


def sound(path: Path) -> tuple[list[str], float, float]:
    """Codecs of the audio streams, and the first one's start and length in seconds as decoded."""
    with av.open(str(path)) as container:
        codecs = [s.codec_context.name for s in container.streams.audio]
        frames = list(container.decode(audio=0))
    return codecs, float(frames[0].time or 0), sum(f.samples / f.sample_rate for f in frames)


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Writes past `size_bytes` fail, as they do on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# ---------------------------------------------------------------- frames and time


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".m4v"])
@pytest.mark.parametrize(
    "fields",
    [
        {"name": "a.mp4", "fps": Fraction(30000, 1001), "time_base": Fraction(1, 30000)},
        {"name": "variable.mp4", "pts": [i * 300 + i * i * 7 for i in range(60)]},
        {"name": "late.ts"},
        {"name": "a.mkv"},
        {"name": "a.avi", "codec": "mpeg4", "options": {}, "time_base": Fraction(1001, 30000)},
        {"name": "turned.mp4", "rotate_counterclockwise": -90},
    ],
    ids=lambda fields: fields["name"],
)
def test_h264_has_the_sources_frames_times_and_size(
    make_clip: MakeClip, tmp_path: Path, fields: dict[str, Any], suffix: str
) -> None:
    out = tmp_path / f"out{suffix}"
    source = make_clip(**fields)
    found = export(source, out)
    written = scan(str(out), max_segment_frames=1000)
    assert times(written) == times(found)
    assert (written.info.width, written.info.height) == (found.info.width, found.info.height)
    assert (written.info.codec, written.info.pixel_format) == ("h264", "yuv420p")
    assert psnr(rgb(out), rgb(source)) > 30


@pytest.mark.parametrize(
    ("suffix", "lossless"),
    [(".mp4", False), (".mov", False), (".mkv", False), (".mp4", True)],
)
def test_anamorphic_pictures_stay_so(
    make_clip: MakeClip, tmp_path: Path, suffix: str, lossless: bool
) -> None:
    out = tmp_path / f"out{suffix}"
    export(make_clip(frames=3), out, pixel_aspect=Fraction(16, 11), lossless=lossless)
    assert probe(str(out)).pixel_aspect == Fraction(16, 11)


def test_the_last_frame_is_shown_as_long_as_the_others(make_clip: MakeClip, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    export(make_clip(), out)
    assert scan(str(out), max_segment_frames=1000).info.duration_seconds == pytest.approx(60 / 25)


def test_matroska_rounds_times_to_milliseconds(make_clip: MakeClip, tmp_path: Path) -> None:
    out = tmp_path / "out.mkv"
    found = export(make_clip(fps=Fraction(30000, 1001), time_base=Fraction(1, 30000)), out, lossless=True)
    written = scan(str(out), max_segment_frames=1000)
    differences = [abs(a - b) for a, b in zip(times(written), times(found), strict=True)]
    assert max(differences) <= Fraction(1, 2000)


def test_an_excerpt_starts_at_zero(make_clip: MakeClip, tmp_path: Path) -> None:
    source, out = str(make_clip()), tmp_path / "part.mp4"
    frames = write_video(
        read_frames(source, start_frame=20, end_frame=30),
        str(out),
        width=96,
        height=64,
        time_base=Fraction(1, 12800),
        average_fps=Fraction(25),
        metadata={},
        start_pts=20 * 512,
    )
    assert frames == 10
    np.testing.assert_array_equal(scan(str(out), max_segment_frames=99).pts, np.arange(10) * 512)


def test_times_before_zero_are_moved_not_lost(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    batch = FrameBatch(first_frame=0, rgb_thwc=frames, pts=np.arange(5, dtype=np.int64) * 512 - 1000)
    write_video(
        [batch],
        str(out),
        width=16,
        height=16,
        time_base=Fraction(1, 12800),
        average_fps=Fraction(25),
        metadata={},
    )
    np.testing.assert_array_equal(scan(str(out), max_segment_frames=9).pts, np.arange(5) * 512)


@pytest.mark.parametrize(("width", "height"), [(95, 64), (96, 63), (33, 17)])
def test_odd_sizes_keep_their_size(make_clip: MakeClip, tmp_path: Path, width: int, height: int) -> None:
    out = tmp_path / "out.mp4"
    source = make_clip(
        name="odd.mkv", codec="ffv1", options={}, pixel_format="bgr0", frames=9, width=width, height=height
    )
    export(source, out)
    info = scan(str(out), max_segment_frames=99).info
    assert (info.width, info.height, info.pixel_format) == (width, height, "yuv444p")
    assert psnr(rgb(out), rgb(source)) > 35


@pytest.mark.parametrize(("height", "colorspace"), [(64, 6), (720, 1)], ids=["bt601", "bt709"])
def test_colors_survive_and_their_matrix_is_written(tmp_path: Path, height: int, colorspace: int) -> None:
    out = tmp_path / "out.mp4"
    colors = np.array([(200, 30, 40), (20, 180, 60), (30, 50, 210), (120, 120, 120)], np.uint8)
    frames = np.broadcast_to(np.repeat(colors, 24, axis=0), (3, height, 96, 3))
    batch = FrameBatch(first_frame=0, rgb_thwc=frames, pts=np.arange(3, dtype=np.int64))
    write_video(
        [batch],
        str(out),
        width=96,
        height=height,
        time_base=Fraction(1, 25),
        average_fps=Fraction(25),
        metadata={},
    )
    with av.open(str(out)) as container:
        first = next(container.decode(video=0))
    assert (first.colorspace, first.color_range) == (colorspace, 1)
    middles = rgb(out)[0, height // 2, 12::24].astype(int)
    assert np.abs(middles - colors).max() <= 3


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_lossless_returns_the_same_bits(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (7, 33, 51, 3), dtype=np.uint8)
    batches = [
        FrameBatch(first_frame=i, rgb_thwc=noise[i : i + 3], pts=np.arange(i, min(i + 3, 7), dtype=np.int64))
        for i in (0, 3, 6)
    ]
    write_video(
        batches,
        str(out),
        width=51,
        height=33,
        time_base=Fraction(1, 25),
        average_fps=Fraction(25),
        metadata=MARKS,
        lossless=True,
    )
    np.testing.assert_array_equal(rgb(out), noise)
    assert tags(out).items() >= MARKS.items()


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.mkv"])
def test_marks_survive_in_the_file(make_clip: MakeClip, tmp_path: Path, name: str) -> None:
    export(make_clip(frames=4), tmp_path / name)
    assert tags(tmp_path / name).items() >= MARKS.items()


# ---------------------------------------------------------------- sound


@pytest.mark.parametrize(
    ("source", "codec", "out", "kept"),
    [
        ("a.mp4", "aac", "out.mp4", "aac"),
        ("a.mkv", "ac3", "out.mp4", "ac3"),
        ("a.mkv", "pcm_s16le", "out.mp4", "aac"),
        ("a.mkv", "pcm_s16le", "out.mkv", "pcm_s16le"),
        ("a.mkv", "libopus", "out.mkv", "libopus"),
    ],
)
def test_sound_is_copied_where_the_container_holds_it(
    make_clip: MakeClip, tmp_path: Path, source: str, codec: str, out: str, kept: str
) -> None:
    path = make_clip(name=source, audio=codec)
    found = export(path, tmp_path / out, audio_from=str(path))
    codecs, start, seconds = sound(tmp_path / out)
    _, source_start, source_seconds = sound(path)
    assert [c.removeprefix("lib") for c in codecs] == [kept.removeprefix("lib")]
    assert start == pytest.approx(source_start, abs=0.03)
    assert seconds == pytest.approx(source_seconds, abs=0.05)
    if out == "out.mp4":
        assert times(scan(str(tmp_path / out), max_segment_frames=99)) == times(found)


def test_copied_packets_are_the_same_bytes(make_clip: MakeClip, tmp_path: Path) -> None:
    path, out = make_clip(audio="aac"), tmp_path / "out.mp4"
    export(path, out, audio_from=str(path))
    packets = []
    for file in (path, out):
        with av.open(str(file)) as container:
            packets.append([bytes(p) for p in container.demux(audio=0) if p.size])
    assert packets[0] == packets[1]


def test_a_source_without_sound_gives_a_file_without(make_clip: MakeClip, tmp_path: Path) -> None:
    path, out = make_clip(frames=4), tmp_path / "out.mp4"
    export(path, out, audio_from=str(path))
    assert scan(str(out), max_segment_frames=9).info.audio_streams == 0


def test_a_missing_sound_source_is_named(make_clip: MakeClip, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.mp4: cannot be read"):
        export(make_clip(frames=4), tmp_path / "out.mp4", audio_from=str(tmp_path / "gone.mp4"))
    assert not list(tmp_path.glob("*out*"))


# ---------------------------------------------------------------- targets


def test_an_existing_file_is_kept_unless_overwrite(make_clip: MakeClip, tmp_path: Path) -> None:
    source, out = make_clip(frames=4), tmp_path / "out.mp4"
    out.write_text("mine")
    with pytest.raises(StoreError, match=r"out\.mp4: exists already"):
        export(source, out)
    assert out.read_text() == "mine"
    export(source, out, overwrite=True)
    assert scan(str(out), max_segment_frames=9).frames == 4


@pytest.mark.parametrize(
    ("out", "lossless", "error", "message"),
    [
        ("none/out.mp4", False, StoreError, "does not exist"),
        ("folder.mp4", False, StoreError, "is a folder"),
        ("/proc/out.mp4", False, StoreError, "cannot be written"),
        ("out.avi", False, UsageError, r"written as \.mp4, \.m4v, \.mov, \.mkv, not \.avi"),
        ("out", False, UsageError, "not without a suffix"),
        ("out.mov", True, UsageError, r"lossless video is written as \.mkv, \.mp4, not \.mov"),
    ],
)
def test_a_target_that_cannot_be_is_refused(
    make_clip: MakeClip, tmp_path: Path, out: str, lossless: bool, error: type[Exception], message: str
) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(error, match=message) as caught:
        export(make_clip(frames=4), tmp_path / out, lossless=lossless)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lossless", [False, True])
def test_a_full_target_leaves_nothing(make_clip: MakeClip, tmp_path: Path, lossless: bool) -> None:
    source, out = make_clip(), tmp_path / "folder" / "out.mkv"
    out.parent.mkdir()
    with (
        file_size_limit(4_000),
        pytest.raises(StoreError, match=r"out\.mkv: cannot be written: File too large"),
    ):
        export(source, out, lossless=lossless)
    assert list(out.parent.iterdir()) == []


def test_nothing_is_visible_before_it_is_whole(make_clip: MakeClip, tmp_path: Path) -> None:
    source, out = make_clip(), tmp_path / "folder" / "out.mp4"
    out.parent.mkdir()

    def breaks_off() -> Iterator[FrameBatch]:
        for batch in read_frames(str(source), batch_frames=10):
            assert not out.exists()
            yield batch
            if batch.first_frame == 40:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(
            breaks_off(),
            str(out),
            width=96,
            height=64,
            time_base=Fraction(1, 12800),
            average_fps=Fraction(25),
            metadata={},
        )
    assert list(out.parent.iterdir()) == []


def test_no_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no frames to write"):
        write_video(
            [],
            str(tmp_path / "out.mp4"),
            width=8,
            height=8,
            time_base=Fraction(1, 25),
            average_fps=Fraction(25),
            metadata={},
        )
    with pytest.raises(UsageError, match="no frames to write"):
        write_pngs([], str(tmp_path / "pngs"), metadata={})
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- PNGs


def test_pngs_hold_the_same_bits_and_the_marks(make_clip: MakeClip, tmp_path: Path) -> None:
    source, folder = make_clip(frames=12), tmp_path / "pngs"
    batches = read_frames(str(source), start_frame=5, batch_frames=3)
    assert write_pngs(batches, str(folder), metadata=MARKS) == 7
    files = sorted(folder.iterdir())
    assert [f.name for f in files] == [f"frame-{i:08d}.png" for i in range(5, 12)]
    expected = rgb(source)[5:]
    for file, frame in zip(files, expected, strict=True):
        with Image.open(file) as image:
            np.testing.assert_array_equal(np.asarray(image), frame)
            assert image.text == MARKS  # type: ignore[attr-defined]


def test_existing_pngs_are_kept_unless_overwrite(make_clip: MakeClip, tmp_path: Path) -> None:
    source, folder = str(make_clip(frames=2)), tmp_path / "pngs"
    write_pngs(read_frames(source), str(folder), metadata={})
    before = (folder / "frame-00000000.png").read_bytes()
    with pytest.raises(StoreError, match=r"holds frame-.* already"):
        write_pngs(read_frames(source), str(folder), metadata=MARKS)
    assert (folder / "frame-00000000.png").read_bytes() == before
    assert write_pngs(read_frames(source), str(folder), metadata=MARKS, overwrite=True) == 2
    assert (folder / "frame-00000000.png").read_bytes() != before


def test_pngs_that_fail_leave_nothing(make_clip: MakeClip, tmp_path: Path) -> None:
    source, folder = str(make_clip(frames=4, width=320, height=240)), tmp_path / "pngs"
    with file_size_limit(2_000), pytest.raises(StoreError, match="File too large"):
        write_pngs(read_frames(source), str(folder), metadata={})
    assert not folder.exists()
    with pytest.raises(StoreError, match="does not exist"):
        write_pngs(read_frames(source), str(tmp_path / "a" / "b"), metadata={})
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="is a file"):
        write_pngs(read_frames(source), str(tmp_path / "file"), metadata={})
