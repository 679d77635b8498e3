"""Answers of queries on their way to a caller: their form, their pieces, and those that jobs kept."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from fastapi.responses import FileResponse, Response, StreamingResponse

from nvpstore.api.jobs.job import Job
from nvpstore.api.service.formats import FORMATS, NOTES_KEY, Format, Notes, Writer
from nvpstore.api.service.problems import OURS, Refused, status_of
from nvpstore.api.service.settings import ServiceSettings
from nvpstore.api.service.state import Service
from nvpstore.errors import NotFound, NvpError, QueryError
from nvpstore.query.run import Stream

SPOOL_BYTES = 4 << 30  # of an answer that must be whole before its first byte goes
PIECE_BYTES = 1 << 20
_HEADER_CHARACTERS = 4000
_STORED_ROWS = 1024  # of a stored answer at once
NEVER_STORED = {"Cache-Control": "no-store", "Vary": "Accept"}


# ---------------------------------------------------------------- which form


def negotiated(accept: str | None, *, first: Format | None = None) -> Format:
    """The form that an Accept header asks for: JSON, or `first`, where it leaves the choice.

    Raises Refused (406) where it takes none of ours.
    """
    forms = list(FORMATS.values())
    if first is not None:
        forms.sort(key=lambda form: form is not first)
    chosen = choose(accept, [form.media_type for form in forms])
    return next(form for form in forms if form.media_type == chosen)


def choose(accept: str | None, offered: Sequence[str]) -> str:
    """The media type of `offered` that an Accept header likes best; of those liked alike, the first.

    Raises Refused (406) where it takes none.
    """
    ranges = _ranges(accept or "*/*")
    best = max(offered, key=lambda kind: _quality(kind, ranges))  # max gives the first of equals
    if _quality(best, ranges) <= 0:
        raise Refused(
            HTTPStatus.NOT_ACCEPTABLE, f"Accept: {str(accept)[:200]}: offered are {', '.join(offered)}"
        )
    return best


def _ranges(accept: str) -> dict[str, float]:
    """The quality of each media range; malformed ones count for nothing."""
    found: dict[str, float] = {}
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weights = [text[2:] for text in parameters if text.startswith("q=")]
        try:
            found[kind] = float(weights[0]) if weights else 1.0
        except ValueError:
            continue
    return found


def _quality(kind: str, ranges: dict[str, float]) -> float:
    """The most special range decides, whatever others say."""
    for candidate in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
        if candidate in ranges:
            return ranges[candidate]
    return 0.0


# ---------------------------------------------------------------- an answer's pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Comes before an answer's first byte: what is said of it so far."""

    notes: Notes

    def headers(self) -> dict[str, str]:
        """`X-Nvp-Skipped` counts segments that were left out, `X-Nvp-Warnings` is a JSON list."""
        found = dict(NEVER_STORED)
        if self.notes.skipped:
            found["X-Nvp-Skipped"] = str(len(self.notes.skipped))
        if self.notes.warnings:
            found["X-Nvp-Warnings"] = _fitting(list(self.notes.warnings))
        return found


def _fitting(warnings: list[str]) -> str:
    """As many of the warnings as fit into a header, ASCII."""
    text = json.dumps(warnings)
    while len(text) > _HEADER_CHARACTERS:
        warnings = warnings[:-1]
        text = json.dumps([*warnings, "…"])
    return text


def pieces(stream: Stream, form: Format) -> Iterator[Head | bytes]:
    """An answer: its head, then its bytes as rows come. Nothing before the first rows are there.

    Raises what the stream raises; after the head, the form's last words on that come before.
    """
    batch = _first_rows(stream)
    writer = form.writer(batch.schema)
    opening = writer.begin() + writer.batch(batch)
    if may_skip_more(stream) and not form.tells_at_end:
        yield from _spooled(stream, writer, opening)
        return
    yield Head(notes=_notes(stream))
    yield opening
    try:
        for batch in stream:
            if written := writer.batch(batch):
                yield written
        ending = writer.end(_notes(stream))
    except Exception as error:
        if last_words := writer.broken(told(error)):
            yield last_words
        raise
    if ending:
        yield ending


