"""A batch's files as a Delta table (extra `delta`) or an Iceberg table (extra `iceberg`)."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from nvpstore.batches.output import Manifest, Output
from nvpstore.errors import IntegrityError, UsageError
from nvpstore.storage.contract import ObjectStore
from nvpstore.storage.objects import open_store
from nvpstore.types import StoredObject

_WHOLE = re.compile(r"-?\d{1,18}")
_RUN = "nvpstore.run"  # a snapshot's property: which batch and run it added


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeReport:
    """Runs of a batch that were added now, and their rows; `known` were there already."""

    uri: str
    added: tuple[int, ...]
    rows: int
    known: tuple[int, ...]


def write_delta(batch: str, table: str, *, options: dict[str, str] | None = None) -> LakeReport:
    """Add the runs of a batch's output `batch` to the Delta table at URI `table`, each as one transaction.

    A transaction carries the batch's digest and the run's number, so that a rerun adds nothing twice.
    `options` are the object store's, as `deltalake` takes them. Raises UsageError where deltalake is not
    installed or no batch finished at `batch`, IntegrityError where a file is not the one that was committed.
    """
    delta = _imported("deltalake", "delta")
    store, manifests = _finished(batch)
    app = _app(manifests)
    last = -1
    if delta.DeltaTable.is_deltatable(table, options):
        found = delta.DeltaTable(table, storage_options=options).transaction_version(app)
        last = -1 if found is None else int(found)
    for manifest in manifests[last + 1 :]:
        delta.write_deltalake(
            table,
            _read(store, manifest),
            mode="append",
            storage_options=options,
            commit_properties=delta.CommitProperties(
                app_transactions=[delta.Transaction(app_id=app, version=manifest.run)]
            ),
        )
    return _report(table, manifests, last)


def write_iceberg(batch: str, catalog: Any, name: str) -> LakeReport:
    """Add the runs of a batch's output to the table `name` (namespace.table) of a pyiceberg catalog.

    Each run is one snapshot whose summary names it: a rerun adds nothing twice, as long as the snapshots
    are kept. Two at once may both add a run: Iceberg's appends do not conflict.
    """
    errors = _imported("pyiceberg.exceptions", "iceberg")
    store, manifests = _finished(batch)
    app = _app(manifests)
    try:
        table = catalog.load_table(name)
    except errors.NoSuchTableError:
        table = catalog.create_table(name, schema=_read(store, manifests[0]).schema)
    runs = [_run_of(snapshot, app) for snapshot in table.metadata.snapshots]
    last = max((run for run in runs if run is not None), default=-1)
    for manifest in manifests[last + 1 :]:
        table.append(_read(store, manifest), snapshot_properties={_RUN: f"{app} {manifest.run}"})
    return _report(name, manifests, last)


def _imported(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise UsageError(f"this needs {module.partition('.')[0]}: pip install 'nvpstore[{extra}]'") from cause


def _finished(batch: str) -> tuple[ObjectStore, list[Manifest]]:
    store = open_store(batch)
    manifests = Output(store).manifests()
    if not manifests:
        raise UsageError(f"{batch}: no batch finished there")
    return store, manifests


def _app(manifests: Sequence[Manifest]) -> str:
    """One name for all runs of a statement."""
    return f"nvpstore-{hashlib.sha256(manifests[0].sql.encode()).hexdigest()[:32]}"


def _run_of(snapshot: Any, app: str) -> int | None:
    said = (snapshot.summary.additional_properties if snapshot.summary else {}).get(_RUN, "")
    name, _, run = said.partition(" ")
    return int(run) if name == app else None


def _read(store: ObjectStore, manifest: Manifest) -> pa.Table:
    """A run's rows, its files verified; columns that made folders are back."""
    tables = pa.concat_tables(_tables(store, manifest), promote_options="default")
    return tables.select(list(manifest.columns))


def _tables(store: ObjectStore, manifest: Manifest) -> Iterator[pa.Table]:
    folders = _folders(file.key for file in manifest.files)
    for file in manifest.files:
        table = pq.read_table(pa.BufferReader(_verified(store, file)))
        for name, value in ds.get_partition_keys(folders.parse(f"/{file.key}")).items():
            field = folders.schema.field(name)
            table = table.append_column(field, pa.array([value] * table.num_rows, field.type))
        yield table


def _folders(keys: Iterable[str]) -> ds.Partitioning:
    """How a batch's folders say columns: as numbers where all of them are, else as text."""
    values: dict[str, set[str]] = {}
    for key in keys:
        for part in key.split("/")[:-1]:
            name, _, value = part.partition("=")
            values.setdefault(name, set()).add(value)
    fields = [
        pa.field(name, pa.int64() if all(_WHOLE.fullmatch(v) for v in said) else pa.string())
        for name, said in values.items()
    ]
    return ds.partitioning(pa.schema(fields), flavor="hive")


def _verified(store: ObjectStore, file: StoredObject) -> bytes:
    data = store.get(file.key)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise IntegrityError(f"{file.key} differs from what its batch committed")
    return data


def _report(uri: str, manifests: Sequence[Manifest], last: int) -> LakeReport:
    new = manifests[last + 1 :]
    return LakeReport(
        uri=uri,
        added=tuple(manifest.run for manifest in new),
        rows=sum(manifest.rows for manifest in new),
        known=tuple(manifest.run for manifest in manifests[: last + 1]),
    )
