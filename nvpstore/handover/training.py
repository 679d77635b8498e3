"""Stored frames as a PyTorch dataset: features at a cut, or pixels, with whatever columns a query gave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from nvpstore.archive import Archive
from nvpstore.errors import UsageError
from nvpstore.handover.chunks import Chunk, Order, chunks_of, given_out
from nvpstore.handover.reading import Opened, PixelReader, Place, Reader, cut_reader

BATCH = 32
MIX = 8  # chunks whose frames are dealt into batches together


class StoredBatch(NamedTuple):
    """`tensors` each [t, …]; `rows` [t] of the table that chose the frames, and its `columns`, by name:
    numbers as tensors [t], other values as lists."""

    tensors: tuple[Tensor, ...]
    rows: Tensor
    columns: dict[str, Any]


class StoredFrames(IterableDataset[StoredBatch]):
    """Batches of frames, for `DataLoader(dataset, batch_size=None, num_workers=…)`.

    Groups of chunks go to the loader's workers in turn; equal seeds, epochs and numbers of workers give
    equal batches in equal order. `resume` goes on within an epoch.
    """

    def __init__(self, reader: Reader, rows: pa.Table, order: Order) -> None:
        """`rows` has video_id, segment and frame; the rest of its columns comes along."""
        super().__init__()
        self.reader, self.order, self.table = reader, order, rows
        self.chunks: Sequence[Chunk] = chunks_of(rows, most=order.batch)
        self.epoch, self._done = 0, 0
        self._opened: Opened | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A worker opens the archive itself.
        return {**self.__dict__, "_opened": None}

    def resume(self, *, epoch: int, batches: int = 0) -> None:
        """The next pass is this epoch's, behind its first `batches`, counted over all workers."""
        if epoch < 0 or batches < 0:
            raise UsageError(f"epoch {epoch}, {batches} batches: neither can be negative")
        self.epoch, self._done = epoch, batches

    def __iter__(self) -> Iterator[StoredBatch]:
        info = get_worker_info()
        number_of_loader, workers = (0, 1) if info is None else (info.id, info.num_workers)
        groups = self.order.groups(len(self.chunks), self.epoch)
        counts = [self.order.batches(self._frames(group)) for group in groups]
        all_given, turn = given_out([sum(counts[w::workers]) for w in range(workers)], self._done)
        # The loader always asks its first worker first: that one takes the part of whose turn it is.
        worker = (number_of_loader + turn) % workers
        given = all_given[worker]
        opened = self._own(threads=None if info is None else 1)
        for number in range(worker, len(groups), workers):
            if given >= counts[number]:
                given -= counts[number]
                continue
            yield from self._group(opened, number, groups[number], skip=given)
            given = 0

    def __len__(self) -> int:
        """Batches of an epoch."""
        groups = self.order.groups(len(self.chunks), self.epoch)
        return sum(self.order.batches(self._frames(group)) for group in groups)

    def _own(self, *, threads: int | None) -> Opened:
        if self._opened is None:
            place = self.reader.place
            self._opened = Opened(place, threads=threads or place.settings.threads)
        return self._opened

    def _frames(self, group: NDArray[np.int64]) -> int:
        return sum(len(self.chunks[number].rows) for number in group.tolist())

    def _group(
        self, opened: Opened, number: int, group: NDArray[np.int64], *, skip: int
    ) -> Iterator[StoredBatch]:
        chunks = [self.chunks[one] for one in group.tolist()]
        parts = [self._read(opened, chunk) for chunk in chunks]
        tensors = tuple(torch.cat(same) for same in zip(*parts, strict=True))
        rows = np.concatenate([chunk.rows for chunk in chunks])
        for places in self.order.deal(len(rows), number, self.epoch)[skip:]:
            at = torch.from_numpy(places)
            yield StoredBatch(
                tensors=tuple(tensor[at] for tensor in tensors),
                rows=torch.from_numpy(rows[places]),
                columns=_columns(self.table.take(pa.array(rows[places]))),
            )

    def _read(self, opened: Opened, chunk: Chunk) -> tuple[Tensor, ...]:
        frames = self.table["frame"].take(pa.array(chunk.rows)).to_numpy().astype(np.int64)
        return self.reader.read(opened, (chunk.video_id, chunk.segment), frames)


def _columns(rows: pa.Table) -> dict[str, Any]:
    return {name: _values(rows[name]) for name in rows.schema.names}


def _values(column: pa.ChunkedArray) -> Any:
    numbers = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if numbers and not column.null_count:
        return torch.from_numpy(column.to_numpy().copy())
    return column.to_pylist()


# ---------------------------------------------------------------- what callers make


def features(
    archive: Archive,
    task: str,
    rows: pa.Table,
    *,
    cut: str | None = None,
    batch: int = BATCH,
    mix: int = MIX,
    seed: int | None = 0,
    device: str = "cpu",
) -> StoredFrames:
    """The frames of `rows` at a cut of a task's backbone, decoded to a shallow stage and adapted.

    `rows` is any query's, with video_id, segment and frame. `cut` None: the one that most segments have an
    adapter at; the others come by way of an earlier one, or of pixels (`reading.CutReader`). With `seed`
    None frames come in order. Raises UsageError, TaskError and RouteError as `reading.cut_reader` does.
    """
    reader = cut_reader(archive, task, cut=cut, device=device)
    return StoredFrames(reader, rows, Order(batch=batch, mix=mix, seed=seed))


def pixels(
    archive: Archive,
    rows: pa.Table,
    *,
    size: tuple[int, int] | None = None,
    batch: int = BATCH,
    mix: int = MIX,
    seed: int | None = 0,
    device: str = "cpu",
) -> StoredFrames:
    """The frames of `rows` as RGB uint8 [t, 3, h, w]: decoded, or the original's of what is only added.

    `size` = (h, w), which videos of several sizes need. Raises UsageError where they have no `size`.
    """
    place = Place(root=archive.store.root, settings=archive.settings, device=device)
    dataset = StoredFrames(PixelReader(place=place, size=size), rows, Order(batch=batch, mix=mix, seed=seed))
    if size is None:
        _check_alike(archive, dataset.chunks)
    return dataset


def _check_alike(archive: Archive, chunks: Sequence[Chunk]) -> None:
    wanted = {chunk.video_id for chunk in chunks}
    shown = {
        (row["height"], row["width"])
        for row in archive.catalog.snapshot().ask("SELECT video_id, height, width FROM idx.store.videos", {})
        if row["video_id"] in wanted
    }
    if len(shown) > 1:
        sizes = ", ".join(f"{height}×{width}" for height, width in sorted(shown))
        raise UsageError(f"videos of {len(shown)} sizes ({sizes}): give size=(height, width)")
