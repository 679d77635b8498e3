"""Sound and subtitles of a source file into an export: packets copied where the container holds them; else
sound becomes AAC, and text the kind of text that it holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream

from nvpstore.errors import SourceError
from nvpstore.video.decoder import open_container
from nvpstore.video.subtitles import SubtitleTarget, add_subtitles

# MP4 and MOV hold raw PCM too, but few players read it from there.
_MP4_COPIES = ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac")
# What people choose a stream by.
_NAMES = ("language", "title")
_AAC_BITS_PER_SECOND = 192_000
_AAC_RATES = (48_000, 44_100, 96_000, 88_200, 64_000, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)
# By number of channels: raw sound often does not name its layout, and AAC has one for each number.
_AAC_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}


class AudioCopy:
    """All sound and subtitles of one open file, written in step with the video. Made by `open_audio`.

    `shift_seconds` is added to every timestamp; what then lies before 0 is left out.
    """

    def __init__(
        self, path: str, source: InputContainer, target: OutputContainer, *, shift_seconds: Fraction
    ) -> None:
        self._path = path
        self._target = target
        self._shift_seconds = shift_seconds
        self._copies: dict[int, Stream] = {}
        self._encoders: dict[int, AudioStream] = {}
        for stream in source.streams.audio:
            if not _is_known(stream):
                continue  # nothing here can read it: it is in the original alone
            if _holds(target, stream):
                self._copies[stream.index] = target.add_stream_from_template(stream)
            else:
                self._encoders[stream.index] = _add_encoder(target, stream)
        self._texts: dict[int, SubtitleTarget] = {}
        for text in source.streams.subtitles:
            if (made := add_subtitles(target, text)) is not None:
                self._texts[text.index], self._copies[text.index] = made, made.stream
        for index, copy in (self._copies | self._encoders).items():
            copy.metadata.update({n: v for n, v in source.streams[index].metadata.items() if n in _NAMES})
        self._packets = self._read(source)

    @property
    def streams(self) -> int:
        """How many there are in the target."""
        return len(self._copies) + len(self._encoders)

    def write_until(self, seconds: float) -> None:
        """Write packets up to the first that starts at or after `seconds` on the video's clock."""
        for packet in self._packets:
            start = self._start_seconds(packet)
            self._write(packet)
            if start is not None and start >= seconds:
                return

    def write_rest(self) -> None:
        """Write what is left, and what the encoders still hold."""
        for packet in self._packets:
            self._write(packet)
        for encoder in self._encoders.values():
            self._target.mux(encoder.encode(None))

    def _read(self, source: InputContainer) -> Iterator[Packet[Any]]:
        wanted = [source.streams[index] for index in sorted(self._copies | self._encoders)]
        if not wanted:
            return
        packets = source.demux(wanted)
        while True:
            with self._source_errors():
                packet = next(packets, None)
            if packet is None:
                return
            yield packet

    def _write(self, packet: Packet[Any]) -> None:
        index = packet.stream.index
        if index in self._encoders:
            self._encode(packet, self._encoders[index])
            return
        start = self._start_seconds(packet)
        if packet.size == 0 or start is None or (self._shift_seconds and start < 0):
            return  # the demuxer's end mark, or before the excerpt
        if index in self._texts:
            made = self._texts[index].packet(packet)
            if made is None:
                return
            packet = made
        offset = round(self._shift_seconds / packet.time_base)
        packet.pts = (packet.pts or 0) + offset
        packet.dts = None if packet.dts is None else packet.dts + offset
        packet.stream = self._copies[index]
        self._target.mux(packet)

    def _encode(self, packet: Packet[Any], encoder: AudioStream) -> None:
        with self._source_errors():
            frames = cast(list[AudioFrame], packet.decode())
        for frame in frames:
            if frame.pts is not None and frame.time_base is not None:
                frame.pts += round(self._shift_seconds / frame.time_base)
                if self._shift_seconds and frame.pts < 0:
                    continue
            self._target.mux(encoder.encode(frame))

    def _start_seconds(self, packet: Packet[Any]) -> float | None:
        if packet.pts is None:
            return None
        return float(packet.pts * packet.time_base + self._shift_seconds)

    @contextmanager
    def _source_errors(self) -> Iterator[None]:
        try:
            yield
        except av.FFmpegError as error:
            raise SourceError(
                f"{self._path}: its audio cannot be read ({error.strerror}); an undamaged file is needed"
            ) from error


@contextmanager
def open_audio(
    path: str | None, target: OutputContainer, *, shift_seconds: Fraction
) -> Iterator[AudioCopy | None]:
    """Add the sound and subtitles of `path` to `target`, which has not been written to. None without a path.

    Raises SourceError where the file cannot be opened.
    """
    if path is None:
        yield None
        return
    with open_container(path) as source:
        yield AudioCopy(path, source, target, shift_seconds=shift_seconds)


def copy_audio(path: str, out: Path) -> bool:
    """Write all sound and subtitles of a file as Matroska: packets copied, times to the millisecond.

    Returns False, and leaves nothing, where there are none. Raises SourceError where they cannot be read.
    """
    with open_container(path) as source:
        if not (source.streams.audio or source.streams.subtitles):
            return False
        with _matroska(out) as target:
            copy = AudioCopy(path, source, target, shift_seconds=Fraction(0))
            if copy.streams:
                copy.write_rest()
                return True
    out.unlink(missing_ok=True)
    return False


def _matroska(out: Path) -> OutputContainer:
    # Encoders prime before time 0. Shifting all streams to start at 0 would lose them their video's clock.
    return av.open(str(out), "w", format="matroska", options={"avoid_negative_ts": "disabled"})


def _is_known(stream: AudioStream) -> bool:
    # Of a codec that FFmpeg does not know, against what PyAV's types say.
    return getattr(stream, "codec_context", None) is not None


def _holds(target: OutputContainer, stream: AudioStream) -> bool:
    codec = stream.codec_context.codec.canonical_name
    if target.format.name == "matroska":
        return codec in target.supported_codecs
    return codec in _MP4_COPIES


def _add_encoder(target: OutputContainer, stream: AudioStream) -> AudioStream:
    rate = stream.rate if stream.rate in _AAC_RATES else _AAC_RATES[0]
    encoder = target.add_stream("aac", rate=rate)
    encoder.layout = _AAC_LAYOUTS.get(stream.channels, "stereo")
    encoder.bit_rate = _AAC_BITS_PER_SECOND
    return encoder
