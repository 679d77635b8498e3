"""Tasks: listed, described, registered, trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi import Path as FromPath
from fastapi.concurrency import run_in_threadpool

from nvpstore.api.jobs.requests import StabilizeJob, TrainJob
from nvpstore.api.service.given import (
    Admin,
    GivenService,
    IdempotencyKey,
    Ingester,
    Reader,
    accepted,
)
from nvpstore.api.service.intake import checked, json_field
from nvpstore.api.service.models import (
    JobAnswer,
    StabilizeAsked,
    TaskAdded,
    TaskDetails,
    TaskFields,
    TasksAnswer,
    TrainAsked,
)
from nvpstore.api.service.problems import Refused
from nvpstore.api.service.state import Service
from nvpstore.api.service.uploads import BodyLimits, Upload, media_type, read_json, receive_form
from nvpstore.errors import NotFound, TaskError
from nvpstore.storage.keys import new_attempt

if TYPE_CHECKING:
    from nvpstore.upkeep.tasks import AddedTask

FRAMES = "frames"  # of whose stabilizer pictures have
WEIGHTS_PART, DESCRIPTION_PART = "weights", "task"
WEIGHTS_BYTES = 4 * 10**9  # they are read into memory
MOST_OPTION_LEVELS = 4
LARGEST_OPTION = 1 << 16  # widths, depths: larger ones only take memory
# Settings by which libraries load files, or fetch them from elsewhere.
_LOADING = re.compile(
    r"pretrain|weight|checkpoint|path|file|url|cache|hub|dir|download|backbone|repo|token|code"
)
_OPTION = re.compile(r"[a-z][a-z0-9_]{0,63}")
_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": TaskFields.model_json_schema()},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [DESCRIPTION_PART, WEIGHTS_PART],
                "properties": {
                    DESCRIPTION_PART: {
                        **TaskFields.model_json_schema(),
                        "description": "the same as JSON, as a field",
                    },
                    WEIGHTS_PART: {"type": "string", "format": "binary", "description": "safetensors"},
                },
            }
        },
    },
}

router = APIRouter(tags=["tasks"])
TaskRefPath = Annotated[
    str,
    FromPath(
        pattern=r"^[a-z][a-z0-9_]{0,62}(@[0-9a-f]{1,64})?$",
        description="a task's name; NAME@VERSION, by its beginning, pins a version",
        examples=["labels"],
    ),
]


async def one_model_of(request: Request) -> CapacityLimiter:
    """One at a time: a model that is built takes memory, and most of the processor."""
    state = request.app.state
    if not hasattr(state, "one_model"):
        state.one_model = CapacityLimiter(1)
    limiter: CapacityLimiter = state.one_model
    return limiter


OneModel = Annotated[CapacityLimiter, Depends(one_model_of)]


@router.get("/tasks", response_model=TasksAnswer)
async def list_tasks(
    service: GivenService,
    _: Reader,
    one_model: OneModel,
    available: Annotated[bool, Query(description="all that this release knows, registered or not")] = False,
) -> dict[str, Any]:
    """The registered tasks, newest versions, by name."""
    work = partial(service.archive.tasks, available=available)
    return {
        "tasks": await to_thread.run_sync(work, limiter=one_model)
        if available
        else await run_in_threadpool(work)
    }


@router.get("/tasks/{name}", response_model=TaskDetails)
async def show_task(
    service: GivenService, _: Reader, one_model: OneModel, name: TaskRefPath
) -> dict[str, Any]:
    """One task with its labels in class order: of the archive, else a built-in one whose weights are here."""
    try:
        return await to_thread.run_sync(service.archive.task, name, limiter=one_model)
    except TaskError as cause:
        raise NotFound(str(cause)) from cause


@router.post(
    "/tasks",
    status_code=201,
    responses={200: {"model": TaskAdded, "description": "it was registered already"}},
    openapi_extra={"requestBody": _BODY},
)
async def add_task(
    request: Request, response: Response, service: GivenService, _: Admin, one_model: OneModel
) -> TaskAdded:
    """Register a task: a built-in one, one like it, or any model of a library that the server has.

    Weights come as safetensors with the request, or from a package. The model is built and run once: where
    it, its weights and its labels do not fit each other, nothing is registered. Code of the caller's own
    (provider `factory`) is never run for a request.
    """
    kind = media_type(request)
    if kind == "application/json":
        said = checked(TaskFields, await read_json(request, stall_seconds=service.settings.stall_seconds))
        added = await _added(service, said, None, one_model)
    elif kind == "multipart/form-data":
        added = await _added_with_weights(request, service, one_model)
    else:
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"a body of {kind or 'no said type'}: application/json and multipart/form-data are allowed",
        )
    if added.already_registered:
        response.status_code = HTTPStatus.OK
    return TaskAdded(**asdict(added))


@router.post("/tasks/{name}/train", status_code=202)
def train_task(
    request: Request,
    response: Response,
    service: GivenService,
    caller: Ingester,
    name: TaskRefPath,
    asked: TrainAsked,
    idempotency_key: IdempotencyKey = None,
) -> JobAnswer:
    """Give fitted videos routes for a task, which makes it cheap to ask them. Answers with the job."""
    task, _, version = name.partition("@")
    try:
        service.archive.catalog.snapshot().task(task, version or None)
    except TaskError as cause:
        raise NotFound(str(cause)) from cause
    job = TrainJob(
        task=name, videos=asked.videos, share=asked.share, measured=asked.measured, again=asked.again
    )
    queued, _new = service.queue.submit(
        "train", job.to_json(), owner=caller.key_id, idempotency_key=idempotency_key
    )
    return accepted(request, response, queued)


@router.post("/tasks/{name}/stabilize", status_code=202)
def stabilize_task(
    request: Request,
    response: Response,
    service: GivenService,
    caller: Ingester,
    name: TaskRefPath,
    asked: StabilizeAsked,
    idempotency_key: IdempotencyKey = None,
) -> JobAnswer:
    """Teach what makes a task's answers steady, or pictures (`frames`). Answers with the job."""
    task, _, version = name.partition("@")
    if name != FRAMES:
        try:
            service.archive.catalog.snapshot().task(task, version or None)
        except TaskError as cause:
            raise NotFound(str(cause)) from cause
    job = StabilizeJob(
        task=name,
        videos=asked.videos,
        share=asked.share,
        steps=asked.steps,
        stability=asked.stability,
        variant=asked.variant,
    )
    queued, _new = service.queue.submit(
        "stabilize", job.to_json(), owner=caller.key_id, idempotency_key=idempotency_key
    )
    return accepted(request, response, queued)


