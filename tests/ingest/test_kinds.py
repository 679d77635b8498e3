"""Footage as it is: each kind of file comes in and goes out with its frames, times, size, turn and colors,
or is refused with a message of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from nvpstore.archive import Archive
from nvpstore.errors import SourceError
from nvpstore.video.source import read_frames
from tests.conftest import open_micro
from tests.video.conftest import LINES, Clip, write_clip
from tests.video.oracle import EXACT_RGB, LEFT_RGB, ffmpeg_rgb

FAST = {"preset": "ultrafast"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=none"}
PQ, HLG, BT2020 = 16, 18, 9  # transfers and primaries, ITU-T H.273
FRAMES = 5
# Where several pixels share a chroma sample, MPEG's codecs say by default that it lies on their left.
LEFT = ("libx264", "libx265", "mpeg4", "mpeg2video")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Fields of a Clip, the filters after FFmpeg's own RGB that show it, and its size as shown."""

    fields: Mapping[str, Any]
    filters: tuple[str, ...] = ()
    size: tuple[int, int] = (96, 64)
    frames: int = FRAMES

    def write(self, folder: Path) -> Path:
        return write_clip(folder, Clip(**{"frames": self.frames, "options": FAST, **self.fields}))

    def rgb(self, path: Path) -> NDArray[np.uint8]:
        exact = LEFT_RGB if self.fields.get("codec", "libx264") in LEFT else EXACT_RGB
        if "+ildct+ilme" in self.fields.get("options", {}).get("flags", ""):
            # Lines of one field share chroma samples with each other, not with those between them.
            exact = exact.replace("scale=", "scale=interl=1:")
        return ffmpeg_rgb(path, ",".join((exact, *self.filters)))


def kind(*filters: str, size: tuple[int, int] = (96, 64), frames: int = FRAMES, **fields: Any) -> Kind:
    return Kind(fields=fields, filters=filters, size=size, frames=frames)


