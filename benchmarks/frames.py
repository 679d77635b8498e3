"""Frames for benchmarks, read with whichever of PyAV and OpenCV is there, or synthetic without a clip."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]


def read_frames(path: Path, *, limit: int) -> Frames:
    """The first `limit` frames of a file, uint8 [t, h, w, 3] RGB. ValueError where it has none."""
    frames = _with_pyav(path, limit) if importlib.util.find_spec("av") else _with_opencv(path, limit)
    if not frames:
        raise ValueError(f"{path}: no frames")
    return np.stack(frames)


def synthetic_frames(*, frames: int, height: int, width: int, seed: int = 0) -> Frames:
    """A camera that pans over fixed noise of several scales, uint8 [t, h, w, 3]. For speed, not for PSNR."""
    random = np.random.default_rng(seed)
    canvas = np.zeros((height + frames, width + frames, 3), np.float32)
    for scale in (64, 16, 4):
        grid = random.random((canvas.shape[0] // scale + 1, canvas.shape[1] // scale + 1, 3), np.float32)
        canvas += np.kron(grid, np.ones((scale, scale, 1), np.float32))[: canvas.shape[0], : canvas.shape[1]]
    picture = (canvas / 3 * 255).astype(np.uint8)
    return np.stack([picture[t : t + height, t : t + width] for t in range(frames)])


def _with_pyav(path: Path, limit: int) -> list[Frames]:
    import av

    frames: list[Frames] = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == limit:
                break
    return frames


def _with_opencv(path: Path, limit: int) -> list[Frames]:
    import cv2

    capture = cv2.VideoCapture(str(path))
    frames: list[Frames] = []
    while len(frames) < limit:
        found, bgr = capture.read()
        if not found:
            break
        frames.append(np.ascontiguousarray(bgr[..., ::-1]))
    capture.release()
    return frames
