"""Subtitles into another container: packets copied where it holds them, text rewritten where it holds text of
another kind. Pictures of text that a container cannot hold are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from av.container import OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.subtitles.stream import SubtitleStream

_ASS_TEXT_FIELD = 8  # of a packet: ReadOrder, Layer, Style, Name, three margins, Effect, Text
_ASS_OVERRIDE = re.compile(r"\{[^}]*\}")
_LENGTH_BYTES = 2  # before the text of MP4's timed text (3GPP TS 26.245), big-endian

# What encoders of text want to know of a style; ours writes none of it into packets.
STYLE = (
    b"[Script Info]\nScriptType: v4.00+\nPlayResX: 384\nPlayResY: 288\n[V4+ Styles]\n"
    b"Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, "
    b"Italic, Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, "
    b"MarginL, MarginR, MarginV, Encoding\n"
    b"Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,0\n"
    b"[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
)


def _plain(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")


def _of_timed_text(data: bytes) -> str:
    length = int.from_bytes(data[:_LENGTH_BYTES], "big")
    return _plain(data[_LENGTH_BYTES : _LENGTH_BYTES + length])


def _of_ass(data: bytes) -> str:
    fields = _plain(data).split(",", _ASS_TEXT_FIELD)
    text = _ASS_OVERRIDE.sub("", fields[-1]) if len(fields) > _ASS_TEXT_FIELD else ""
    return text.replace(r"\N", "\n").replace(r"\n", "\n").replace(r"\h", " ")


_READ: Mapping[str, Callable[[bytes], str]] = {
    "subrip": _plain, "text": _plain, "webvtt": _plain, "mov_text": _of_timed_text, "ass": _of_ass,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SubtitleTarget:
    """Where the packets of one stream go. `read` tells the text of a packet that must be rewritten."""

    stream: Stream
    timed_text: bool
    read: Callable[[bytes], str] | None

    def packet(self, packet: Packet[Any]) -> Packet[Any] | None:
        """As the target holds it; None for one that shows nothing."""
        if self.read is None:
            return packet
        text = self.read(bytes(packet)).strip().encode()
        if not text:
            return None
        made: Packet[Any] = Packet(
            len(text).to_bytes(_LENGTH_BYTES, "big") + text if self.timed_text else text
        )
        made.time_base, made.duration = packet.time_base, packet.duration
        made.pts, made.dts = packet.pts, packet.dts
        return made


def add_subtitles(target: OutputContainer, source: SubtitleStream) -> SubtitleTarget | None:
    """A stream of `target` for those of `source`; None where it can hold nothing of them."""
    name = source.codec_context.codec.canonical_name if source.codec_context is not None else ""
    matroska = target.format.name == "matroska"
    if name in target.supported_codecs if matroska else name == "mov_text":
        stream: Stream = target.add_stream_from_template(source)
        return SubtitleTarget(stream=stream, timed_text=False, read=None)
    if name not in _READ:
        return None
    stream = target.add_mux_stream("subrip") if matroska else _timed_text(target)
    stream.time_base = source.time_base
    return SubtitleTarget(stream=stream, timed_text=not matroska, read=_READ[name])


def _timed_text(target: OutputContainer) -> SubtitleStream:
    # The encoder, opened for its sample description alone: MP4 wants one, and it makes it of a style.
    stream = target.add_stream("mov_text")
    stream.codec_context.subtitle_header = STYLE
    return stream