TURNED = (64, 96)
KINDS: dict[str, Kind] = {
    "plain": kind(),
    "odd-size": kind(width=53, height=37, pixel_format="yuv444p", size=(53, 37)),
    "odd-size-shared-chroma": kind(
        name="odd.mkv", codec="ffv1", options={}, width=53, height=37, size=(53, 37)
    ),
    "portrait": kind(width=64, height=96, size=TURNED),
    "turned-90": kind("transpose=clock", rotate_counterclockwise=-90, size=TURNED),
    "turned-180": kind("hflip", "vflip", rotate_counterclockwise=180),
    "turned-270": kind("transpose=cclock", rotate_counterclockwise=90, size=TURNED),
    "mirrored": kind("hflip", mirror=True),
    "variable-rate": kind(pts=[0, 512, 600, 3000, 3001]),
    "late-start": kind(pts=[6400, 6912, 7424, 7936, 8448]),
    "b-frames": kind(options={"bf": "3", "g": "250"}, frames=12),
    "open-gop": kind(options={"bf": "3", "g": "6", "x264-params": "open-gop=1:b-pyramid=2"}, frames=16),
    "10-bit": kind(pixel_format="yuv420p10le"),
    "hevc-10-bit": kind(codec="libx265", pixel_format="yuv420p10le", options=X265),
    "full-range": kind(color_range=2),
    "limited-range": kind(color_range=1),
    "bt601": kind(colorspace=6, color_range=1),
    "bt709": kind(colorspace=1, color_range=1),
    "bt2020-sdr": kind(
        codec="libx265",
        pixel_format="yuv420p10le",
        options=X265,
        colorspace=9,
        color_trc=14,
        color_primaries=9,
    ),
    "interlaced": kind(options={**FAST, "flags": "+ildct+ilme", "x264-params": "tff=1"}),
    "interlaced-mpeg2": kind(
        name="clip.ts", codec="mpeg2video", options={"flags": "+ildct+ilme"}, time_base=Fraction(1, 25)
    ),
    "one-frame": kind(frames=1),
    "16x16": kind(width=16, height=16, size=(16, 16)),
    "1x1": kind(
        name="dot.mkv", codec="ffv1", options={}, width=1, height=1, pixel_format="bgr0", size=(1, 1)
    ),
    "4k": kind(width=3840, height=2160, size=(3840, 2160), frames=1),
    "matroska": kind(name="clip.mkv"),
    "webm": kind(name="clip.webm", codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    "webm-vp8": kind(name="clip.webm", codec="libvpx", options={"deadline": "realtime", "cpu-used": "8"}),
    "av1": kind(codec="libsvtav1", options={"preset": "12"}),
    "avi": kind(name="clip.avi", codec="mpeg4", options={"bf": "2"}, time_base=Fraction(1, 25)),
    "avi-h264": kind(name="clip.avi", time_base=Fraction(1, 25), frames=9),
    "mov-prores": kind(name="clip.mov", codec="prores_ks", options={}, pixel_format="yuv422p10le"),
    "transport-stream": kind(name="clip.ts"),
    "gif": kind(name="clip.gif", codec="gif", options={}, pixel_format="rgb8", time_base=Fraction(1, 100)),
    "flash": kind(name="clip.flv", time_base=Fraction(1, 1000)),
    "fragments": kind(container_options={"movflags": "frag_keyframe+empty_moov"}),
    "raw-h264": kind(name="clip.h264", container_format="h264", options={**FAST, "bf": "0"}),
    "4:2:2": kind(pixel_format="yuv422p"),
    "4:4:4": kind(pixel_format="yuv444p"),
    "4:1:1": kind(name="clip.mkv", codec="ffv1", options={}, pixel_format="yuv411p"),
    "gray": kind(pixel_format="gray"),
    "gray-10-bit": kind(name="clip.mkv", codec="ffv1", options={}, pixel_format="gray10le"),
    "mjpeg": kind(
        name="clip.avi", codec="mjpeg", options={}, pixel_format="yuvj420p", time_base=Fraction(1, 25)
    ),
    "transparent": kind(name="clip.mov", codec="png", options={}, pixel_format="rgba", transparent=True),
    "transparent-prores": kind(
        name="clip.mov", codec="prores_ks", options={}, pixel_format="yuva444p10le", transparent=True
    ),
    "transparent-vp9": kind(
        name="clip.webm",
        codec="libvpx-vp9",
        options={"cpu-used": "8"},
        pixel_format="yuva420p",
        transparent=True,
    ),
}
FITTED = ("turned-90", "bt2020-sdr", "gif", "4k")


@pytest.fixture
def local(tmp_path: Path) -> Archive:
    return open_micro(tmp_path / "archive", tmp_path / "cache", create=True)


def pixels(path: Path) -> NDArray[np.uint8]:
    return np.concatenate([batch.rgb_thwc for batch in read_frames(str(path))])


def times(path: Path) -> list[float]:
    """Seconds of each frame since the first one, by PyAV alone."""
    with av.open(str(path)) as container:
        found = [frame.time for frame in container.decode(video=0)]
        interval = 1 / float(container.streams.video[0].average_rate or 25)
    if None in found:  # raw streams tell none
        return [interval * i for i in range(len(found))]
    return [time - found[0] for time in found]


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2))))


@pytest.mark.parametrize("name", KINDS)
def test_comes_in_and_goes_out_as_it_is(local: Archive, tmp_path: Path, name: str) -> None:
    kind, out = KINDS[name], tmp_path / "out.mp4"
    path = kind.write(tmp_path)
    video = local.add(path, tasks=())
    assert video.frames == kind.frames
    assert local.export(video.video_id, out, lossless=True).frames == kind.frames
    # MP4 counts in the source's own units; a file that counts in others rounds to them.
    assert times(out) == pytest.approx(times(path), abs=1e-6)
    written, shown = pixels(out), kind.rgb(path)
    assert written.shape == (kind.frames, *kind.size[::-1], 3)
    assert psnr(written, shown) > 45
    assert np.abs(written.mean((0, 1, 2)) - shown.mean((0, 1, 2))).max() < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", FITTED)
def test_a_fit_is_of_the_colors_that_ffmpeg_shows(local: Archive, tmp_path: Path, name: str) -> None:
    kind, out = KINDS[name], tmp_path / "out.mkv"
    path = kind.write(tmp_path)
    video = local.ingest(path, preset="micro", tasks=())
    assert video.psnr is not None
    assert local.export(video.video_id, out, lossless=True).frames == video.frames == kind.frames
    assert times(out) == pytest.approx(times(path), abs=1e-3)
    # Its error was measured against the source as we read it; against FFmpeg's pictures it is the same.
    assert psnr(pixels(out), kind.rgb(path)) == pytest.approx(video.psnr, abs=0.1)


# ---------------------------------------------------------------- what is refused


def of_no_frames(folder: Path) -> Path:
    return write_clip(folder, Clip(name="none.mkv", codec="ffv1", options={}, frames=0, audio="aac"))


