"""A query's rows as they come over the wire: an Arrow stream whose last batch says what is to be said."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.ipc

from nvpstore.client.transport import QUERY_SECONDS, Ask, Transport
from nvpstore.client.values import Skipped, of
from nvpstore.errors import ServiceError, UsageError

ARROW = "application/vnd.apache.arrow.stream"
NOTES_KEY = b"nvpstore"  # in the metadata of the last batch, which has no rows

Params = Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What is said of an answer beside its rows."""

    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()


class RemoteStream(Iterator[pa.RecordBatch]):
    """The rows of a query in batches; at least one, maybe empty. Close it, and the server stops.

    The server is asked with the first batch. `schema` is None before; `warnings` and `skipped` are there with
    the last batch. Raises what the query raises, and ServiceError where the answer breaks off.
    """

    def __init__(self, transport: Transport, query: str, *, params: Params | None) -> None:
        self.schema: pa.Schema | None = None
        self._notes: Notes | None = None
        self._batches = self._read(transport, body_of(query, params))

    def __next__(self) -> pa.RecordBatch:
        return next(self._batches)

    def close(self) -> None:
        self._batches.close()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines about conditions that cannot hold, and about stored answers."""
        return self._notes.warnings if self._notes else ()

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Segments that `on_error := 'skip'` left out."""
        return self._notes.skipped if self._notes else ()

    def _read(self, transport: Transport, body: Mapping[str, Any]) -> Generator[pa.RecordBatch, None, None]:
        ask = query_ask("query", body, accept=ARROW)
        empty = True
        with transport.streamed(ask) as response, _opened(response) as reader:
            self.schema = reader.schema
            while self._notes is None:
                batch, metadata = _next(reader)
                self._notes = _notes_in(metadata)
                if batch.num_rows or (empty and self._notes):
                    empty = False
                    yield batch


def body_of(query: str, params: Params | None) -> dict[str, Any]:
    """The request's JSON. Raises UsageError for parameters that JSON has no form for."""
    if params is None:
        return {"sql": query}
    named = params.items() if isinstance(params, Mapping) else enumerate(params, start=1)
    for name, value in named:
        _check_param(name, value)
    return {"sql": query, "params": dict(params) if isinstance(params, Mapping) else list(params)}


def query_ask(path: str, body: Mapping[str, Any], *, accept: str) -> Ask:
    return Ask(
        method="POST",
        path=path,
        body=body,
        headers={"Accept": accept},
        read_seconds=QUERY_SECONDS,
        retry=True,  # it only reads
        query=True,
    )


def _check_param(name: object, value: object) -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check_param(f"{name}.{key}", part)
    elif isinstance(value, list | tuple):
        for part in value:
            _check_param(name, part)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"parameter {name} is {value}: a server takes finite numbers; cast a text in SQL")
    elif not (value is None or isinstance(value, bool | int | float | str)):
        kind = type(value).__name__
        raise UsageError(f"parameter {name} is a {kind}: a server takes what JSON has; cast a text in SQL")


def _opened(response: httpx2.Response) -> pa.ipc.RecordBatchStreamReader:
    body = io.BufferedReader(_Body(response), buffer_size=1 << 16)
    try:
        return pa.ipc.open_stream(body)
    except pa.ArrowException as cause:
        kind = response.headers.get("content-type", "no type")
        raise ServiceError(f"{response.url} answered with {kind} instead of Arrow: {cause}") from cause


def _next(reader: pa.ipc.RecordBatchStreamReader) -> tuple[pa.RecordBatch, Mapping[bytes, bytes] | None]:
    try:
        batch, metadata = reader.read_next_batch_with_custom_metadata()
    except (StopIteration, pa.ArrowException) as cause:
        raise ServiceError("the answer broke off before its end") from cause
    return batch, metadata


def _notes_in(metadata: Mapping[bytes, bytes] | None) -> Notes | None:
    text = None if metadata is None else dict(metadata).get(NOTES_KEY)
    if text is None:
        return None
    said = json.loads(text)
    return Notes(
        skipped=tuple(of(Skipped, skip) for skip in said["skipped"]), warnings=tuple(said["warnings"])
    )


class _Body(io.RawIOBase):
    """An answer's body as a file."""

    def __init__(self, response: httpx2.Response) -> None:
        self._pieces = response.iter_bytes()
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
