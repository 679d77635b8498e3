"""python -m benchmarks.latency [--archive demo/archive]: one answer by adapter route, against decoding.

Both sides see the same frames, threads, batch and dtype, run in turn in one process, with folded batch
norms, NHWC memory and the same compilation. Sides: `adapter` warm (weights in memory) and cold (fetched and
dequantised for each run); `pyav` (all threads decode, swscale straight to the backbone's input size, whole
backbone); `proxy` (the same on a file re-encoded to the backbone's height beforehand). Sampling: all
frames, and one per 0.5 s.

With `--device cuda` there is no archive: decoder, adapter and backbone of the same shapes, frames on the
device, no video decoding on either side.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.machine import write_result
from nvpstore.adapters.micro import MicroAdapter
from nvpstore.codec.build import build_architecture, find_preset
from nvpstore.codec.hnerv import Decoder, on_device
from nvpstore.tasks.registry import LoadedTask, builtin_spec, load

if TYPE_CHECKING:
    from nvpstore.archive import Archive

RESULTS = Path(__file__).parent / "results"
SEED = 0
EVERY_SECONDS = 0.5
SIDES = ("adapter", "adapter_cold", "pyav", "proxy")
Side = Callable[[], Tensor]  # top-1 classes of all frames asked for


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment's part in the adapter side: what is fetched and the frames asked of it."""

    number: int
    route: Any
    frames: np.ndarray[Any, np.dtype[np.int64]]


class AdapterSide:
    """Our route. The tails may be compiled; cold runs fetch and dequantise everything but the backbone."""

    def __init__(self, archive: Archive, video_id: str, every: float | None, batch: int, wrap: Wrap) -> None:
        from nvpstore.query.operators import TorchOperators

        self.operators = TorchOperators(archive.store, threads=torch.get_num_threads())
        self.snapshot = archive.catalog.snapshot()
        self.video_id, self.batch, self.wrap = video_id, batch, wrap
        self.scan, self.segments = planned(archive, video_id, every)
        self.tails: dict[str, nn.Module] = {}
        self.handles = [self._fetch(segment) for segment in self.segments]

    def warm(self) -> Tensor:
        return torch.cat([self._answer(s, *h) for s, h in zip(self.segments, self.handles, strict=True)])

    def cold(self) -> Tensor:
        return torch.cat([self._answer(segment, *self._fetch(segment)) for segment in self.segments])

    def _fetch(self, segment: Segment) -> tuple[Any, Any]:
        route = segment.route
        handle = self.operators.fetch(self.snapshot, self.video_id, segment.number, route.stage)
        return handle, self.operators.load(self.snapshot, route, self.scan)

    @torch.inference_mode()
    def _answer(self, segment: Segment, handle: Any, loaded: Any) -> Tensor:
        if loaded.cut not in self.tails:
            self.tails[loaded.cut] = self.wrap(loaded.task.backbone.tail(loaded.cut))
        tail, answers = self.tails[loaded.cut], []
        for at in range(0, len(segment.frames), self.batch):
            taps = self.operators.decode(handle, segment.frames[at : at + self.batch], segment.route.stages)
            answers.append(tail(*self.operators.adapt(taps, loaded)).argmax(-1))
        return torch.cat(answers)


class PixelSide:
    """What people do today: decode with PyAV on all threads, scale, run the whole backbone."""

    def __init__(self, file: Path, task: LoadedTask, wanted: Sequence[int], batch: int, wrap: Wrap) -> None:
        self.file, self.wanted, self.batch = file, set(wanted), batch
        self.input = task.spec.preprocessing
        self.mean, self.std = self.input.mean[0], self.input.std[0]
        self.whole = wrap(task.backbone.graph)

    @torch.inference_mode()
    def run(self) -> Tensor:
        # Decoding first: in turns, the decoder's threads and torch's would fight for the cores.
        pictures = list(self._pictures())
        batches = range(0, len(pictures), self.batch)
        return torch.cat([self._answer(pictures[at : at + self.batch]) for at in batches])

    def _pictures(self) -> Any:
        import av

        last = max(self.wanted)
        with av.open(str(self.file)) as container:
            container.streams.video[0].thread_type = "AUTO"
            for i, frame in enumerate(container.decode(video=0)):
                if i in self.wanted:
                    # One swscale pass from YUV to RGB at the input size: the fastest way there.
                    yield frame.to_ndarray(
                        format="rgb24",
                        width=self.input.width,
                        height=self.input.height,
                        interpolation="BILINEAR",
                    )
                if i == last:
                    return

    def _answer(self, pictures: Sequence[Any]) -> Tensor:
        # TxHxWxC is NHWC memory already: the permuted view needs no copy.
        x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        classes: Tensor = self.whole((x.float() - self.mean) / self.std).argmax(-1)
        return classes