def told(error: Exception) -> dict[str, Any]:
    """An error in the words of a problem document."""
    status = status_of(error) if isinstance(error, NvpError) else HTTPStatus.INTERNAL_SERVER_ERROR
    ours = isinstance(error, NvpError)
    return {
        "title": status.phrase,
        "status": status.value,
        "detail": " ".join(str(error).split()) if ours else OURS,
        "error": type(error).__name__ if ours else None,
    }


def _first_rows(stream: Stream) -> pa.RecordBatch:
    """The first batch that has rows, else an empty one."""
    batch = next(stream)
    while batch.num_rows == 0:
        following = next(stream, None)
        if following is None:
            return batch
        batch = following
    return batch


def may_skip_more(stream: Stream) -> bool:
    """Whether segments may turn out to be left out while rows are sent."""
    scans = () if stream.plan is None else stream.plan.scans
    return any(scan.computes and scan.options.on_error == "skip" for scan in scans)


def _notes(stream: Stream) -> Notes:
    return Notes(skipped=stream.skipped, warnings=stream.warnings)


def _spooled(stream: Stream, writer: Writer, opening: bytes) -> Iterator[Head | bytes]:
    """Where only headers have room for notes, all of the answer comes first."""
    with tempfile.TemporaryFile(prefix="nvp-answer-") as spool:
        spool.write(opening)
        for batch in stream:
            spool.write(writer.batch(batch))
            if spool.tell() > SPOOL_BYTES:
                raise QueryError(
                    f"the answer may leave segments out and has more than {SPOOL_BYTES} bytes: take JSON or"
                    " Arrow"
                )
        notes = _notes(stream)
        spool.write(writer.end(notes))
        spool.seek(0)
        yield Head(notes=notes)
        yield from _parts_of(spool)


def _parts_of(file: IO[bytes]) -> Iterator[bytes]:
    while part := file.read(PIECE_BYTES):
        yield part


# ---------------------------------------------------------------- answers that jobs kept


def answers_folder(settings: ServiceSettings) -> Path:
    return settings.state_dir / "answers"


def open_answer(service: Service, job: Job, accept: str | None) -> Response:
    """The answer that a job of kind "query" kept, in the form that `accept` asks for.

    Raises NotFound for jobs of other kinds, Refused: 409 before it is done or where it failed, 410 where the
    answer is not kept any more, 406 for other forms.
    """
    if job.kind != "query":
        raise NotFound(f"job {job.id} is of kind {job.kind}: only jobs of kind query have an answer")
    if job.state != "done" or job.result is None:
        raise _not_done(job)
    form = negotiated(accept, first=FORMATS.get(job.result["format"]))
    path = answers_folder(service.settings) / Path(job.result["file"]).name
    if not path.is_file():
        raise Refused(HTTPStatus.GONE, f"the answer of job {job.id} is not kept any more: ask again")
    if form.name == "parquet":
        return FileResponse(path, media_type=form.media_type, headers=NEVER_STORED)
    stored = pq.ParquetFile(path)
    head = Head(notes=_stored_notes(stored))
    parts = _converted(stored, form.writer(_schema(stored)), head.notes)
    return StreamingResponse(parts, media_type=form.media_type, headers=head.headers())


def _not_done(job: Job) -> Refused:
    if not job.final:
        return Refused(
            HTTPStatus.CONFLICT,
            f"job {job.id} is {job.state}: its answer is there once it is done",
            headers={"Retry-After": "1"},
        )
    why = (job.error or {}).get("detail")
    return Refused(HTTPStatus.CONFLICT, f"job {job.id} {job.state}" + (f": {why}" if why else ""))


def _stored_notes(stored: pq.ParquetFile) -> Notes:
    text = (stored.metadata.metadata or {}).get(NOTES_KEY)
    return Notes() if text is None else Notes.from_json(json.loads(text))


def _schema(stored: pq.ParquetFile) -> pa.Schema:
    return stored.schema_arrow.remove_metadata()


def _converted(stored: pq.ParquetFile, writer: Writer, notes: Notes) -> Iterator[bytes]:
    with closing(stored):
        yield writer.begin()
        for batch in stored.iter_batches(batch_size=_STORED_ROWS):
            yield writer.batch(pa.RecordBatch.from_arrays(batch.columns, schema=_schema(stored)))
        yield writer.end(notes)
