"""How steady answers and pictures are: change from frame to frame, flips, delay at true changes.

Instability depends on a size and on what really moves: the truth's own stands beside it where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nvpstore.errors import UsageError

_CONSISTENT = 1.0  # pixels by which a way there and back may miss, for a pixel to count as seen twice


def instability(values: ArrayLike) -> float:
    """Mean over t of ‖f_t − f_{t−1}‖₂, of [t, …]; 0 for fewer than two frames."""
    frames = np.asarray(values, dtype=np.float64)
    if len(frames) < 2:
        return 0.0
    changes = (frames[1:] - frames[:-1]).reshape(len(frames) - 1, -1)
    return float(np.sqrt((changes**2).sum(1)).mean())


def flips(labels: Sequence[Any]) -> int:
    """How often a label differs from the one before it."""
    return sum(a != b for a, b in zip(labels[1:], labels[:-1], strict=True))


def agreement(labels: Sequence[Any], truth: Sequence[Any]) -> float:
    """The share of frames on which both say the same; raises UsageError for lengths that differ."""
    _check_lengths(labels, truth)
    return float(np.mean([a == b for a, b in zip(labels, truth, strict=True)])) if truth else 0.0


def delays(labels: Sequence[Any], truth: Sequence[Any]) -> list[int]:
    """At each change of `truth` the frames until `labels` says the new one; where it does not before the next
    change, the frames until that.
    """
    _check_lengths(labels, truth)
    changes = [t for t in range(1, len(truth)) if truth[t] != truth[t - 1]]
    found = []
    for start, stop in pairwise([*changes, len(truth)]):
        found.append(next((t - start for t in range(start, stop) if labels[t] == truth[t]), stop - start))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Steadiness:
    """Of labels over `frames` in runs without a cut: their `flips`, also a second of the `seconds` that the
    runs take, those of the truth, the share that agrees with it, and the median delay at its changes.

    The last three are None without a truth, the delay also where the truth never changes.
    """

    frames: int
    seconds: float
    flips: int
    flips_per_second: float
    true_flips: int | None = None
    agreement: float | None = None
    median_delay: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Labels of consecutive frames of one scene at `ts` (seconds), and where it is known the `truth`."""

    ts: Sequence[float]
    labels: Sequence[Any]
    truth: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        _check_lengths(self.labels, self.ts)


def steadiness(runs: Sequence[Run]) -> Steadiness:
    """Figures over all runs together. What changes from one run to the next is a cut, and no flip."""
    seconds = float(sum(run.ts[-1] - run.ts[0] for run in runs if len(run.ts)))
    flipped = sum(flips(run.labels) for run in runs)
    known = [(run, run.truth) for run in runs if run.truth is not None]
    judged = len(known) == len(runs) and bool(runs)
    late = [delay for run, truth in known for delay in delays(run.labels, truth)]
    said = [(a, b) for run, truth in known for a, b in zip(run.labels, truth, strict=True)]
    return Steadiness(
        frames=sum(len(run.labels) for run in runs),
        seconds=seconds,
        flips=flipped,
        flips_per_second=flipped / seconds if seconds > 0 else 0.0,
        true_flips=sum(flips(truth) for _, truth in known) if judged else None,
        agreement=sum(a == b for a, b in said) / max(1, len(said)) if judged else None,
        median_delay=float(np.median(late)) if judged and late else None,
    )


def warped_error(frames_thwc: NDArray[np.uint8], guide_thwc: NDArray[np.uint8] | None = None) -> float:
    """Mean squared difference, in units of 1, of each frame and the one before moved onto it by optical flow,
    over pixels that are seen in both. Flow (DIS) is found on `guide_thwc`, else on the frames themselves.

    Raises UsageError where OpenCV is not installed.
    """
    cv2 = _opencv()
    guide = frames_thwc if guide_thwc is None else guide_thwc
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in guide]
    errors = []
    for t in range(1, len(grey)):
        back, forth = flow.calc(grey[t], grey[t - 1], None), flow.calc(grey[t - 1], grey[t], None)
        moved = _moved(cv2, frames_thwc[t - 1], back)
        seen = np.linalg.norm(back + _moved(cv2, forth, back), axis=2) < _CONSISTENT
        change = (frames_thwc[t].astype(np.float64) - moved.astype(np.float64)) / 255
        if seen.any():
            errors.append(float((change[seen] ** 2).mean()))
    return float(np.mean(errors)) if errors else 0.0


def _moved(cv2: Any, picture: NDArray[Any], flow_hw2: NDArray[np.float32]) -> NDArray[Any]:
    """`picture` [h, w, …] looked up where the flow points."""
    height, width = flow_hw2.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    moved: NDArray[Any] = cv2.remap(
        picture, x + flow_hw2[..., 0], y + flow_hw2[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return moved


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as cause:
        raise UsageError("warped errors need OpenCV: pip install opencv-python-headless") from cause
    return cv2


def _check_lengths(labels: Sequence[Any], others: Sequence[Any]) -> None:
    if len(labels) != len(others):
        raise UsageError(f"{len(labels)} labels and {len(others)} beside them: as many are needed")
