"""The world's clips as training reads them: decoded from H.264 once, half size, on disk."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.world import HEIGHT, WIDTH, FrameTruth, Split, read_truth, write_clip
from nvpstore.video.source import read_frames

SIZE = (HEIGHT // 2, WIDTH // 2)
WORLD_FRAMES = 240  # of a world of which a shorter clip is the middle


@dataclass(frozen=True, slots=True, kw_only=True)
class Footage:
    """Frames of several clips of equal length. `rgb` is uint8 [clips, frames, 3, h, w], mapped from disk."""

    rgb: NDArray[np.uint8]
    truth: tuple[tuple[FrameTruth, ...], ...]

    @property
    def clips(self) -> int:
        return len(self.truth)

    @property
    def frames(self) -> int:
        return self.rgb.shape[1]

    def at(self, clip: int, frames: Sequence[int]) -> Tensor:
        """Pictures of one clip, float [t, 3, h, w] in 0 … 255."""
        return torch.from_numpy(self.rgb[clip, list(frames)]).float()


def footage(folder: Path, *, split: Split, clips: int, frames: int) -> Footage:
    """Clips 0 … `clips` of a split; rendered where they are not there yet, by a process a core."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [clip_path(folder, split, seed, frames) for seed in range(clips)]
    stored = folder / f"{split}-{clips}x{frames}.npy"
    if not stored.exists():
        part = stored.with_name(f".{stored.name}.{os.getpid()}.npy")
        np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(clips, frames, 3, *SIZE)).flush()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            for _ in pool.map(partial(_store, part, split, frames), range(clips), paths, chunksize=8):
                pass
        part.replace(stored)
    truth = tuple(tuple(read_truth(path.with_suffix(".json"))) for path in paths)
    return Footage(rgb=np.load(stored, mmap_mode="r"), truth=truth)


def _store(stored: Path, split: Split, frames: int, seed: int, path: Path) -> None:
    """One clip, half size, into its row."""
    rendered(path, seed=seed, split=split, frames=frames)
    shown = [_half(batch.rgb_thwc) for batch in read_frames(str(path), batch_frames=32)]
    np.load(stored, mmap_mode="r+")[seed] = np.concatenate(shown)


def clip_path(folder: Path, split: Split, seed: int, frames: int) -> Path:
    return folder / f"{split}-{seed:03}-{frames}.mp4"


def rendered(path: Path, *, seed: int, split: Split, frames: int) -> Path:
    """The clip at `path`, written if it is not there; its truth is there before it."""
    if not path.exists():
        part = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
        write_clip(part, seed=seed, split=split, frames=max(frames, WORLD_FRAMES), part=frames)
        part.with_suffix(".json").replace(path.with_suffix(".json"))
        part.replace(path)
    return path


def _half(rgb_thwc: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB [t, h, w, 3] → [t, 3, h / 2, w / 2], as `Preprocessing.apply` resizes."""
    x = torch.from_numpy(rgb_thwc).permute(0, 3, 1, 2).float()
    return F.interpolate(x, SIZE, mode="bilinear", antialias=True).round().byte().numpy()
