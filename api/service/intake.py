"""What comes in over HTTP as jobs: uploads and URIs, with what is said of them."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from nvpstore.api.jobs.job import Job
from nvpstore.api.jobs.queue import QueueFull
from nvpstore.api.jobs.requests import IngestJob, Kept
from nvpstore.api.service.models import VideoByUri, VideoFields
from nvpstore.api.service.problems import Refused
from nvpstore.api.service.security import Caller
from nvpstore.api.service.state import Service
from nvpstore.api.service.uploads import BodyLimits, Upload, display_name, read_json, receive_form
from nvpstore.codec.build import find_preset
from nvpstore.storage.keys import new_attempt

FILE_PART = "file"
_REPEATABLE = frozenset({"tasks"})
_OBJECTS = frozenset({"tags"})

M = TypeVar("M", bound=BaseModel)


async def take_upload(request: Request, service: Service, caller: Caller, key: str | None) -> Job:
    """Receive a form with a video, and queue it. Nothing of it stays where that does not work out."""
    settings = service.settings
    if key is None:  # with one, it may be a job that waits already
        await run_in_threadpool(_check_room, service)
    upload = await receive_form(
        request,
        folder=settings.spool_dir / new_attempt(),
        file_part=FILE_PART,
        limits=BodyLimits(most_bytes=settings.upload_bytes, stall_seconds=settings.stall_seconds),
    )
    service.metrics.uploaded(upload.size_bytes)
    try:
        said = checked(VideoFields, form_values(upload.fields))
        job = _of_upload(said, upload)
        queued, new = await run_in_threadpool(_submit, service, caller, job, said, key)
    except BaseException:
        upload.discard()
        raise
    if not new:
        upload.discard()
    return queued


async def take_uri(request: Request, service: Service, caller: Caller, key: str | None) -> Job:
    """Queue a video that a worker will fetch, if it is under one of the roots."""
    body = await read_json(request, stall_seconds=service.settings.stall_seconds)
    said = checked(VideoByUri, body)
    uri = under_roots(said.uri, service.settings.roots)
    job = IngestJob(
        uri=uri,
        original_name=display_name(unquote(urlsplit(uri).path)),
        # What comes from the web is not asked for again.
        keep_source=said.keep_source or ("none" if uri.startswith(("http:", "https:")) else "reference"),
        **_what_is_said(said),
    )
    queued, _ = await run_in_threadpool(_submit, service, caller, job, said, key)
    return queued


def form_values(fields: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """A form's fields as a JSON body would have them. Raises Refused for a field that comes twice.

    Empty ones are left out: browsers send those that nobody filled in.
    """
    values: dict[str, Any] = {}
    for name, text in fields:
        if text == "":
            continue
        if name in _REPEATABLE:
            values.setdefault(name, []).append(text)
        elif name in values:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"the form has several fields {name!r}")
        else:
            values[name] = json_field(name, text) if name in _OBJECTS else text
    return values


def json_field(name: str, text: str) -> Any:
    """A form's field that holds JSON. Raises Refused."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"field {name!r} is no JSON: {cause}") from None


def checked(kind: type[M], value: Any) -> M:
    """`value` as a model. Raises RequestValidationError saying which of the body's fields are wrong."""
    try:
        return kind.model_validate(value)
    except ValidationError as cause:
        found = cause.errors(include_url=False, include_input=False)
        raise RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in found]) from None


def under_roots(uri: str, roots: Iterable[str]) -> str:
    """`uri` as it is to be fetched. Raises Refused where it is under none of `roots`.

    Links are followed, and names of hosts resolved, only where it is fetched: there it is checked again.
    """
    allowed = tuple(roots)
    found = _normal(uri)
    if any(found == root or found.startswith(f"{root.rstrip('/')}/") for root in map(_normal, allowed)):
        return found
    where = f"under {', '.join(allowed)}" if allowed else "by upload only: this server has no roots"
    raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"uri {uri!r}: videos come in {where}")


# ---------------------------------------------------------------- parts


def _check_room(service: Service) -> None:
    """Raises QueueFull: better now than once gigabytes have been sent."""
    waiting = sum(many for (_, state), many in service.queue.counts().items() if state == "queued")
    if waiting >= service.settings.waiting_jobs:
        raise QueueFull(
            f"{waiting} jobs wait, the most that may: try again later",
            retry_after_seconds=service.queue.lease_seconds,
        )


def _submit(
    service: Service, caller: Caller, job: IngestJob, said: VideoFields, key: str | None
) -> tuple[Job, bool]:
    # The worker would find out too, hours later.
    find_preset(said.preset)
    return service.queue.submit(
        said.mode,
        job.to_json(),
        owner=caller.key_id,
        idempotency_key=key,
        # Where an upload lies differs each time; what it is does not.
        identity=replace(job, file=FILE_PART).to_json() if job.file else None,
    )


def _of_upload(said: VideoFields, upload: Upload) -> IngestJob:
    keep: Kept = said.keep_source or ("copy" if said.mode == "add" else "none")
    if keep == "reference":
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "keep_source 'reference' with an upload: there is nothing to refer to; copy and none are allowed",
        )
    return IngestJob(
        file=str(upload.path),
        original_name=upload.file_name,
        sha256=upload.sha256,
        keep_source=keep,
        **_what_is_said(said),
    )


def _what_is_said(said: VideoFields) -> Mapping[str, Any]:
    return {
        "name": said.name,
        "tags": said.tags,
        "recorded_at": said.recorded_at and said.recorded_at.isoformat(),
        "tasks": tuple(said.tasks),
        "preset": said.preset,
        "refit": said.refit,
    }


def _normal(uri: str) -> str:
    """A path, or an address with its scheme and host in lower case. Raises Refused for what could be read in
    two ways."""
    try:
        parts = urlsplit(uri)
    except ValueError as cause:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"uri {uri!r}: {cause}") from None
    path = unquote(parts.path)
    steps = path.split("/")
    if ".." in steps or "." in steps or "\\" in path or "\0" in path:
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"uri {uri!r}: no step may be . or .., no \\ is allowed"
        )
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"uri {uri!r}: no credentials, query or fragment are allowed"
        )
    if parts.scheme in ("", "file"):
        if parts.netloc not in ("", "localhost") or not path.startswith("/"):
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"uri {uri!r}: the path of a file is absolute")
        return posixpath.normpath("/" + path.lstrip("/"))
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path}"
