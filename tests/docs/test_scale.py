"""docs/scale.md and its JSON say what the committed results give, and nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from benchmarks.economics.__main__ import DOC
from benchmarks.economics.model import (
    RESULTS,
    Prices,
    break_even,
    calibrated,
    economics,
    read_inputs,
    sensitivity,
)
from benchmarks.economics.page import tables, with_tables


def test_the_committed_figures_follow_from_the_committed_results() -> None:
    committed = json.loads((RESULTS / "economics.json").read_text())
    assert committed == json.loads(json.dumps(economics(read_inputs()))), (
        "run: python -m benchmarks.economics"
    )


def test_the_page_has_the_figures() -> None:
    page = DOC.read_text()
    committed = json.loads((RESULTS / "economics.json").read_text())
    assert with_tables(page, committed) == page, "run: python -m benchmarks.economics --write-doc"
    assert re.findall(r"<!-- ([a-z-]+) -->\n\|", page) == list(tables(committed))


def test_break_even_is_where_both_sides_cost_the_same() -> None:
    frame, prices = calibrated(read_inputs()), Prices()
    passes = break_even(frame, prices)["decoding_each_time"]
    assert passes is not None

    def money(core_seconds: float, size_bytes: float) -> float:
        kept = size_bytes / 1e9 * prices.gigabyte_month * prices.months
        return core_seconds / 3600 * prices.core_hour + kept

    gets = 2 * prices.thousand_gets / 1000 / frame.frames_a_segment
    ours = money(frame.fit + passes * frame.adapter, frame.video_bytes) + passes * gets
    theirs = money(passes * frame.decode_whole, frame.source_bytes)
    assert ours == pytest.approx(theirs)


def test_what_saves_nothing_never_pays() -> None:
    frame = calibrated(read_inputs())
    slow = replace(frame, adapter=2 * frame.decode_whole)
    assert break_even(slow, Prices())["decoding_each_time"] is None
    given = replace(frame, fit=0.0, video_bytes=0.0)
    assert break_even(given, Prices())["decoding_each_time"] == 0.0


def test_cheaper_fits_pay_sooner() -> None:
    cases = sensitivity(calibrated(read_inputs()), Prices())["fit by"]
    passes = [value for value in cases.values() if value is not None]
    assert len(passes) == len(cases)
    assert passes == sorted(passes, reverse=True)