Wrap = Callable[[nn.Module], nn.Module]
WRAPS: Mapping[str, Wrap] = {
    "eager": lambda module: module,
    "compiled": lambda module: torch.compile(module, dynamic=False),  # type: ignore[dict-item]
}


def planned(archive: Archive, video_id: str, every: float | None) -> tuple[Any, list[Segment]]:
    """The adapter route and frames of each segment, as the planner chooses them."""
    option = f"every := {every}, " if every else ""
    table = f"labels({option}route := 'adapter', top := 1)"
    plan = archive.sql(f"EXPLAIN SELECT label FROM {table} WHERE video_id = '{video_id}'").plan
    (scan,) = plan.scans
    frames = scan.work["frame"].to_numpy()
    return scan, [
        Segment(number=key[1], route=scan.routes[key], frames=frames[start:stop])
        for key, (start, stop) in scan.frames_by_segment().items()
    ]


def write_proxy(source: Path, out: Path, height: int) -> Path:
    """`source` re-encoded at `height` (H.264, crf 18): the cheapest file to decode."""
    import av

    with av.open(str(source)) as reader, av.open(str(out), "w") as writer:
        from_stream = reader.streams.video[0]
        width = round(from_stream.width * height / from_stream.height / 2) * 2
        stream = writer.add_stream("libx264", rate=from_stream.average_rate, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in reader.decode(from_stream):
            small = frame.reformat(width=width, height=height, format="yuv420p")
            writer.mux(stream.encode(small))
        writer.mux(stream.encode())
    return out


def time_in_turn(sides: Mapping[str, Side], *, repeats: int, frames: int) -> dict[str, Any]:
    """Milliseconds a frame of each side, run A B C A B C … after a warm-up; medians of ratios in pairs."""
    for side in sides.values():
        side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    result: dict[str, Any] = {
        name: {
            "ms_a_frame": 1e3 * statistics.median(times) / frames,
            "ms_a_frame_spread": [1e3 * min(times) / frames, 1e3 * max(times) / frames],
        }
        for name, times in seconds.items()
    }
    first, *others = sides
    result["speed_up_of_" + first] = {
        other: statistics.median(b / a for a, b in zip(seconds[first], seconds[other], strict=True))
        for other in others
    }
    return result


def measure_archive(args: argparse.Namespace) -> dict[str, Any]:
    import nvpstore
    from nvpstore.storage.originals import source_path

    archive = nvpstore.open(args.archive)
    task = load(builtin_spec("labels"))
    results = []
    for video in archive.videos():
        indexed = archive.catalog.snapshot().video(video["video_id"])
        source = source_path(archive.store, indexed.source_uri)
        if source is None or not source.is_file():
            raise SystemExit(f"{video['name']}: the original is needed for the other side")
        with tempfile.TemporaryDirectory() as folder:
            proxy = write_proxy(source, Path(folder) / "proxy.mp4", task.spec.preprocessing.height)
            results += [
                measure_video(archive, video, source, proxy, task, every, mode, batch, args.repeats)
                for every in (None, EVERY_SECONDS)
                for mode in args.modes
                for batch in args.batch
            ]
    best = best_against_best(results)
    return {"question": "latency", "seed": SEED, "dtype": "float32", "best": best, "videos": results}


def best_against_best(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each side at the batch that suits it: early layers like small ones, tails large ones."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in results:
        groups.setdefault((row["video"], row["sampling"], row["mode"]), []).append(row)
    best = []
    for (video, sampling, mode), rows in groups.items():
        times = {side: min(row[side]["ms_a_frame"] for row in rows) for side in SIDES}
        ratios = {side: times[side] / times["adapter"] for side in SIDES[1:]}
        best.append(
            {"video": video, "sampling": sampling, "mode": mode, "ms_a_frame": times, "speed_up": ratios}
        )
    return best


def measure_video(
    archive: Archive,
    video: Mapping[str, Any],
    source: Path,
    proxy: Path,
    task: LoadedTask,
    every: float | None,
    mode: str,
    batch: int,
    repeats: int,
) -> dict[str, Any]:
    wrap = WRAPS[mode]
    ours = AdapterSide(archive, video["video_id"], every, batch, wrap)
    wanted = [int(frame) for segment in ours.segments for frame in segment.frames]
    pixels = PixelSide(source, task, wanted, batch, wrap)
    small = PixelSide(proxy, task, wanted, batch, wrap)
    sides = {"adapter": ours.warm, "adapter_cold": ours.cold, "pyav": pixels.run, "proxy": small.run}
    timed = time_in_turn(sides, repeats=repeats, frames=len(wanted))
    same = (ours.warm() == pixels.run()).float().mean()
    return {
        "video": video["name"],
        "frames": len(wanted),
        "sampling": "all" if every is None else f"one per {every} s",
        "mode": mode,
        "batch": batch,
        "routes": sorted({f"stage {s.route.stage} -> {s.route.cut}" for s in ours.segments}),
        "fetched_bytes": sum(h.prefix_bytes + h.latents_bytes + r.route_bytes for h, r in ours.handles),
        "answers_equal": float(same),
        **timed,
    }


@torch.inference_mode()
def measure_shapes(args: argparse.Namespace) -> dict[str, Any]:
    """Decode, adapt and tail against resize and whole backbone, by shapes alone, on `args.device`."""
    torch.manual_seed(SEED)
    task = load(builtin_spec("labels"), args.device)
    arch = build_architecture(272, 640, 128, find_preset("demo"))
    cut = task.backbone.cut(args.cut)
    stages = ("0", "1")
    decoder = on_device(Decoder(arch, last=stages[-1]).eval(), args.device)
    adapter = MicroAdapter(stages, [arch.stage_shape(s)[0] for s in stages], cut.shapes).to(args.device)
    results = []
    for batch in (1, 32):
        latents = torch.randn(batch, *arch.latent_shape, device=args.device)
        rgb = torch.randint(0, 256, (batch, 3, 272, 640), dtype=torch.uint8, device=args.device)
        tail, pre = task.backbone.tail(args.cut), task.spec.preprocessing
        sides: dict[str, Side] = {
            "adapter": lambda z=latents, t=tail: t(*adapter(decoder.taps(z, stages))).argmax(-1),
            "whole": lambda x=rgb, p=pre: task.backbone.whole(p.apply(x)).argmax(-1),
        }
        timed = time_in_turn(sides, repeats=max(20, args.repeats), frames=batch)
        results.append({"batch": batch, "route": f"stage 1 -> {args.cut}", **timed})
    return {"question": "latency by shapes, no video decoding", "device": args.device, "batches": results}


def summary(result: Mapping[str, Any]) -> str:
    lines = []
    for row in result.get("videos", result.get("batches", ())):
        speed_up = row["speed_up_of_adapter"]
        what = " ".join(str(row[key]) for key in ("video", "sampling", "mode") if key in row)
        times = ", ".join(f"{n} {row[n]['ms_a_frame']:.2f} ms" for n in ("adapter", *speed_up))
        ratios = ", ".join(f"{ratio:.1f}x {n}" for n, ratio in speed_up.items())
        lines.append(f"{what} batch {row['batch']}: {times}; adapter faster: {ratios}")
    for row in result.get("best", ()):
        ratios = ", ".join(f"{ratio:.1f}x {n}" for n, ratio in row["speed_up"].items())
        lines.append(f"{row['video']} {row['sampling']} {row['mode']}, each at its best batch: {ratios}")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archive", default="demo/archive")
    parser.add_argument("--out", type=Path, default=RESULTS / "latency.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--clip", type=Path, help="ignored: kept for a common command line of GPU parts")
    parser.add_argument("--cut", default="blocks.11")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--modes", nargs="+", choices=tuple(WRAPS), default=["eager"])
    args = parser.parse_args()
    if min(args.batch) < 1 or args.repeats < 1:
        parser.error("--batch and --repeats must be at least 1")
    return args


if __name__ == "__main__":
    arguments = parse_arguments()
    measured = measure_shapes(arguments) if arguments.device == "cuda" else measure_archive(arguments)
    write_result(arguments.out, measured)
    print(summary(measured))