def cut_short(folder: Path) -> Path:
    path = write_clip(folder, Clip(frames=30, container_options={"movflags": "faststart"}))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def without_its_index(folder: Path) -> Path:
    path = write_clip(folder, Clip(frames=30))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def of_sound_alone(folder: Path) -> Path:
    path = folder / "sound.m4a"
    both = write_clip(folder, Clip(frames=5, audio="aac"))
    with av.open(str(both)) as source, av.open(str(path), "w", format="mp4") as target:
        copy = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    return path


def a_playlist(folder: Path) -> Path:
    path = folder / "list.m3u8"
    write_clip(folder, Clip(name="other.ts", frames=5))
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2.4,\nother.ts\n#EXT-X-ENDLIST\n")
    return path


def hdr(folder: Path, transfer: int) -> Path:
    colors = {"colorspace": BT2020, "color_trc": transfer, "color_primaries": BT2020, "color_range": 1}
    deep = {"codec": "libx265", "pixel_format": "yuv420p10le", "options": X265}
    return write_clip(folder, Clip(frames=FRAMES, **deep, **colors))


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no-frames": (of_no_frames, r"none\.mkv"),
    "truncated": (cut_short, r"\d+ of 30 frames could be decoded"),
    "truncated-index": (without_its_index, "may be cut short"),
    "sound-alone": (of_sound_alone, "no video stream"),
    "playlist": (a_playlist, "playlist"),
    "hdr-pq": (lambda folder: hdr(folder, PQ), r"HDR \(PQ\)"),
    "hdr-hlg": (lambda folder: hdr(folder, HLG), r"HDR \(HLG\)"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("way", ["add", "ingest"])
def test_is_refused_with_a_message_of_its_own(local: Archive, tmp_path: Path, name: str, way: str) -> None:
    make, message = REFUSED[name]
    path = make(tmp_path)
    options = {"preset": "micro"} if way == "ingest" else {}
    with pytest.raises(SourceError, match=message) as caught:
        getattr(local, way)(path, tasks=(), **options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert local.videos() == []


# ---------------------------------------------------------------- by choice, and beside the pictures


@pytest.mark.slow
@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_is_mapped_where_that_is_asked_for(local: Archive, tmp_path: Path, transfer: int) -> None:
    path, out = hdr(tmp_path, transfer), tmp_path / "out.mkv"
    added = local.add(path, tasks=(), tone_map=True)
    as_read = np.concatenate([batch.rgb_thwc for batch in local.frames(added.video_id)])
    fitted = local.fit(added.video_id, preset="micro", tasks=())
    assert fitted.psnr is not None
    local.export(fitted.video_id, out, lossless=True)
    assert psnr(pixels(out), as_read) == pytest.approx(fitted.psnr, abs=0.1)
    # Not the values as they are coded, which would be shown dull.
    assert psnr(as_read, ffmpeg_rgb(path, EXACT_RGB)) < 25


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec", "suffix"), [("clip.mp4", "mov_text", ".mkv"), ("clip.mkv", "subrip", ".mp4")]
)
def test_sound_and_subtitles_stay_when_the_source_is_gone(
    local: Archive, tmp_path: Path, name: str, codec: str, suffix: str
) -> None:
    fields = {"name": name, "audio": "aac", "subtitles": codec, "frames": FRAMES}
    path, out = write_clip(tmp_path, Clip(**fields)), tmp_path / f"out{suffix}"
    video = local.ingest(path, preset="micro", tasks=(), keep_source="none")
    path.unlink()
    local.export(video.video_id, out)
    with av.open(str(out)) as container:
        assert [s.codec_context.name for s in container.streams.audio] == ["aac"]
        (stream,) = container.streams.subtitles
        first = next(container.decode(video=0)).time  # sound that begins before it moves all in Matroska
        container.seek(0)
        assert stream.metadata["language"] == "swe"
        said = [
            (p.pts * p.time_base - first, p.duration * p.time_base, text(p))
            for p in container.demux(stream)
            if text(p)
        ]
    for (start, seconds, words), (wanted_start, wanted_seconds, wanted) in zip(said, LINES, strict=True):
        assert words == wanted
        assert float(start) == pytest.approx(float(wanted_start), abs=0.002)
        assert float(seconds) == pytest.approx(float(wanted_seconds), abs=0.002)


def text(packet: av.Packet) -> str:
    data = bytes(packet)
    return (data[2:] if packet.stream.codec_context.name == "mov_text" else data).decode()
