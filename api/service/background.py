"""Query jobs: run in the server's own process, where they share decodes with the queries of requests.

An answer is kept as Parquet for a day, or for as long as its job.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from nvpstore.api.jobs.attempt import Attempt
from nvpstore.api.jobs.failures import described
from nvpstore.api.jobs.job import Lease
from nvpstore.api.jobs.requests import QueryJob
from nvpstore.api.jobs.spool import check_free
from nvpstore.api.service.answers import answers_folder
from nvpstore.api.service.formats import FORMATS, Notes
from nvpstore.api.service.state import Service
from nvpstore.errors import NotFound, QueryError, QueryTimeout, StoreError
from nvpstore.query.children import CHILDREN
from nvpstore.query.progress import QueryProgress
from nvpstore.query.run import Stream
from nvpstore.storage.keys import new_attempt

AT_ONCE = 2
JOB_SECONDS = 6 * 3600.0  # of a query that nobody waits for, where NVP_QUERY_TIMEOUT says nothing
ANSWER_BYTES = 16 << 30
KEPT_SECONDS = 24 * 3600.0
_POLL_SECONDS = 1.0
_SWEEP_SECONDS = 600.0
_log = logging.getLogger("nvpstore.service")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """`done` of `total` frames are answered, a frame counted once a task that reads it."""

    phase: str = "query"
    done: int
    total: int
    psnr: float | None = None
    eta_seconds: float | None


class QueryRunner:
    """Does the jobs of kind "query" of a server, `at_once` of them at the same time."""

    def __init__(
        self, service: Service, *, at_once: int = AT_ONCE, clock: Callable[[], float] = time.time
    ) -> None:
        self._service, self._clock = service, clock
        self._folder = answers_folder(service.settings)
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(f"queries-{new_attempt()}",), name="query-jobs")
            for _ in range(at_once)
        ]
        self._threads.append(threading.Thread(target=self._tidy, name="query-answers"))

    def start(self) -> None:
        CHILDREN.start()  # the first query finds some waiting
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Gives unfinished jobs back: they begin again with the next server."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def sweep(self) -> list[Path]:
        """Removes answers that are a day old or whose jobs are forgotten; returns which."""
        until = self._clock() - KEPT_SECONDS
        old = [path for path in sorted(self._folder.glob("*.parquet")) if self._is_old(path.stem, until)]
        old += [path for path in sorted(self._folder.glob("*.part")) if path.stat().st_mtime < until]
        for path in old:
            path.unlink(missing_ok=True)
        return old

    def _is_old(self, job_id: str, until: float) -> bool:
        try:
            job = self._service.queue.get(job_id)
        except NotFound:
            return True
        return job.finished_at is not None and job.finished_at < until

    # ------------------------------------------------------------ its threads

    def _tidy(self) -> None:
        while True:
            with suppress(OSError, StoreError):  # again in a while
                self.sweep()
            if self._stopping.wait(_SWEEP_SECONDS):
                return

    def _work(self, name: str) -> None:
        while not self._stopping.is_set():
            try:
                lease = self._service.queue.claim(name, ("query",))
            except StoreError as error:
                _log.error("no job can be claimed: %s", error)
                lease = None
            if lease is None:
                self._stopping.wait(_POLL_SECONDS)
            else:
                self._attempt(lease)

    def _attempt(self, lease: Lease) -> None:
        cancel, began = threading.Event(), time.monotonic()
        attempt = Attempt(
            self._service.queue,
            lease,
            spool_dir=self._service.settings.spool_dir,
            stopping=self._stopping,
            stall_seconds=math.inf,  # queries have a time limit of their own
            leave=lambda _: None,  # the process is the server
            alive=lambda: cancel.set() if attempt.should_stop() else None,
        )
        with attempt:
            outcome = self._do(lease, attempt, cancel)
        self._service.metrics.query(time.monotonic() - began, outcome)

    def _do(self, lease: Lease, attempt: Attempt, cancel: threading.Event) -> str:
        """One attempt, however it ends; what came of it, in a word."""
        try:
            result = self._answer(lease, attempt, cancel)
        except Exception as error:
            if attempt.should_stop():
                attempt.stop()
                return "cancelled"
            failure = described(error)
            if not failure.expected:
                _log.error("job %s", lease.job.id, exc_info=error)
            attempt.fail(failure)
            return "timeout" if isinstance(error, QueryTimeout) else "failed"
        attempt.finish(result)
        return "done"

    # ------------------------------------------------------------ the answer

    def _answer(self, lease: Lease, attempt: Attempt, cancel: threading.Event) -> dict[str, Any]:
        """The job's result, its rows being in a file by then."""
        asked, job_id = QueryJob.from_json(lease.job.request), lease.job.id
        archive = self._service.archive
        limit = archive.settings.query_seconds
        stream = archive.stream(
            asked.sql,
            params=asked.params,
            progress=lambda progress: attempt.progress(_told(progress)),
            cancel=cancel,
            seconds=JOB_SECONDS if limit is None else limit,
            children=CHILDREN,
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f"{job_id}-{lease.attempt}.part"
        try:
            with closing(stream):
                rows = _write(stream, part)
            # Renamed when it is whole: whoever opens it finds all rows.
            part.replace(self._folder / f"{job_id}.parquet")
        finally:
            part.unlink(missing_ok=True)
        return {"file": f"{job_id}.parquet", "rows": rows, "format": asked.format}


def _told(progress: QueryProgress) -> Answered:
    return Answered(done=progress.frames_done, total=progress.frames_total, eta_seconds=progress.eta_seconds)


def _write(stream: Stream, path: Path) -> int:
    """Writes all rows as Parquet; returns how many. Raises QueryError for more than ANSWER_BYTES, StoreError
    where the disk becomes full.
    """
    with path.open("wb") as file:
        first: pa.RecordBatch = next(stream)
        rows = int(first.num_rows)
        writer = FORMATS["parquet"].writer(first.schema)
        file.write(writer.begin() + writer.batch(first))
        for batch in stream:
            piece = writer.batch(batch)
            check_free(path.parent, len(piece))
            file.write(piece)
            rows += int(batch.num_rows)
            if file.tell() > ANSWER_BYTES:
                raise QueryError(f"the answer has more than {ANSWER_BYTES} bytes: ask for less at once")
        file.write(writer.end(Notes(skipped=stream.skipped, warnings=stream.warnings)))
    return rows
