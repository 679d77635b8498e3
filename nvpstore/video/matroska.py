"""How many bytes a Matroska or WebM file says it has. FFmpeg reads one that was cut short without a word."""

from __future__ import annotations

from typing import BinaryIO

_EBML_HEADER = 0x1A45DFA3
_SEGMENT = 0x18538067


def declared_bytes(path: str) -> int:
    """The end of the file's one Segment (RFC 8794, RFC 9559), or 0 where it has none or was written live."""
    with open(path, "rb") as file:
        while element := _read_number(file, keep_marker=True):
            size = _read_number(file, keep_marker=False)
            if size is None:
                return 0
            if element == _SEGMENT:
                return file.tell() + size
            if element != _EBML_HEADER:
                return 0
            file.seek(size, 1)
    return 0


def _read_number(file: BinaryIO, *, keep_marker: bool) -> int | None:
    """A number of as many bytes as the first one has leading zeros, plus one; None if unknown (all ones)."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    number = int.from_bytes(first + file.read(length - 1), "big")
    if keep_marker:
        return number
    number -= 1 << (7 * length)
    return None if number == (1 << (7 * length)) - 1 else number
