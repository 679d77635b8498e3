"""Intake: every video has its outcome, in the order named, whatever some of them do."""

from __future__ import annotations

import os
import signal

import pytest

from nvpstore.batches.intake import IntakeItem, IntakeProgress, run_intake
from nvpstore.engine.local import HereEngine, ProcessEngine
from nvpstore.errors import SourceError


def items(count: int) -> list[IntakeItem]:
    return [IntakeItem(number=n, named=f"{n}.mp4", file=f"/{n}.mp4") for n in range(count)]


def odd_ones_fail(item: IntakeItem) -> str:
    if item.number == 1:
        raise SourceError("1.mp4 is\nno video")
    if item.number == 3:
        raise MemoryError
    return item.named


def third_ends(item: IntakeItem) -> str:
    if item.number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return item.named


@pytest.mark.parametrize("engine", [HereEngine(), ProcessEngine(2)], ids=["here", "processes"])
def test_failures_are_listed_and_the_others_stored(engine: HereEngine | ProcessEngine) -> None:
    seen: list[IntakeProgress] = []
    report = run_intake(engine, odd_ones_fail, items(5), skipped=7, on_progress=seen.append)
    assert report.stored == ("0.mp4", "2.mp4", "4.mp4")
    assert [(failure.named, failure.error) for failure in report.failed] == [
        ("1.mp4", "1.mp4 is no video"),
        ("3.mp4", "MemoryError: MemoryError"),
    ]
    assert report.skipped == 7
    assert [(progress.done, progress.total) for progress in seen] == [(n, 5) for n in range(1, 6)]
    assert seen[-1].eta_seconds == 0


def test_a_video_that_ends_its_workers_ends_no_other() -> None:
    report = run_intake(ProcessEngine(2), third_ends, items(5))
    assert report.stored == ("0.mp4", "1.mp4", "3.mp4", "4.mp4")
    assert [(failure.named, failure.error) for failure in report.failed] == [
        ("2.mp4", "its worker ended without a word 3 times")
    ]
