"""`POST /query` and `POST /query/explain`."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import closing
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from nvpstore.api.jobs.requests import QueryJob
from nvpstore.api.service.answers import Head, choose, negotiated, pieces
from nvpstore.api.service.formats import FORMATS, Format, Notes
from nvpstore.api.service.given import GivenService, IdempotencyKey, accepted
from nvpstore.api.service.models import Answer, Asked, JobAnswer
from nvpstore.api.service.offloop import off_loop
from nvpstore.api.service.problems import Problem
from nvpstore.api.service.running import Make, Piece, desk_of, respond
from nvpstore.api.service.security import Caller, needs
from nvpstore.api.service.state import Service
from nvpstore.query.children import CHILDREN
from nvpstore.query.size import MAX_CHARACTERS

router = APIRouter(tags=["queries"])

Asker = Annotated[Caller, Depends(needs("query"))]

SECONDS = 600.0  # of a query that somebody waits for, where NVP_QUERY_TIMEOUT says nothing
PLAN_TYPES = ("application/json", "text/plain")
_PLAN_COLUMN = "plan"
_DESCRIPTION = """\
The answer's form is chosen by `Accept`: JSON, NDJSON, CSV, an Arrow IPC stream or Parquet, sent as rows are
computed. Nothing is sent before the first rows are there: until then an error is a problem document. **An
error after that breaks the answer off**: the body ends without its last chunk, which every HTTP/1.1 client
reports; JSON then ends with `"error"` in place of `"skipped"`, NDJSON with a line `{"error": {…}}`, and Arrow
and Parquet lack their end.

JSON is `{"columns": [{"name", "type"}], "rows": [{…}], "skipped": […], "warnings": […]}`. Segments that
`on_error := 'skip'` left out and warnings are also said in Arrow's last batch and in Parquet's footer
(metadata `nvpstore`, the same JSON), and, as far as they are known when the answer begins, in the headers
`X-Nvp-Skipped` (how many) and `X-Nvp-Warnings` (a JSON list). CSV and NDJSON that may leave segments out
begin when all rows are there.

