"""Saved views: SELECTs under a name, kept in the archive, that its queries can name like tables."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime

from nvpstore.catalog import Catalog, Snapshot
from nvpstore.errors import CommitDropped, UsageError
from nvpstore.query.asking import Here
from nvpstore.query.bound import check_binds
from nvpstore.query.index import load_tasks
from nvpstore.query.parse import parse
from nvpstore.query.safety import lock_down
from nvpstore.query.views import MAX_VIEWS, load_views
from nvpstore.storage import keys
from nvpstore.storage.documents import encode_view
from nvpstore.storage.log import LogDraft
from nvpstore.types import SavedView
from nvpstore.upkeep.naming import check_table_name

_TRIES = 20  # others' changes of views and tasks between our reading and our writing
_CHECK_MEMORY = "256MiB"  # nothing is read


def save_view(catalog: Catalog, name: str, sql: str, *, reserved: Collection[str]) -> SavedView:
    """Save `sql` under `name`, in place of what is saved there; the same text again does no work.

    `reserved` are names of tasks that the archive may get. Raises UsageError for a name that no view can
    have, QueryError for a text that is not one SELECT over the archive's tables and views.
    """
    for _ in range(_TRIES):
        snapshot = catalog.snapshot()
        saved = {view.name: view for view in snapshot.views()}
        _check(snapshot, name, sql, reserved=reserved)
        if name in saved and saved[name].sql == sql:
            return saved[name]
        view = SavedView(name=name, sql=sql, saved_at=datetime.now(UTC))
        with suppress(CommitDropped):  # what was checked may not hold any more: check it again
            _commit(catalog, snapshot, name, view)
            return view
    raise CommitDropped(f"view {name}: others changed views {_TRIES} times meanwhile; try again later")


def drop_view(catalog: Catalog, name: str) -> SavedView:
    """Drop a saved view, and return what it was. Views that read it fail from now on, naming it.

    Raises UsageError for an unknown one.
    """
    for _ in range(_TRIES):
        snapshot = catalog.snapshot()
        saved = {view.name: view for view in snapshot.views()}
        if name not in saved:
            raise UsageError(f"no view {name!r} in this archive: it has {', '.join(saved) or 'none'}")
        with suppress(CommitDropped):
            _commit(catalog, snapshot, name, None)
            return saved[name]
    raise CommitDropped(f"view {name}: others changed views {_TRIES} times meanwhile; try again later")


def _commit(catalog: Catalog, snapshot: Snapshot, name: str, view: SavedView | None) -> None:
    log = catalog.log
    attempt = keys.new_attempt(later_than=snapshot.latest_attempt)
    objects = () if view is None else (log.store.put(keys.view_key(name, attempt), encode_view(view)),)
    try:
        log.append(
            LogDraft(kind="view", attempt=attempt, subject=name, objects=objects), after=snapshot.number
        )
    except CommitDropped:
        log.store.delete_all(obj.key for obj in objects)
        raise


# ---------------------------------------------------------------- what a view may be


def _check(snapshot: Snapshot, name: str, sql: str, *, reserved: Collection[str]) -> None:
    """Bind the view as a query of it would be, beside all others: circles and wrong names fail now."""
    with snapshot.connect() as con:
        lock_down(con, memory_limit=_CHECK_MEMORY, threads=1)
        tasks, saved = load_tasks(con), load_views(con, snapshot)
        names = {task.name for task in tasks}
        promised = dict.fromkeys(reserved, "it is a task that the archive may get")
        check_table_name(name, what="view", tasks=names, taken=promised)
        if name not in saved and len(saved) >= MAX_VIEWS:
            raise UsageError(f"view {name}: an archive has at most {MAX_VIEWS} views, as this one has")
        query = parse(f"SELECT * FROM {name}", names, saved={**saved, name: sql}, con=con)
        check_binds(Here(con), query, tasks)
