"""python -m benchmarks.sharing [--repeats 5]: what queries save by sharing steps.

On an archive of drawn networks (benchmarks.drawn: shapes of the demo preset, answers that mean nothing), both
sides in turn in one process. `predicates`: eight queries with different predicates on the same two tasks, all
at once in one session, against eight fresh sessions in turn; a session has its own fetched weights, the
backbones are loaded once for both sides. `stages`: four tasks at four stages in one query, against the
deepest alone, and against one after another. `grouped`: one frame each of many segments of one architecture,
decoded one by one, against one grouped convolution a stage (weights stacked on the way, or before).
Answers that are stored are neither read nor written.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.drawn import SEED, Shape, draw_archive
from benchmarks.machine import write_result
from nvpstore.catalog import Catalog
from nvpstore.codec.build import build_architecture, find_preset
from nvpstore.codec.hnerv import Decoder, Stem, UpBlock, on_device
from nvpstore.config import Settings
from nvpstore.query.measured import Measured
from nvpstore.query.operators import TorchOperators
from nvpstore.query.request import Request
from nvpstore.query.result import Result
from nvpstore.query.run import execute
from nvpstore.storage.objects import open_store

RESULTS = Path(__file__).parent / "results"
# Stage and cut of each task's only route: the deeper the stage, the earlier the cut.
TASKS = {
    "shallow": ("1", "blocks.14"),
    "middle": ("2", "blocks.11"),
    "deep": ("3", "blocks.9"),
    "pixels": ("rgb", ""),
}
PREDICATES = (
    *("a.rank = 1", "a.score > 0.01", "b.score > 0.02", "a.label = b.label"),
    *("a.rank = 1 AND b.rank = 1", "a.label LIKE 'c%'", "b.label LIKE '%dog%'", "a.score + b.score > 0.05"),
)
PAIRED = (
    "SELECT a.frame, a.label, a.score, b.label, b.score FROM shallow a"
    " JOIN middle b USING (video_id, frame) WHERE {} ORDER BY ALL"
)
GROUPED_SEGMENTS = 32


class Counting(TorchOperators):
    """Counts the frames of every decode, by segment and deepest stage."""

    def __init__(self, session: Session) -> None:
        super().__init__(open_store(session.root), threads=session.settings.threads)
        self.decoded: Counter[tuple[int, int]] = Counter()

    def decode(self, handle: Any, frames: NDArray[Any], taps: tuple[str, ...]) -> Mapping[str, object]:
        self.decoded.update((handle.record.segment, int(frame)) for frame in frames)
        return super().decode(handle, frames, taps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An archive as a process that has just begun finds it: indexed, nothing fetched."""

    root: str
    settings: Settings

    def operators(self) -> Counting:
        return Counting(self)

    def ask(self, sql: str, operators: TorchOperators) -> Result:
        snapshot = Catalog(open_store(self.root), self.settings.cache_dir).snapshot()
        return execute(
            Request(sql=sql, snapshot=snapshot, operators_factory=lambda: operators, settings=self.settings)
        )


