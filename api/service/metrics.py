"""What the server counts, in the format of Prometheus."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nvpstore.api.jobs.job import Job, JobKind, JobState
from nvpstore.api.jobs.queue import JobQueue
from nvpstore.errors import StoreError
from nvpstore.query.measured import TOTALS

REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
QUERY_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
FIT_SECONDS = (10, 30, 60, 300, 600, 1800, 3600, 3 * 3600, 12 * 3600, 48 * 3600)
PSNR_DB = (20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 45)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
LOOKED_BACK = 1_000  # jobs of a kind; that many end between two scrapes at most


class Metrics:
    """One server's figures. All methods may be called from any thread."""

    def __init__(self, queue: JobQueue | None = None) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._requests = Histogram(
            "nvp_request_seconds",
            "Requests, until their last byte",
            ["method", "route", "status"],
            buckets=REQUEST_SECONDS,
            registry=registry,
        )
        self._queries = Histogram(
            "nvp_query_seconds", "Queries", ["outcome"], buckets=QUERY_SECONDS, registry=registry
        )
        self._answered = Counter("nvp_answer_bytes", "Bytes of answers", registry=registry)
        self._uploaded = Counter("nvp_upload_bytes", "Bytes of uploaded videos", registry=registry)
        self._workers = Gauge("nvp_workers_alive", "Worker processes that live", registry=registry)
        registry.register(_Work())
        if queue is not None:
            registry.register(_Jobs(queue))
            registry.register(_Fits(queue))

    def request(self, method: str, route: str, status: int, *, seconds: float, sent_bytes: int) -> None:
        """A request to `route`, which is a template: labels must not grow with what callers think of."""
        known = method if method in METHODS else "other"
        self._requests.labels(known, route, str(status)).observe(seconds)
        self._answered.inc(sent_bytes)

    def query(self, seconds: float, outcome: str) -> None:
        """A query that ended; `outcome` is one of a few words, such as `done`, `failed`, `cancelled`."""
        self._queries.labels(outcome).observe(seconds)

    def uploaded(self, size_bytes: int) -> None:
        self._uploaded.inc(size_bytes)

    def watch_workers(self, alive: Callable[[], int]) -> None:
        """Ask `alive` how many workers live whenever figures are read."""
        self._workers.set_function(alive)

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self.registry)


class _Work(Collector):
    """What all queries of this process took."""

    def collect(self) -> Iterable[Metric]:
        took = TOTALS.read()
        return (
            _counter("nvp_store_read_bytes", "Bytes read from the object store", took.traffic.store_bytes),
            _counter("nvp_store_requests", "Reads of the object store", took.traffic.requests),
            _counter("nvp_cache_read_bytes", "Bytes read from the disk cache", took.traffic.cache_bytes),
            _counter("nvp_decoded_frames", "Frames decoded, or read from originals", took.frames),
            _counter(
                "nvp_shared_frames", "Frames whose decode served another scan too", took.shared_decodes
            ),
            _counter(
                "nvp_answered_frames", "Frames whose rows were stored already", took.answered_frames
            ),
        )  # fmt: skip


class _Jobs(Collector):
    """How many jobs there are, read from the queue when figures are."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue

    def describe(self) -> Iterable[Metric]:
        return [GaugeMetricFamily("nvp_jobs", "Jobs")]

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("nvp_jobs", "Jobs by kind and state", labels=["kind", "state"])
        try:
            counts = self._queue.counts()
        except StoreError:
            return  # /readyz says so; the other figures are still good
        for kind in get_args(JobKind):
            for state in get_args(JobState):
                family.add_metric([kind, state], counts.get((kind, state), 0))
        yield family


class _Fits(Collector):
    """Fits that workers finished since this server began: each is counted once, from its job's result."""

    def __init__(self, queue: JobQueue, *, clock: Callable[[], float] = time.time) -> None:
        self._queue, self._began = queue, clock()
        self._seen: set[str] = set()
        self._reading = threading.Lock()
        self._seconds = Histogram(
            "nvp_fit_seconds", "Time that fits took", buckets=FIT_SECONDS, registry=None
        )
        self._psnr = Histogram("nvp_fit_psnr_db", "PSNR of fitted videos", buckets=PSNR_DB, registry=None)

    def describe(self) -> Iterable[Metric]:
        return [*self._seconds.describe(), *self._psnr.describe()]

    def collect(self) -> Iterable[Metric]:
        with self._reading:
            try:
                self._look()
            except StoreError:
                return []
            return [*self._seconds.collect(), *self._psnr.collect()]

    def _look(self) -> None:
        kinds: tuple[JobKind, ...] = ("ingest", "fit")
        done = [job for kind in kinds for job in self._queue.jobs(state="done", kind=kind, limit=LOOKED_BACK)]
        recent = [job for job in done if (job.finished_at or 0) > self._began]
        for job in recent:
            if job.id not in self._seen:
                self._observe(job)
        self._seen = {job.id for job in recent}

    def _observe(self, job: Job) -> None:
        result = job.result or {}
        if result.get("already_stored"):
            return  # nothing was fitted
        if (seconds := result.get("fit_seconds")) is not None:
            self._seconds.observe(seconds)
        if (psnr := result.get("psnr")) is not None:
            self._psnr.observe(psnr)


def _counter(name: str, help_text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, help_text, value=value)