Close the connection, and the query ends. With `Prefer: respond-async` the answer is a job: its rows are kept
for a day and are at `/v1/jobs/{id}/result`, in any of the forms."""


class QueryAsked(Asked):
    """One SELECT, or EXPLAIN of one."""

    sql: str = Field(
        min_length=1,
        max_length=MAX_CHARACTERS,
        examples=["SELECT name, label, count(*) AS n FROM labels JOIN videos USING (video_id) GROUP BY ALL"],
    )
    params: list[Any] | dict[str, Any] | None = Field(
        default=None, description="values of `?` or `$1`, or of `$name`", examples=[{"name": "gate.mp4"}]
    )


class Column(Answer):
    name: str = Field(description="made distinct by a number where the query names two alike")
    type: str = Field(description="as Arrow calls it", examples=["string", "int32", "list<element: float>"])


class SkippedSegment(Answer):
    """A segment that `on_error := 'skip'` left out, and why."""

    video_id: str
    segment: int
    table: str
    reason: str


class QueryAnswer(Answer):
    """Rows as objects. Floats read back exactly; blobs are base64; NaN and infinities are null."""

    columns: list[Column]
    rows: list[dict[str, Any]]
    skipped: list[SkippedSegment]
    warnings: list[str]


class PlanAnswer(Answer):
    """A plan: what would be read, decoded and computed, in bytes, frames and GFLOPs."""

    snapshot: int = Field(description="the log number that it is about")
    frames_in_archive: int
    segments_in_archive: int
    scans: list[dict[str, Any]] = Field(description="a task table each, with the routes that answer it")
    skipped: list[SkippedSegment]
    total: dict[str, Any]
    stop_after: int | None = Field(description="rows after which nothing more is decoded")
    sql: str = Field(description="what DuckDB runs")
    measured: dict[str, Any] | None = Field(default=None, description="of EXPLAIN ANALYZE: what it took")
    warnings: list[str]


_FORMS: dict[str, dict[str, Any]] = {form.media_type: {} for form in FORMATS.values() if form.name != "json"}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    406: {"model": Problem, "description": "no form that `Accept` takes"},
    422: {"model": Problem, "description": "the SQL is wrong, or reaches for more than it may"},
    429: {"model": Problem, "description": "as many queries of yours run as may at once"},
    504: {"model": Problem, "description": "the query ran longer than it may"},
}


@router.post(
    "/query",
    summary="Ask one SELECT",
    description=_DESCRIPTION,
    response_class=Response,
    responses={
        200: {"model": QueryAnswer, "content": {"application/json": {}, **_FORMS}, "description": "rows"},
        202: {"model": JobAnswer, "description": "a job: with `Prefer: respond-async`"},
        **_REFUSALS,
    },
)
async def query(
    asked: QueryAsked,
    request: Request,
    service: GivenService,
    caller: Asker,
    prefer: Annotated[
        str | None, Header(max_length=200, description="`respond-async`: the answer is a job")
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    form = negotiated(_accept(request))
    if _wants_job(prefer):
        wanted = QueryJob(sql=asked.sql, params=asked.params, format=form.name)
        return await _job(wanted, request, service, caller, idempotency_key)
    run = desk_of(request, service).start(caller.key_id, _answering(service, asked, form))
    return await respond(run, request, media_type=form.media_type)


@router.post(
    "/query/explain",
    summary="The plan of one SELECT",
    description="As JSON, or as text for `Accept: text/plain`. Nothing is decoded, but for EXPLAIN ANALYZE.",
    response_class=Response,
    responses={
        200: {"model": PlanAnswer, "content": {kind: {} for kind in PLAN_TYPES}, "description": "the plan"},
        **_REFUSALS,
    },
)
async def explain(
    asked: QueryAsked,
    request: Request,
    service: GivenService,
    caller: Asker,
) -> Response:
    media_type = choose(_accept(request), PLAN_TYPES)
    run = desk_of(request, service).start(caller.key_id, _explaining(service, asked, media_type))
    return await respond(run, request, media_type=media_type)


def _accept(request: Request) -> str | None:
    return ", ".join(request.headers.getlist("accept")) or None


def _wants_job(prefer: str | None) -> bool:
    wishes = (prefer or "").lower().split(",")
    return any(wish.partition(";")[0].strip() == "respond-async" for wish in wishes)


async def _job(
    wanted: QueryJob, request: Request, service: Service, caller: Caller, idempotency_key: str | None
) -> Response:
    job, _ = await off_loop(
        lambda: service.queue.submit(
            "query", wanted.to_json(), owner=caller.key_id, idempotency_key=idempotency_key
        )
    )
    body = JobAnswer.of(job).model_dump(mode="json")
    answer = JSONResponse(body, HTTPStatus.ACCEPTED, {"Preference-Applied": "respond-async"})
    accepted(request, answer, job)
    return answer


# ---------------------------------------------------------------- on the query's own thread


def _seconds(service: Service) -> float:
    limit = service.archive.settings.query_seconds
    return SECONDS if limit is None else limit


def _answering(service: Service, asked: QueryAsked, form: Format) -> Make:
    def make(cancel: threading.Event) -> Generator[Piece, None, None]:
        stream = service.archive.stream(
            asked.sql, params=asked.params, cancel=cancel, seconds=_seconds(service), children=CHILDREN
        )
        with closing(stream):
            yield from pieces(stream, form)

    return make


def _explaining(service: Service, asked: QueryAsked, media_type: str) -> Make:
    as_json = media_type == PLAN_TYPES[0]

    def make(cancel: threading.Event) -> Generator[Piece, None, None]:
        result = service.archive.explain(
            asked.sql,
            params=asked.params,
            plan_format="json" if as_json else "text",
            cancel=cancel,
            seconds=_seconds(service),
            children=CHILDREN,
        )
        lines = result.arrow()[_PLAN_COLUMN].to_pylist()
        yield Head(notes=Notes(warnings=result.warnings))
        if as_json:
            document = {**json.loads(lines[0]), "warnings": result.warnings}
            yield json.dumps(document, ensure_ascii=False).encode()
        else:
            yield "".join(f"{line}\n" for line in lines).encode()

    return make
