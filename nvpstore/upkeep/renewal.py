"""Checkpoints after something was deleted: a fresh one, and none that still tells of it."""

from __future__ import annotations

from nvpstore.catalog import Catalog
from nvpstore.storage.checkpoints import list_checkpoints

_TRIES = 10  # erasures by others while one checkpoint is written


def renew_checkpoints(catalog: Catalog) -> None:
    """Replace all stored checkpoints by one of the newest entry; nothing where there are none.

    Raises StoreError where the storage fails.
    """
    store = catalog.log.store
    for _ in range(_TRIES):
        older = list_checkpoints(store)
        if not older:
            return
        number = catalog.checkpoint(force=True)
        if number is not None:  # else an erasure came meanwhile, and its own renewal or this one is next
            # The new one first: a fresh machine always finds one.
            store.delete_all(found.key for found in older if found.number < number)
            return
