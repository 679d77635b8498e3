"""Which version of which task a query's text means, and what that says of its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nvpstore.errors import QueryError
from nvpstore.query.clips import clip_of
from nvpstore.query.names import FRAMES
from nvpstore.query.options import DEFAULT_TOP, suggestion
from nvpstore.query.parse import TaskTable
from nvpstore.query.text_calls import EMBED_TEXT, TextCall
from nvpstore.storage.keys import PICTURES
from nvpstore.types import StoredObject, TaskRecord


def resolve_task(table: TaskTable, tasks: Sequence[TaskRecord]) -> TaskRecord | None:
    """The record that a task table means, newest first; None for `frames`."""
    if table.task == FRAMES:
        return None
    task, top = _version(table, tasks, what="table"), table.options.top
    if task.labels and top > len(task.labels) and top != DEFAULT_TOP:
        raise QueryError(f"{table.where}: top := {top}: {task.name} has {len(task.labels)} labels")
    return task


def resolve_stabilizer(
    table: TaskTable, task: TaskRecord | None, stored: Mapping[tuple[str, str], StoredObject]
) -> StoredObject | None:
    """The stabilizer of the table's task version, or of pictures; None where the table asks for none.

    Raises QueryError where none is stored.
    """
    if not table.options.stabilize:
        return None
    found = stored.get((FRAMES, PICTURES) if task is None else (task.name, task.version))
    if found is None:
        version = "" if task is None else f"@{task.version[:8]}"
        raise QueryError(
            f"{table.where}: stabilize := true: the archive has no stabilizer of {table.task}{version}; "
            f"nvp tasks stabilize {table.task} trains one"
        )
    return found


def text_task(call: TextCall, tasks: Sequence[TaskRecord]) -> TaskRecord:
    """The record that a call of `embed_text` means; QueryError where it is not one of embeddings."""
    task = _version(call, tasks, what="task")
    if task.kind != "embedding":
        known = sorted({task.name for task in tasks if task.kind == "embedding"})
        raise QueryError(
            f"{call.where}: {EMBED_TEXT}: {call.shown} is a task of kind {task.kind}; of kind embedding are:"
            f" {', '.join(known) or 'none'}"
        )
    return task


def _version(named: TaskTable | TextCall, tasks: Sequence[TaskRecord], *, what: str) -> TaskRecord:
    """The newest version that a name, perhaps with the beginning of a version, means."""
    versions = [task for task in tasks if task.name == named.task]
    matches = [task for task in versions if task.version.startswith(named.version)]
    if not matches:
        known = [f"{task.name}@{task.version[:8]}" for task in versions]
        raise QueryError(f'{named.where}: unknown {what} "{named.shown}"{suggestion(named.shown, known)}')
    if named.version and len(matches) > 1:
        raise QueryError(f'{named.where}: "{named.shown}" means {len(matches)} versions: give more digits')
    return matches[0]


def by_clips(table: TaskTable, task: TaskRecord | None) -> TaskTable:
    """The table with its task's way of sampling."""
    clip = clip_of(task)
    if clip is None:
        return table
    if table.options.every is not None or table.options.stride is not None:
        raise QueryError(
            f"{table.where}: {table.shown} answers for {clip}, one after another: neither every nor stride is"
            " allowed"
        )
    return replace(table, options=replace(table.options, clip=clip))
