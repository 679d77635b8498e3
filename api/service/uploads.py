"""Bodies as they arrive: a form's one file goes to disk, its fields and JSON to memory, all within limits.

The parser is fed while bytes come in, so that a body which is too large, too slow, or too much for the disk
ends there and not after it was received.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import re
import shutil
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from nvpstore.api.service.problems import Refused

PIECE_BYTES = 1 << 20  # handed to a thread at once
LEAST_BYTES = 1 << 16  # that a sender must bring in `stall_seconds`
JSON_BYTES = 1 << 20
FIELD_BYTES = 1 << 20  # all fields of a form together
MOST_FIELDS = 256
SPARE_BYTES = 1 << 28  # of the disk, which uploads leave free
FILE = "upload"  # what every upload is called on disk, whatever its sender calls it
_NAME_LENGTH = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """At most `most_bytes` in all, and never less than LEAST_BYTES in `stall_seconds` of waiting."""

    most_bytes: int
    stall_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A form that was received whole. `path` is its file, alone in a folder; `file_name` is for people only.

    `fields` are the others, in order.
    """

    path: Path
    file_name: str
    size_bytes: int
    sha256: str
    fields: tuple[tuple[str, str], ...]

    def discard(self) -> None:
        """Nobody needs it."""
        shutil.rmtree(self.path.parent, ignore_errors=True)


def media_type(request: Request) -> str:
    """What the body is, without parameters; empty where that is not said."""
    return parse_options_header(request.headers.get("content-type"))[0].decode("latin-1")


async def read_json(request: Request, *, stall_seconds: float) -> Any:
    """A JSON body. Raises Refused for one that is too large, too slow, or malformed."""
    limits = BodyLimits(most_bytes=JSON_BYTES, stall_seconds=stall_seconds)
    body = b"".join([piece async for piece in arriving(request, limits)])
    try:
        return json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as cause:
        raise Refused(HTTPStatus.BAD_REQUEST, f"the body is no JSON: {cause}") from None


async def receive_form(request: Request, *, folder: Path, file_part: str, limits: BodyLimits) -> Upload:
    """A form (multipart/form-data) whose part `file_part` is written to `folder`, which must not be there.

    Raises Refused for what is malformed, too large or too slow, and where the disk is too full. Of what is
    not received whole nothing is left.
    """
    boundary = _boundary(request)
    _check_length(request, limits)
    try:
        form = await run_in_threadpool(_Form, folder, file_part, boundary)
        try:
            _check_room(folder, _declared(request))
            waiting = bytearray()
            async for piece in arriving(request, limits):
                waiting += piece
                if len(waiting) >= PIECE_BYTES:
                    await run_in_threadpool(form.feed, bytes(waiting))
                    waiting.clear()
            await run_in_threadpool(form.feed, bytes(waiting))
            return await run_in_threadpool(form.finish)
        finally:
            form.file.close()
    except BaseException as cause:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(cause, OSError):
            raise _disk_refusal(cause) from cause
        raise


async def arriving(request: Request, limits: BodyLimits) -> AsyncIterator[bytes]:
    """The body's pieces. Raises Refused as soon as it breaks `limits`, and where its sender goes away."""
    _check_length(request, limits)
    stream = request.stream()
    total, since = 0, 0
    left = limits.stall_seconds  # only waiting counts: that our disk is slow is no fault of the sender's
    clock = asyncio.get_running_loop().time
    while True:
        begun = clock()
        try:
            async with asyncio.timeout(left):
                piece = await anext(stream, None)
        except TimeoutError:
            raise _too_slow(total, limits) from None
        except ClientDisconnect:
            raise Refused(HTTPStatus.BAD_REQUEST, f"the body ended early, after {total} bytes") from None
        if piece is None:
            return
        total, since = total + len(piece), since + len(piece)
        if total > limits.most_bytes:
            raise _too_large(f"more than {limits.most_bytes} bytes", limits)
        left -= clock() - begun
        if since >= LEAST_BYTES:
            left, since = limits.stall_seconds, 0
        yield piece


def display_name(given: str) -> str:
    """A sender's name of a file, for people: its last part, without control characters."""
    last = re.split(r"[/\\]", given)[-1]
    shown = "".join(c for c in unicodedata.normalize("NFC", last) if unicodedata.category(c)[0] != "C")
    return shown.strip(" .")[:_NAME_LENGTH].strip() or FILE


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


# ---------------------------------------------------------------- forms


