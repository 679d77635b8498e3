"""How each result is shown: the tables that its section has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.evidence.tables import Table, generic, number, percent, size, times

Found = Mapping[str, Any]


# ---------------------------------------------------------------- stored and asked


def demo_table(found: Found) -> list[Table]:
    videos = found["videos"]
    facts = {name: video["facts"] for name, video in videos.items()}
    lines = {
        "frames, size": lambda n: f"{facts[n]['frames']}, {facts[n]['width']}×{facts[n]['height']}",
        "PSNR, all frames (resize alone)": lambda n: (
            f"{facts[n]['psnr']:.1f} dB ({facts[n]['resize_bound_psnr']:.1f})"
        ),
        "stored; H.264 source": lambda n: (
            f"{size(facts[n]['stored_bytes'])}; {size(facts[n]['source_bytes'])}"
        ),
        "bpp": lambda n: number(facts[n]["bpp"]),
        "fit, seconds": lambda n: number(facts[n]["fit_seconds"]),
        "labels on confident frames": lambda n: (
            f"{videos[n]['labels_confident']} on {videos[n]['confident_frames']}"
        ),
        **{
            f"agreement, unseen confident: {told}": lambda n, route=route: percent(
                videos[n]["agreements"][route]["unseen_confident"]["share"]
            )
            for route, told in _ROUTES.items()
        },
        "agreement, all unseen: default": lambda n: percent(
            videos[n]["agreements"]["default"]["unseen"]["share"]
        ),
        "ms a frame by SQL: default; pixel; source": lambda n: "; ".join(
            number(videos[n]["costs"][route]["ms"]) for route in ("default", "pixel", "source")
        ),
    }
    rows = tuple((name, *(show(n) for n in videos)) for name, show in lines.items())
    return [Table(caption="", head=("", *videos), rows=rows)]


_ROUTES = {
    "default": "adapter route",
    "pixel": "pixel route",
    "constant": "constant",
    "held": "last answer held",
}


def latency_table(found: Found) -> list[Table]:
    rows = tuple(
        (
            f"{one['video']}, {'all frames' if one['sampling'] == 'all' else one['sampling']}",
            *(number(one["ms_a_frame"][side]) for side in ("adapter", "adapter_cold", "pyav", "proxy")),
            times(one["speed_up"]["pyav"]),
            times(one["ms_a_frame"]["pyav"] / one["ms_a_frame"]["adapter_cold"]),
        )
        for one in found["best"]
    )
    head = (
        "ms a frame",
        "adapter, warm",
        "cold",
        "PyAV + whole",
        "proxy + whole",
        "warm sooner",
        "cold sooner",
    )
    return [Table(caption="each side at its best batch", head=head, rows=rows)]


def latency_headline(found: Found) -> dict[str, str]:
    return {
        f"{one['video']}, {one['sampling']}: PyAV against adapter": times(one["speed_up"]["pyav"])
        for one in found["best"]
    }


def query_table(found: Found) -> list[Table]:
    sides = found["baselines"]["sides"]
    rows = tuple(
        (
            name.replace("_", " "),
            number(side["seconds"]["median"]),
            f"{number(side['seconds']['least'])} to {number(side['seconds']['most'])}",
            str(side["decoded_frames"]),
        )
        for name, side in sides.items()
    )
    asked = f"{found['baselines']['queries']} queries of {found['baselines']['tasks']} tasks on one clip"
    line = found["linear"]["line"]
    cost = Table(
        caption="what a query costs by the frames that it touches",
        head=("fixed", "a frame", "R²", "largest residual"),
        rows=(
            (
                f"{1000 * line['fixed_seconds']:.0f} ms",
                f"{1000 * line['seconds_a_frame']:.2f} ms",
                f"{line['r2']:.4f}",
                percent(line["largest_residual"]),
            ),
        ),
    )
    return [
        Table(caption=asked, head=("side", "seconds", "spread", "decoded frames"), rows=rows),
        _again(found),
        cost,
    ]


def _again(found: Found) -> Table:
    rows = tuple(
        (
            f"{one['video_seconds']} s",
            number(one["first_seconds"]["median"]),
            number(one["again_seconds"]["median"]),
            times(one["ratio"]["median"]),
        )
        for one in found["again"]["lengths"]
    )
    head = ("video", "first, seconds", "again, in a new process", "sooner")
    return Table(caption="the same query once more, answers stored", head=head, rows=rows)


def planning_table(found: Found) -> list[Table]:
    rows = []
    for one in found["sizes"]:
        for name, query in one["queries"].items():
            rows.append(
                (
                    number(one["segments"]),
                    name,
                    number(query["seconds"]),
                    number(query["explain_seconds"]),
                    size(query["resident_bytes"]["peak_of_planning"]),
                )
            )
    head = ("segments", "query", "plan, seconds", "EXPLAIN, seconds", "memory at its peak")
    return [Table(caption="", head=head, rows=tuple(rows))]


def planning_headline(found: Found) -> dict[str, str]:
    first = found["sizes"][0]
    return {
        f"{number(first['segments'])} segments, {name}": f"{number(query['seconds'])} s"
        for name, query in first["queries"].items()
    }


def sharing_table(found: Found) -> list[Table]:
    predicates, stages = found["predicates"], found["stages"]
    rows = (
        (
            f"{predicates['queries']} queries with predicates of their own",
            number(predicates["at_once_seconds"]["median"]),
            number(predicates["in_turn_seconds"]["median"]),
            times(predicates["sooner"]),
        ),
        (
            "four tasks at four stages",
            number(stages["seconds"]["together"]["median"]),
            number(stages["seconds"]["in_turn"]["median"]),
            times(stages["sooner_than_in_turn"]),
        ),
    )
    return [Table(caption="", head=("", "at once, seconds", "in turn", "sooner"), rows=rows)]


def sharing_headline(found: Found) -> dict[str, str]:
    return {
        "queries with predicates": times(found["predicates"]["sooner"]),
        "tasks at four stages": times(found["stages"]["sooner_than_in_turn"]),
    }


def models_table(found: Found) -> list[Table]:
    rows = tuple(
        (
            model["task"],
            model["kind"],
            model["weights"],
            str(len(model["cuts"])),
            number(model["backbone_gflops"]),
            _saved(model["codecs"]["demo"]),
            _saved(model["codecs"]["hnerv-1.5m"]),
        )
        for model in found["models"]
    )
    head = ("task", "kind", "weights", "cuts", "GFLOPs", "saved, demo", "saved, HNeRV 1.5 M")
    return [Table(caption="", head=head, rows=rows)]


def _saved(codec: Found) -> str:
    return percent(codec["saved"]) if "saved" in codec else "–"


# ---------------------------------------------------------------- batches and scale


def batch_table(found: Found) -> list[Table]:
    made: list[Table] = []
    if "workers" in found:
        made.append(_workers(found["workers"]))
    if "planning" in found:
        made.append(_dry_runs(found["planning"]))
    if "linear" in found:
        made.append(_line(found["linear"]))
    if "loader" in found:
        made.append(_epochs(found["loader"]))
    if "kept" in found:
        made.append(_kept(found["kept"]))
    return made


def _workers(found: Found) -> Table:
    row = (
        number(found["frames"]),
        number(found["one_worker_seconds"]["median"]),
        number(found["two_workers_seconds"]["median"]),
        f"{found['sooner']['median']:.2f}× ({found['sooner']['least']:.2f} to {found['sooner']['most']:.2f})",
    )
    head = ("frames", "one worker, seconds", "two workers", "sooner, median of 5")
    return Table(caption="one thread a worker, start-up and commit included", head=head, rows=(row,))


def _dry_runs(found: Found) -> Table:
    rows = tuple(
        (
            name,
            number(one["seconds"]),
            number(one["cpu_seconds"]),
            number(one["divide_seconds"]),
            number(one["parts"]),
            size(one["resident_bytes"]["peak"]),
        )
        for name, one in found["statements"].items()
    )
    head = ("statement", "seconds", "of CPU", "divide", "parts", "memory at its peak")
    caption = (
        f"dry run over {number(found['segments'])} simulated segments, at a load of "
        f"{number(found['load_average'])} on two cores"
    )
    return Table(caption=caption, head=head, rows=rows)


def _line(found: Found) -> Table:
    rows = tuple(
        (number(f), number(s), f"{1000 * r:+.0f} ms")
        for f, s, r in zip(found["frames"], found["seconds"], found["residual_seconds"], strict=True)
    )
    caption = (
        f"{1000 * found['fixed_seconds']:.0f} ms and {1000 * found['seconds_a_frame']:.1f} ms a frame, "
        f"R² {found['r2']:.4f}"
    )
    return Table(caption=caption, head=("frames", "seconds", "residual"), rows=rows)


def _kept(found: Found) -> Table:
    features, later = found["feature_bytes_a_frame"], found["later_task"]
    rows = (
        ("network, with routes of its tasks", size(found["video_bytes_a_frame"])),
        ("H.264 source", size(found["source_bytes_a_frame"])),
        ("answers, five labels", size(found["answer_bytes_a_frame"])),
        ("features at the cut, half floats", size(features["float16"])),
        ("… 8 bit, compressed", size(features["int8_zlib"])),
        (
            f"a later task ({later['task']}) learned, all frames counted",
            f"{1000 * later['core_seconds'] / later['frames']:.0f} ms of one core",
        ),
    )
    return Table(caption=f"what is kept of a frame, over {found['frames']}", head=("", "a frame"), rows=rows)


def _epochs(found: Found) -> Table:
    rows = tuple(
        (name.replace("_", " "), number(side["median"]), number(1000 * side["median"] / found["frames"]))
        for name, side in found["seconds"].items()
    )
    sooner = found["sooner"]
    caption = (
        f"an epoch of {found['frames']} frames at {found['cut']}: {times(sooner['one_thread'])} sooner on "
        f"one thread, {times(sooner['one_thread_cold'])} cold, {times(sooner['as_each_likes'])} as each likes"
    )
    return Table(caption=caption, head=("side", "seconds", "ms a frame"), rows=rows)


def batch_headline(found: Found) -> dict[str, str]:
    said = {}
    if "workers" in found:
        said["two workers against one"] = f"{found['workers']['sooner']['median']:.2f}×"
    if "loader" in found:
        said["features against PyAV and stem"] = times(found["loader"]["sooner"]["one_thread"])
    return said


def economics_table(found: Found) -> list[Table]:
    paid = found["break_even"]
    named = {
        "decoding each time": ("decoding_each_time", "passes"),
        "answers at ingest, tasks known": ("answers_at_ingest", "tasks"),
        "answers, tasks that come later": ("answers_of_later_tasks", "tasks"),
        "cached features": ("cached_features", "passes"),
    }
    rows = tuple(
        (name, "never" if paid[key] is None else f"{number(paid[key])} {what}")
        for name, (key, what) in named.items()
    )
    return [
        Table(
            caption="a model: docs/scale.md has all of it", head=("against", "fitting pays from"), rows=rows
        )
    ]


def scale_table(found: Found) -> list[Table]:
    rows = tuple(
        (
            place,
            number(one["videos"]),
            number(one["open_from_checkpoint"]["seconds"]),
            number(one["open_from_checkpoint"]["requests"]),
            number(1000 * one["nothing_new"]["seconds"]),
            size(one["index_bytes"]),
        )
        for place in ("local", "s3")
        for one in found[place]
    )
    head = ("store", "videos", "open, seconds", "requests", "open again, ms", "index")
    return [Table(caption="", head=head, rows=rows)]


def container_table(found: Found) -> list[Table]:
    rows = tuple(
        (one["segment"], number(one["segments"]), percent(one["overhead"])) for one in found["drawn"]
    )
    return [Table(caption="bytes that are not payload", head=("segment", "in a file", "overhead"), rows=rows)]


def stability_tables(found: Found) -> list[Table]:
    rest = {name: value for name, value in found.items() if name not in ("rows", "repeating", "costs")}
    tables = generic(rest)
    for name in dict.fromkeys(row["table"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["table"] == name]
        head = ("network", "corruption", "variant", "λ", "τ", "steps", "PSNR", "instability", "warped, 10⁻³")
        tables.append(Table(caption=name, head=head, rows=tuple(map(_steady_row, rows))))
    return [*tables, *generic({name: found[name] for name in ("repeating", "costs") if name in found})]


def _steady_row(row: Found) -> tuple[str, ...]:
    learns = row["variant"] != "base" or row["unfrozen"]
    return (
        row["task"] + (", unfrozen" if row["unfrozen"] else ""),
        row["corruption"].replace("_", " "),
        row["variant"].replace("_", " "),
        number(row["stability"]) if learns else "–",
        str(row["frames"]) if learns else "–",
        str(row.get("steps", "–")) if learns else "–",
        f"{row['psnr']:.2f}",
        f"{row['instability']:.2f}",
        number(row.get("warped")),
    )


def rate_tables(found: Found) -> list[Table]:
    points = found["points"]
    head = (
        "codec", "parameters", "bytes", "bits a pixel", "PSNR", "worst", "5 % worst", "YUV 6:1:1", "SSIM",
        "MS-SSIM", "encode, s", "decode, s",
    )  # fmt: skip
    rows = tuple(
        (
            point["codec"],
            str(point.get("parameters", "–")),
            size(point["bytes"]),
            f"{point['bpp']:.4f}",
            *(f"{point[key]:.2f}" for key in ("psnr", "psnr_worst", "psnr_p5", "psnr_yuv_611")),
            *(f"{point[key]:.3f}" for key in ("ssim", "ms_ssim")),
            number(point["encode_seconds"]),
            number(point["decode_seconds"]),
        )
        for point in points
    )
    t, _, h, w = found["shape_tchw"]
    every = Table(
        caption=f"{found['clip']}, {t} frames {h}×{w}, {found['epochs']} epochs", head=head, rows=rows
    )
    against = tuple(
        (name, "no overlap" if value is None else f"{value:+.0f} %")
        for name, value in found["bd_rate_percent"].items()
    )
    bd = Table(
        caption="BD-rate against ours (negative: needs fewer bytes)", head=("codec", "BD-rate"), rows=against
    )
    return [_rounded(points), bd, every]


def _rounded(points: list[Found]) -> Table:
    """What a budget of bits saves, against the same network rounded to 8 bit after its fit."""
    ours = [point for point in points if "parameters" in point]
    whole = {point["parameters"]: point for point in ours if point["weight_bits"] is None}
    rows = tuple(
        (
            str(point["parameters"]),
            number(point["weight_bits"]),
            percent(1 - point["bytes"] / plain["bytes"]),
            f"{point['psnr'] - plain['psnr']:+.2f} dB",
        )
        for point in ours
        if point["weight_bits"] is not None and (plain := whole.get(point["parameters"])) is not None
    )
    caption = "a budget of bits, against 8 bit after the fit"
    return Table(caption=caption, head=("parameters", "bits", "bytes saved", "PSNR"), rows=rows)