def check_options(options: Mapping[str, Any]) -> None:
    """Raises Refused for settings of a library that could load or fetch something, or take all memory.

    Allowed are numbers and booleans, in lists and objects; and a vocabulary, a list of words.
    """
    for name, value in options.items():
        if name != "vocabulary":
            _check_option(name, value, levels=MOST_OPTION_LEVELS)
        elif not (isinstance(value, list) and all(isinstance(word, str) for word in value)):
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "options: 'vocabulary' is a list of words")


# ---------------------------------------------------------------- parts


async def _added_with_weights(request: Request, service: Service, one_model: CapacityLimiter) -> AddedTask:
    settings = service.settings
    upload = await receive_form(
        request,
        folder=settings.spool_dir / new_attempt(),
        file_part=WEIGHTS_PART,
        limits=BodyLimits(
            most_bytes=min(WEIGHTS_BYTES, settings.upload_bytes), stall_seconds=settings.stall_seconds
        ),
    )
    try:
        return await _added(service, _described(upload), upload, one_model)
    finally:
        upload.discard()


async def _added(
    service: Service, said: TaskFields, weights: Upload | None, one_model: CapacityLimiter
) -> AddedTask:
    if said.provider == "factory":
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "provider 'factory': code of a caller's is never run")
    if weights is not None and said.seed is not None:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "weights and a seed: one or the other is allowed")
    check_options(said.options)
    return await to_thread.run_sync(_add, service, said, weights, limiter=one_model)


def _add(service: Service, said: TaskFields, weights: Upload | None) -> AddedTask:
    described = said.model_dump(exclude_none=True, exclude={"name"})
    if weights is None:
        return service.archive.add_task(said.name, **described)
    # By this name it is read as safetensors, and as nothing else.
    path = weights.path.rename(weights.path.with_name("weights.safetensors"))
    try:
        return service.archive.add_task(said.name, **described, weights=path)
    except TaskError as cause:
        raise TaskError(str(cause).replace(str(path), weights.file_name)) from cause


def _described(upload: Upload) -> TaskFields:
    fields = dict(upload.fields)
    if len(upload.fields) != 1 or DESCRIPTION_PART not in fields:
        found = ", ".join(name for name, _ in upload.fields) or "none"
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"the form has the fields {found}: beside the weights one is allowed, {DESCRIPTION_PART!r}, with "
            "the task's description as JSON",
        )
    return checked(TaskFields, json_field(DESCRIPTION_PART, fields[DESCRIPTION_PART]))


def _check_option(name: str, value: Any, *, levels: int) -> None:
    if not _OPTION.fullmatch(name) or _LOADING.search(name):
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"options: {name!r} is not allowed over HTTP")
    if isinstance(value, Mapping) and levels:
        for inner, part in value.items():
            _check_option(inner, part, levels=levels - 1)
    elif isinstance(value, list) and levels:
        for part in value:
            _check_option(name, part, levels=levels - 1)
    elif not _is_small(value):
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"options: {name!r} may hold numbers up to {LARGEST_OPTION}, booleans, lists and objects of them",
        )


def _is_small(value: object) -> bool:
    return value is None or (
        isinstance(value, bool | int | float) and -LARGEST_OPTION <= value <= LARGEST_OPTION
    )
