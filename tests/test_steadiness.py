"""Figures of steadiness, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from nvpstore.errors import UsageError
from nvpstore.steadiness import Run, agreement, delays, flips, instability, steadiness, warped_error


def test_instability_is_the_mean_length_of_a_step() -> None:
    assert instability([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]]) == pytest.approx(2.5)
    assert instability(np.ones((1, 4))) == 0.0


def test_flips_and_agreement() -> None:
    assert flips("aabba") == 2
    assert flips("") == 0
    assert agreement("aab", "abb") == pytest.approx(2 / 3)
    with pytest.raises(UsageError, match="2 labels and 3"):
        agreement("ab", "abc")


def test_a_delay_lasts_until_the_new_label_or_the_next_change() -> None:
    assert delays("aaabbbcc", "aabbbbcc") == [1, 0]
    assert delays("aaaaaacc", "aabbbbcc") == [4, 0]
    assert delays("aa", "aa") == []


def test_runs_are_counted_together_and_cuts_are_no_flips() -> None:
    found = steadiness(
        [
            Run(ts=[0.0, 0.5, 1.0], labels="aba", truth="aaa"),
            Run(ts=[5.0, 6.0], labels="bc", truth="bc"),
        ]
    )
    assert (found.frames, found.seconds, found.flips) == (5, 2.0, 3)
    assert found.flips_per_second == pytest.approx(1.5)
    assert (found.true_flips, found.agreement, found.median_delay) == (1, 0.8, 0.0)


def test_without_a_truth_nothing_is_said_of_it() -> None:
    found = steadiness([Run(ts=[0.0, 1.0], labels="ab")])
    assert (found.true_flips, found.agreement, found.median_delay) == (None, None, None)


def test_what_moves_along_the_flow_is_steady() -> None:
    pytest.importorskip("cv2")
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (12, 16, 3), dtype=np.uint8)
    canvas = np.kron(coarse, np.ones((8, 8, 1))).astype(np.uint8)
    frames = np.stack([canvas[:80, t : t + 96] for t in range(4)])
    noisy = np.clip(frames + random.normal(0, 25, frames.shape), 0, 255).astype(np.uint8)
    assert warped_error(frames) < 0.2 * warped_error(noisy, frames)