class _Form:
    """A form on its way to disk. Only one thread at a time uses it."""

    def __init__(self, folder: Path, file_part: str, boundary: bytes) -> None:
        folder.mkdir(parents=True, mode=0o700)
        self.path = folder / FILE
        self.file = self.path.open("xb")
        self._file_part = file_part
        self._file_name: str | None = None
        self._digest, self._size_bytes = hashlib.sha256(), 0
        self._fields: list[tuple[str, str]] = []
        self._field_bytes, self._parts = 0, 0
        self._header, self._value = bytearray(), bytearray()
        self._headers: dict[str, bytes] = {}
        self._field: tuple[str, bytearray] | None = None  # None: the part is the file
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_part_end": self._part_ends,
                "on_end": self._body_ends,
            },
        )

    def feed(self, piece: bytes) -> None:
        _check_room(self.path.parent, len(piece))
        try:
            self._parser.write(piece)
        except FormParserError as cause:
            raise _malformed(str(cause)) from None

    def finish(self) -> Upload:
        """What was received, safe from a loss of power."""
        if not self._ended:
            raise _malformed("it ends before its last boundary")
        if self._file_name is None or not self._size_bytes:
            found = "is empty" if self._file_name is not None else "is missing"
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"the form's part {self._file_part!r} {found}")
        self.file.flush()
        os.fsync(self.file.fileno())
        return Upload(
            path=self.path,
            file_name=self._file_name,
            size_bytes=self._size_bytes,
            sha256=self._digest.hexdigest(),
            fields=tuple(self._fields),
        )

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > MOST_FIELDS:
            raise _malformed(f"more than {MOST_FIELDS} parts")
        self._headers = {}

    def _header_ends(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        kind, said = parse_options_header(self._headers.get("content-disposition", b""))
        if kind != b"form-data" or b"name" not in said:
            raise _malformed("a part without Content-Disposition: form-data; name=…")
        if self._headers.get("content-transfer-encoding", b"binary").lower() not in (
            b"binary",
            b"8bit",
            b"7bit",
        ):
            raise _malformed("a part with a Content-Transfer-Encoding, which forms do not have")
        name = said[b"name"].decode("utf-8", "replace")
        if name != self._file_part:
            self._field = (name, bytearray())
            return
        if self._file_name is not None:
            raise Refused(
                HTTPStatus.UNPROCESSABLE_ENTITY, f"the form has several parts {name!r}: one is allowed"
            )
        self._field = None
        self._file_name = display_name(said.get(b"filename", b"").decode("utf-8", "replace"))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        piece = memoryview(data)[start:end]
        if self._field is None:
            self._digest.update(piece)
            self._size_bytes += self.file.write(piece)
            return
        self._field_bytes += len(piece)
        if self._field_bytes > FIELD_BYTES:
            raise _malformed(f"fields of more than {FIELD_BYTES} bytes", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        self._field[1].extend(piece)

    def _part_ends(self) -> None:
        if self._field is None:
            return
        name, value = self._field
        try:
            self._fields.append((name, value.decode("utf-8")))
        except UnicodeDecodeError:
            raise _malformed(f"field {name!r} is not UTF-8") from None

    def _body_ends(self) -> None:
        self._ended = True


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 70:
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "multipart/form-data with a boundary of 1 to 70 bytes is needed",
        )
    return boundary


# ---------------------------------------------------------------- limits


def _check_length(request: Request, limits: BodyLimits) -> None:
    declared = _declared(request)
    if declared > limits.most_bytes:
        raise _too_large(f"{declared} bytes", limits)


def _declared(request: Request) -> int:
    text = request.headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() else 0


def _check_room(folder: Path, size_bytes: int) -> None:
    """Raises OSError where the disk has none."""
    if shutil.disk_usage(folder).free < SPARE_BYTES + size_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _too_large(found: str, limits: BodyLimits) -> Refused:
    return Refused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"a body of {found}: at most {limits.most_bytes} are allowed",
        headers={"Connection": "close"},
    )


def _too_slow(received: int, limits: BodyLimits) -> Refused:
    return Refused(
        HTTPStatus.REQUEST_TIMEOUT,
        f"after {received} bytes, less than {LEAST_BYTES} in {limits.stall_seconds:g} s: that is too slow",
        headers={"Connection": "close"},
    )


def _disk_refusal(cause: OSError) -> Refused:
    full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
    said = "has no room for it now" if full else "cannot keep it now"
    return Refused(
        HTTPStatus.INSUFFICIENT_STORAGE if full else HTTPStatus.SERVICE_UNAVAILABLE,
        f"the server's disk {said}: try again later",
        headers={"Connection": "close", "Retry-After": "60"},
    )


def _malformed(why: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> Refused:
    return Refused(status, f"the form is malformed: {why}", headers={"Connection": "close"})
