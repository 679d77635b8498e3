from __future__ import annotations

import io
from dataclasses import dataclass

import pytest

from nvpstore.api.progress import AfterEstimate, ProgressLine, describe, duration, size
from nvpstore.upkeep.progress import UpkeepProgress


@dataclass(frozen=True)
class Step:
    phase: str
    done: int = 0
    total: int = 0
    psnr: float | None = None
    eta_seconds: float | None = None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_names_phase_share_psnr_and_time_left() -> None:
    step = Step(phase="fit segment 2", done=30, total=120, psnr=28.417, eta_seconds=95)
    assert describe(step) == "fit segment 2  30/120 (25 %)  28.42 dB  1 min 35 s left"


def test_unknown_parts_are_left_out() -> None:
    assert describe(Step(phase="probe")) == "probe"


def test_a_log_gets_a_line_a_phase_and_one_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    line = ProgressLine(stream, clock=clock)
    for second in range(12):
        clock.now = float(second)
        line(Step(phase="fit", done=second, total=12))
    line(Step(phase="put"))
    line.close()
    assert stream.getvalue().splitlines() == [
        "fit  0/12 (0 %)",
        "fit  5/12 (41 %)",
        "fit  10/12 (83 %)",
        "put",
    ]


def test_a_terminal_gets_one_line_that_is_wiped_at_the_end() -> None:
    stream = Terminal()
    line = ProgressLine(stream, clock=Clock())
    line(Step(phase="a long phase"))
    line(Step(phase="short"))
    line.close()
    assert stream.getvalue() == "\ra long phase" + "\rshort       " + "\r     \r"


def test_an_estimate_comes_once_and_first() -> None:
    stream = io.StringIO()
    shown = AfterEstimate(ProgressLine(stream, clock=Clock()), lambda: "about 3 min")
    shown(Step(phase="fit"))
    shown(Step(phase="store"))
    assert stream.getvalue().splitlines() == ["about 3 min", "fit", "store"]


def test_a_first_look_is_shown_only_when_it_takes_long() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = AfterEstimate(ProgressLine(stream, clock=clock), lambda: "about 3 min", clock=clock)
    shown(Step(phase="scan"))
    clock.now = 2.9
    shown(Step(phase="scan"))
    assert stream.getvalue() == ""
    clock.now = 3.1
    shown(Step(phase="scan"))
    assert stream.getvalue().splitlines() == ["about 3 min", "scan"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.9, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (-3, "0 s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1300, "1.3 kB"), (2.5e6, "2.5 MB"), (7e13, "70.0 TB")]
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


def test_phases_of_bytes_are_shown_as_sizes() -> None:
    said = describe(UpkeepProgress(phase="copy", done=1_500_000, total=6_000_000, eta_seconds=75))
    assert said == "copy  1.5 MB/6.0 MB (25 %)  1 min 15 s left"
    assert describe(UpkeepProgress(phase="decode", done=10, total=40)) == "decode  10/40 (25 %)"
