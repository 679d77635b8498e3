"""Tasks by name: those of the archive, newest version first, then those that this release knows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nvpstore.catalog import Catalog, Snapshot
from nvpstore.errors import TaskError
from nvpstore.storage.commit import register_task
from nvpstore.storage.weights import FOLDER, weights_file
from nvpstore.tasks.registry import LoadedTask, available, builtin_spec, load
from nvpstore.tasks.spec import TaskSpec


def registered_tasks(catalog: Catalog, names: Sequence[str]) -> list[LoadedTask]:
    """The tasks ready to run; registered in the archive if they were not. Raises TaskError."""
    tasks = [named_task(catalog, name) for name in dict.fromkeys(names)]
    for task in tasks:
        register_once(catalog, task)
    return tasks


def register_once(catalog: Catalog, task: LoadedTask) -> None:
    """Make `task` known to the archive if it is not yet."""
    record = task.record()
    if not catalog.snapshot().has_task(record.name, record.version):
        register_task(catalog.log, record)


def named_task(catalog: Catalog, name: str, *, device: str = "cpu") -> LoadedTask:
    """The archive's task NAME (its newest version, or NAME@VERSION), else the built-in one, ready to run.

    Raises TaskError for an unknown name, and for weights or packages that are absent.
    """
    spec = _spec(catalog.snapshot(), name)
    return load(spec, device, find=partial(weights_file, catalog.log.store, folder=catalog.folder / FOLDER))


def _spec(snapshot: Snapshot, ref: str) -> TaskSpec:
    name, _, version = ref.partition("@")
    known = [task.name for task in snapshot.tasks()]
    if name in known:
        return TaskSpec.from_json(snapshot.task(name, version or None).spec)
    if version or name not in available():
        raise TaskError(
            f"task {ref!r}: this archive has {', '.join(known) or 'none'}; built in are "
            f"{', '.join(available())}"
        )
    return builtin_spec(name)