def seconds_of(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def measure_predicates(session: Session, repeats: int) -> dict[str, Any]:
    """Eight queries at once in one session against eight sessions in turn."""
    queries = [PAIRED.format(predicate) for predicate in PREDICATES]
    shared, alone, decodes = [], [], []
    for _ in range(repeats):
        operators = session.operators()
        seconds, together = seconds_of(lambda o=operators: at_once(session, queries, o))
        shared.append(seconds)
        decodes.append(max(operators.decoded.values()))
        seconds, apart = seconds_of(lambda: [session.ask(sql, session.operators()) for sql in queries])
        alone.append(seconds)
        if [one.fetchall() for one in together] != [one.fetchall() for one in apart]:
            raise SystemExit("queries at once and queries alone gave other rows")
    return {
        "queries": len(queries),
        "rows_equal": True,
        "at_once_seconds": spread(shared),
        "in_turn_seconds": spread(alone),
        "most_decodes_of_a_frame": max(decodes),
        "sooner": statistics.median(b / a for a, b in zip(shared, alone, strict=True)),
    }


def at_once(session: Session, queries: Sequence[str], operators: TorchOperators) -> list[Result]:
    with ThreadPoolExecutor(len(queries)) as pool:
        return list(pool.map(lambda sql: session.ask(sql, operators), queries))


def measure_stages(session: Session, repeats: int) -> dict[str, Any]:
    """Four tasks at four stages in one query, the deepest alone, and all four one after another."""
    first, *others = TASKS
    joins = " ".join(f"JOIN {name} USING (video_id, frame, rank)" for name in others)
    together_sql = (
        f"SELECT count({first}.label), {', '.join(f'min({n}.score)' for n in others)} FROM {first} {joins}"
    )
    one_sql = "SELECT count(label), min(score) FROM {}"
    seconds: dict[str, list[float]] = {"together": [], "deepest": [], "in_turn": []}
    decoding: dict[str, list[float]] = {"together": [], "deepest": [], "in_turn": []}
    counted: Counter[tuple[int, int]] = Counter()
    for _ in range(repeats):
        operators = session.operators()
        note(seconds, decoding, "together", lambda o=operators: [session.ask(together_sql, o)])
        counted |= operators.decoded
        note(
            seconds, decoding, "deepest", lambda: [session.ask(one_sql.format("pixels"), session.operators())]
        )
        note(
            seconds,
            decoding,
            "in_turn",
            lambda: [session.ask(one_sql.format(name), session.operators()) for name in TASKS],
        )
    pairs = zip(decoding["together"], decoding["deepest"], strict=True)
    walls = zip(seconds["together"], seconds["in_turn"], strict=True)
    return {
        "tasks": {name: {"stage": stage, "cut": cut} for name, (stage, cut) in TASKS.items()},
        "most_decodes_of_a_frame": max(counted.values()),
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "decode_seconds": {name: spread(values) for name, values in decoding.items()},
        "decode_against_deepest_alone": statistics.median(a / b for a, b in pairs),
        # Of the least times: other programs on the machine only ever add.
        "least_decode_against_deepest_alone": min(decoding["together"]) / min(decoding["deepest"]),
        "sooner_than_in_turn": statistics.median(b / a for a, b in walls),
    }


def note(
    seconds: dict[str, list[float]],
    decoding: dict[str, list[float]],
    name: str,
    work: Callable[[], list[Result]],
) -> None:
    took, results = seconds_of(work)
    seconds[name].append(took)
    measured = [result.measured for result in results]
    decoding[name].append(sum(m.seconds["decode"] for m in measured if isinstance(m, Measured)))


@torch.inference_mode()
def measure_grouped(shape: Shape, repeats: int) -> list[dict[str, Any]]:
    """One frame of each of many segments: a decoder each, against one grouped convolution a stage."""
    torch.manual_seed(SEED)
    arch = build_architecture(shape.height, shape.width, shape.frames, find_preset(shape.preset))
    found = []
    for stage in arch.stage_names[1:4]:
        decoders = [on_device(Decoder(arch, last=stage).eval(), "cpu") for _ in range(GROUPED_SEGMENTS)]
        latents = torch.randn(GROUPED_SEGMENTS, *arch.latent_shape)
        stacked = stack(decoders)
        sides: dict[str, Callable[[], Tensor]] = {
            "one_by_one": lambda d=decoders, z=latents, s=stage: torch.cat(
                [one.taps(z[i : i + 1], (s,))[s] for i, one in enumerate(d)]
            ),
            "grouped": lambda d=decoders, z=latents: run_stacked(stack(d), z),
            "grouped_stacked_before": lambda w=stacked, z=latents: run_stacked(w, z),
        }
        outputs = [side() for side in sides.values()]
        timed: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, side in sides.items():
                timed[name].append(seconds_of(side)[0])
        row = {name: 1e3 * statistics.median(values) / GROUPED_SEGMENTS for name, values in timed.items()}
        error = max(float((output - outputs[0]).abs().max()) for output in outputs)
        found.append({"stage": stage, "segments": GROUPED_SEGMENTS, "ms_a_segment": row, "error": error})
    return found


Stacked = list[tuple[Tensor, Tensor, int, int]]  # weight, bias, padding, stride of the shuffle (1: the stem)


def stack(decoders: Sequence[Decoder]) -> Stacked:
    """All decoders' convolutions side by side, stage by stage."""
    layers = []
    for position in range(len(decoders[0].stages)):
        stages = [decoder.stages[position] for decoder in decoders]
        convs = [stage.conv for stage in stages if isinstance(stage, Stem | UpBlock)]
        stride = stages[0].stride if isinstance(stages[0], UpBlock) else 1
        weight, bias = (torch.cat([c.weight for c in convs]), torch.cat([c.bias for c in convs]))  # type: ignore[misc]
        layers.append((weight, bias, int(convs[0].padding[0]), stride))
    return layers


def run_stacked(layers: Stacked, latents: Tensor) -> Tensor:
    """A frame of each: [g, d, h, w] → [g, c, h', w']."""
    groups = len(latents)
    x = latents.reshape(1, -1, *latents.shape[2:])  # GxDxHxW -> 1x(GD)xHxW
    for weight, bias, padding, stride in layers:
        x = F.conv2d(x, weight, bias, padding=padding, groups=groups)
        x = F.gelu(F.pixel_shuffle(x, stride))
    return x.reshape(groups, -1, *x.shape[2:])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    shape = Shape(
        preset="demo", height=272, width=640, segments=args.segments, frames=args.frames, tasks=TASKS
    )
    with tempfile.TemporaryDirectory() as folder:
        session = Session(
            root=f"{folder}/archive", settings=settings_in(Path(folder) / "cache", args.threads)
        )
        draw_archive(session.root, shape)
        session.ask(PAIRED.format(PREDICATES[0]), session.operators())  # indexes, and loads the backbones
        return {
            "question": "sharing",
            "seed": SEED,
            "repeats": args.repeats,
            "threads": args.threads,
            "segments": args.segments,
            "frames_a_segment": args.frames,
            "predicates": measure_predicates(session, args.repeats),
            "stages": measure_stages(session, args.repeats),
            "grouped": measure_grouped(shape, max(7, args.repeats)),
        }


def settings_in(cache: Path, threads: int) -> Settings:
    return Settings(
        archive=None,
        cache_dir=cache,
        cache_bytes=10**9,
        memory_bytes=2 << 30,
        threads=threads,
        query_seconds=None,
        debug=False,
    )


def summary(result: Mapping[str, Any]) -> str:
    predicates, stages = result["predicates"], result["stages"]
    lines = [
        f"eight predicates at once: {predicates['sooner']:.1f}x sooner than eight sessions in turn;"
        f" each frame decoded {predicates['most_decodes_of_a_frame']} time(s)",
        f"four tasks at four stages: decoding takes {stages['decode_against_deepest_alone']:.2f} of the"
        f" deepest alone (least times: {stages['least_decode_against_deepest_alone']:.2f});"
        f" {stages['sooner_than_in_turn']:.1f}x sooner than one after another",
    ]
    for row in result["grouped"]:
        times = ", ".join(f"{name} {value:.2f}" for name, value in row["ms_a_segment"].items())
        lines.append(f"one frame of {row['segments']} segments to stage {row['stage']}, ms each: {times}")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "sharing.json")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--segments", type=int, default=2)
    parser.add_argument("--frames", type=int, default=64, help="a segment")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if min(args.repeats, args.segments, args.frames, args.threads) < 1:
        parser.error("--repeats, --segments, --frames and --threads must be at least 1")
    return args


if __name__ == "__main__":
    arguments = parse_arguments()
    measured = measure(arguments)
    write_result(arguments.out, measured)
    print(summary(measured))
