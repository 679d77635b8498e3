"""One step of a plan: a segment fetched and decoded once, and every scan's rows taken from it."""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Hashable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nvpstore.query.answers import steady_id
from nvpstore.query.chunks import batches, fitting_frames
from nvpstore.query.contract import Batch, RouteHandle, SegmentHandle, Steadied, SteadyHandle
from nvpstore.query.flights import Ask, weights_key
from nvpstore.query.plan import Group, Step, deepest
from nvpstore.query.routes import Route
from nvpstore.query.rows import attach
from nvpstore.query.scheduler import Cancelled
from nvpstore.query.shelves import Shelf
from nvpstore.types import RGB_STAGE, StoredObject

if TYPE_CHECKING:
    from nvpstore.query.plan import Scan
    from nvpstore.query.steps import Runner


class _Failed(Exception):
    """A part of a step that several scans read failed, for all of them."""

    def __init__(self, doing: str, cause: Exception) -> None:
        super().__init__(doing)
        self.doing, self.cause = doing, cause


class SegmentWork:
    """One step in flight: its handle, its routes, and the rows so far of each scan still alive.

    What another query does at this moment, or has left in memory, is taken from there.
    """

    def __init__(self, runner: Runner, step: Step, groups: list[Group], *, held: Container[int] = ()) -> None:
        self.runner = runner
        self.step = step
        self.key = (step.video_id, step.segment)
        self.identity: Hashable = None
        self.handle: SegmentHandle | None = None
        self._groups = groups
        self._alive = set(step.scans)
        self._routes: dict[int, RouteHandle] = {}
        self._steadiers: dict[int, SteadyHandle] = {}
        self._memories: dict[int, Any] = {}  # of scans with a stabilizer, after their frames so far
        scans = {index: runner.plan.scans[index] for index in step.scans}
        self._work = {index: scan.work_of(self.key) for index, scan in scans.items()}
        self._chosen = {index: scan.routes[self.key] for index, scan in scans.items()}
        self.stages = runner.plan.segments[self.key].stages
        self.rows: dict[int, list[pa.Table]] = {index: [] for index in step.scans}
        self._flowing = [
            index
            for index, scan in scans.items()
            if scan.options.on_error == "error"
            and index not in held
            and sum(index in group.scans for group in groups) == 1
        ]

    def run(self) -> Generator[dict[int, list[pa.Table]], None, None]:
        """Rows by scan, each scan's in the order of their frames but for those of several groups.

        A segment's come at once, or before they become more than their share of memory: not those of scans
        that may skip it, which have all of its rows or none, and of `held` ones, to which others belong.
        """
        self.runner.check()
        if self.step.source:
            self.identity = ("source", self.step.video_id)
        else:
            self._fetch()
        self._load_routes()
        for group in self._groups:
            for frames in self._batches(group):
                self.runner.check()
                if not self._alive & set(group.scans):
                    break
                self._batch(group, frames)
                self.runner.resident.keep_low()
                if self._flowing_bytes() > self.runner.limits.rows_bytes // 2:
                    yield {index: self.rows[index] for index in self._flowing if self.rows[index]}
                    self.rows |= {index: [] for index in self._flowing}
        yield {index: tables for index, tables in self.rows.items() if index in self._alive and tables}

    @cached_property
    def times(self) -> NDArray[np.float64]:
        """`ts` of all frames of the segment."""
        return self.runner.operators.times(self.runner.snapshot, *self.key)

    @cached_property
    def start_frame(self) -> int:
        """The first frame of the segment: clips are counted from it."""
        return self.runner.operators.start_frame(self.runner.snapshot, *self.key)

    def _flowing_bytes(self) -> int:
        return sum(table.nbytes for index in self._flowing for table in self.rows[index])

    def _batches(self, group: Group) -> Iterator[NDArray[np.int64]]:
        operators = self.runner.operators
        if self.handle is None:
            frame_bytes, start = operators.source_frame_bytes(self.runner.snapshot, self.step.video_id), 0
        else:
            frame_bytes, start = operators.frame_bytes(self.handle, group.taps), self.handle.start_frame
        frame_bytes *= max(self.runner.plan.scans[index].options.upscale for index in group.scans) ** 2
        fit = fitting_frames(
            self.runner.batch_frames, frame_bytes=frame_bytes, room_bytes=self.runner.limits.batch_bytes
        )
        if group.clip is None:
            return batches(group.frames, start=start, batch_frames=fit)
        start, span = self.start_frame, group.clip.span
        clips = batches(
            (group.frames - start) // span, start=0, batch_frames=max(1, fit // group.clip.frames)
        )
        return (start + span * some for some in clips)

    # ------------------------------------------------------------ weights

    def _fetch(self) -> None:
        runner, measured = self.runner, self.runner.measured
        facts = runner.plan.segments[self.key]
        stage = deepest(runner.plan, self.key, self._groups)
        enough = facts.stages[facts.stages.index(stage) :]

        def fetch(position: int) -> SegmentHandle:
            with measured.timed("fetch"):
                return runner.operators.fetch(runner.snapshot, *self.key, enough[position])

        try:
            self.identity = runner.operators.identity(runner.snapshot, *self.key)
            taken = runner.sharing.deepest_of(
                [weights_key(self.identity, name) for name in enough],
                fetch,
                size=runner.operators.size_bytes,
                check=runner.check,
            )
        except Cancelled:
            raise
        except Exception as cause:
            self._fail(set(self._alive), f"fetching stages up to {stage}", cause)
            return
        self.handle = taken.value
        measured.prefix_bytes += facts.prefix(stage)
        measured.latents_bytes += facts.latents_bytes
        if taken.made:
            measured.fetches += 1
            measured.traffic += taken.value.traffic

    def _load_routes(self) -> None:
        for index in sorted(self._alive):
            scan, route = self.runner.plan.scans[index], self._chosen[index]
            try:
                if scan.task is not None:
                    self._load(index, route)
                if scan.stabilizer is not None:
                    self._load_steadier(index, scan.stabilizer)
            except Cancelled:
                raise
            except Exception as cause:
                self._fail({index}, f"loading the {route.route} route", cause)

    def _load(self, index: int, route: Route) -> None:
        runner, scan = self.runner, self.runner.plan.scans[index]
        assert scan.task is not None, "frames have no route to load"

        def load() -> RouteHandle:
            with runner.measured.timed("fetch"):
                return runner.operators.load(runner.snapshot, route, scan)

        taken = runner.sharing.once(
            (*_route_key(route), scan.task.version),
            load,
            shelf=Shelf.WEIGHTS,
            size=runner.operators.size_bytes,
            check=runner.check,
        )
        self._routes[index] = taken.value
        runner.note_route(route, taken)

    def _load_steadier(self, index: int, stored: StoredObject) -> None:
        runner = self.runner

        def load() -> SteadyHandle:
            with runner.measured.timed("fetch"):
                return runner.operators.steadier(runner.snapshot, stored, runner.plan.scans[index].task)

        taken = runner.sharing.once(
            ("stabilizer", stored.sha256),
            load,
            shelf=Shelf.WEIGHTS,
            size=lambda handle: int(handle.size_bytes),
            check=runner.check,
        )
        self._steadiers[index] = taken.value
        if taken.made:
            runner.measured.traffic += taken.value.traffic

    # ------------------------------------------------------------ batches

    def _batch(self, group: Group, frames: NDArray[np.int64]) -> None:
        batch = _Batch(self, group, frames)
        readers = [index for index in group.scans if index in self._alive]
        for index in readers:
            if index not in self._alive:
                continue
            try:
                self.rows[index].append(self._scan_rows(index, batch))
            except Cancelled:
                raise
            except _Failed as failed:
                self._fail(set(group.scans) & self._alive, failed.doing, failed.cause)
            except Exception as cause:
                self._fail({index}, "answering", cause)
        reads = len(batch.pictures) * len(readers)
        self.runner.measured.decoded(group.stage, frames=batch.made, reads=reads)

    def _scan_rows(self, index: int, batch: _Batch) -> pa.Table:
        """The task table's rows of a batch; its answers may be another query's."""
        runner, scan = self.runner, self.runner.plan.scans[index]
        route, options = self._chosen[index], scan.options
        places = np.searchsorted(self._work[index]["frame"].to_numpy(), batch.frames)
        work = self._work[index].take(pa.array(places))
        # Not only where rows are to be made: what another query left in memory has no memory of the frames.
        steady = scan.stabilizer is not None and options.upscale == 1
        steadied = self._steadied(index, route, batch, work) if steady else None

        def answer() -> pa.Table:
            outputs = self._outputs(index, route, batch) if steadied is None else steadied.outputs
            with runner.measured.timed("rows"):
                return runner.operators.rows(scan, outputs, batch.described(work["ts"].to_numpy()))

        version = None if scan.task is None else scan.task.version
        asked = (version, scan.columns, options.top, options.image_format, options.upscale, steady_id(scan))
        rows = self.once(
            ("rows", *asked, *_route_key(route), batch.key), answer, size=lambda t: int(t.nbytes)
        )
        runner.keep(index, self.key, batch.frames, rows)
        return attach(scan, work, route, rows)

    def _outputs(self, index: int, route: Route, batch: _Batch) -> Any:
        """The task's outputs; pixels for `frames`."""
        scan = self.runner.plan.scans[index]
        if scan.task is None and scan.options.upscale > 1:
            return self._upscaled(scan, batch)
        if scan.task is None:
            return batch.features[RGB_STAGE]
        key = ("outputs", scan.task.version, *_route_key(route), batch.key)
        return self.once(
            key,
            lambda: self._answered(self._routes[index], route, batch.features),
            size=self.runner.operators.size_bytes,
        )

    def _upscaled(self, scan: Scan, batch: _Batch) -> Any:
        """Pixels of larger pictures: of the whole scene's frames, not of the batch's alone."""
        runner = self.runner
        batch.made = len(batch.frames)
        with runner.sharing.scheduler.device(runner.check), runner.measured.timed("tail"):
            return runner.operators.upscaled(
                runner.snapshot,
                *self.key,
                batch.frames,
                factor=scan.options.upscale,
                stabilizer=scan.stabilizer,
            )

    def _steadied(self, index: int, route: Route, batch: _Batch, work: pa.Table) -> Steadied:
        """The same, made steady by what was remembered of the scan's frames before this batch."""
        runner, scan = self.runner, self.runner.plan.scans[index]
        before, handle = self._memories.get(index), self._steadiers[index]

        def answer() -> Steadied:
            features, ts = batch.features, work["ts"].to_numpy()
            with runner.sharing.scheduler.device(runner.check):
                start = features[RGB_STAGE] if route.route != "adapter" else None
                if start is None:
                    with runner.measured.timed("adapt"):
                        taps = {stage: features[stage] for stage in route.stages}
                        start = runner.operators.adapt(taps, self._routes[index])
                with runner.measured.timed("tail"):
                    return runner.operators.steady(handle, self._routes.get(index), start, ts, before)

        version = None if scan.task is None else scan.task.version
        key = ("steadied", version, steady_id(scan), *_route_key(route), batch.key)
        steadied: Steadied = self.once(key, answer, size=lambda value: int(value.size_bytes))
        self._memories[index] = steadied.memory
        return steadied

    def _answered(self, handle: RouteHandle, route: Route, features: Mapping[str, Any]) -> Any:
        """`features` through the route: adapter and tail, or the whole backbone."""
        runner = self.runner
        with runner.sharing.scheduler.device(runner.check):
            start: Any = None
            if route.route == "adapter":
                with runner.measured.timed("adapt"):
                    start = runner.operators.adapt({s: features[s] for s in route.stages}, handle)
            else:
                start = features[RGB_STAGE]
            with runner.measured.timed("tail"):
                return runner.operators.tail(handle, start)

    def once(self, key: tuple[Hashable, ...], make: Callable[[], Any], *, size: Callable[[Any], int]) -> Any:
        """A value of this segment that equal steps of other queries share."""
        runner = self.runner
        return runner.sharing.once(
            (self.identity, *key), make, shelf=Shelf.FEATURES, size=size, check=runner.check
        ).value

    def _fail(self, scans: set[int], doing: str, cause: Exception) -> None:
        self._alive -= scans
        self.runner.fail(self.step, scans, doing, cause)


class _Batch:
    """Frames of one group, and their features once somebody needs them. `pictures` are the frames that have
    to be decoded for them; `made`: how many were."""

    def __init__(self, work: SegmentWork, group: Group, frames: NDArray[np.int64]) -> None:
        self._work, self._group, self.frames = work, group, frames
        self.pictures = frames
        self.made = 0
        if group.clip is not None:
            self.pictures = group.clip.pictures(frames, end=work.start_frame + len(work.times))
        self.key = self.pictures.tobytes()

    def described(self, ts: NDArray[np.float64]) -> Batch:
        work, clip = self._work, self._group.clip
        end_ts = None
        if clip is not None:
            last = clip.last(self.frames, end=work.start_frame + len(work.times))
            end_ts = work.times[last - work.start_frame]
        facts = work.runner.plan.segments[work.key]
        return Batch(
            video_id=work.step.video_id,
            segment=work.step.segment,
            frames=self.frames,
            ts=ts,
            height=facts.height,
            width=facts.width,
            end_ts=end_ts,
        )

    @cached_property
    def features(self) -> Mapping[str, Any]:
        try:
            return self._read_source() if self._work.step.source else self._decode()
        except Cancelled:
            raise
        except Exception as cause:
            stage = self._group.stage
            raise _Failed(f"decoding to stage {stage}" if stage else "reading the source", cause) from cause

    def _read_source(self) -> Mapping[str, Any]:
        runner, step = self._work.runner, self._work.step

        def read() -> Mapping[str, Any]:
            with runner.measured.timed("source"):
                features = runner.operators.source(runner.snapshot, step.video_id, self.pictures)
            runner.note_source(step)
            self.made = len(self.pictures)
            return features

        features: Mapping[str, Any] = self._work.once(
            ("pixels", self.key), read, size=runner.operators.size_bytes
        )
        return features

    def _decode(self) -> Mapping[str, Any]:
        work, runner = self._work, self._work.runner
        ask = Ask(handle=work.handle, frames=self.pictures, taps=self._group.taps, stages=work.stages)
        taken = runner.sharing.decode(
            work.identity, ask, self._decode_now, size=runner.operators.size_bytes, check=runner.check
        )
        self.made = len(self.pictures) if taken.made else 0
        features: Mapping[str, Any] = taken.value
        return features

    def _decode_now(self, ask: Ask) -> Mapping[str, Any]:
        operators = self._work.runner.operators
        with self._work.runner.measured.timed("decode"):
            return operators.decode(ask.handle, ask.frames, ask.taps)


def _route_key(route: Route) -> tuple[Hashable, ...]:
    return (route.route, route.stages, route.cut, route.adapter)
