"""The report: every committed result is on it with where it was measured, losses first, subsets marked."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest

from benchmarks.evidence.losses import losses
from benchmarks.evidence.page import page
from benchmarks.evidence.results import FOLDER, Result, read_results, read_subset
from benchmarks.evidence.sections import SECTIONS, Section
from benchmarks.evidence.subset import LIMIT_SECONDS, RUNS
from benchmarks.evidence.tables import Table, generic, number

RESULTS = read_results()


@pytest.fixture(scope="module")
def shown() -> str:
    return page(RESULTS, {"latency": part_of(RESULTS["latency"])})


def part_of(result: Result) -> Result:
    return Result(name=result.name, path="subset/latency.json", found=result.found, subset=True)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_every_section_has_its_tables(section: Section) -> None:
    tables = section.tables(RESULTS[section.name].found)
    assert tables
    assert all(table.rows for table in tables)
    assert all(len(row) == len(table.head) for table in tables for row in table.rows)
    assert section.headline is None or section.headline(RESULTS[section.name].found)


def test_every_result_is_there_with_where_it_was_measured(shown: str) -> None:
    text = unescape(shown)
    for result in RESULTS.values():
        assert result.where in text
        assert result.name.startswith("soak-") or result.path in text
        if "machine" in result.found:
            assert result.found["machine"]["commit"][:10] in result.where


def test_losses_come_first_and_are_of_the_figures(shown: str) -> None:
    assert shown.index("Where we lose") < min(shown.index(f'id="{s.name}"') for s in SECTIONS)
    said = [sentence for sentence, _ in losses({name: r.found for name, r in RESULTS.items()})]
    facts = RESULTS["demo"].found["videos"]["bikes"]["facts"]
    assert any(f"{facts['stored_bytes'] / facts['source_bytes']:.1f}×" in sentence for sentence in said)
    assert all(sentence in unescape(shown) for sentence in said)


def test_what_is_not_there_is_named(shown: str) -> None:
    assert "gpu/latency.json" in shown
    assert "Not measured at all" in shown


def test_a_subset_is_marked(shown: str) -> None:
    (part,) = re.findall(r'<div class="subset">.*?</div>', shown, re.DOTALL)
    assert "committed" in part
    assert "subset" in part
    assert 'class="subset"' not in page({"latency": RESULTS["latency"]}, {})


def test_the_page_needs_nothing_outside_it(shown: str) -> None:
    assert not re.findall(
        r'(?:src|href)="(?!#|data:)[^"]+"', re.sub(r"<svg.*?</svg>", "", shown, flags=re.DOTALL)
    )
    assert len(shown) < 4_000_000


def test_results_that_nobody_drew_up_are_shown_whole() -> None:
    found = {"machine": {}, "speed": {"fast": 1234.5, "slow": None}, "runs": [{"n": 1, "ok": True}, {"n": 2}]}
    first, second = generic(found)
    assert first.rows == (("speed, fast", number(1234.5)), ("speed, slow", "–"))
    assert (second.caption, second.head, second.rows) == ("runs", ("n", "ok"), (("1", "yes"), ("2", "–")))


def test_text_is_not_html() -> None:
    table = Table(caption="a < b", head=("<i>",), rows=(("<b>",),))
    assert "<b>" not in table.html()
    assert "&lt;b&gt;" in table.html()


def test_results_are_read_by_place(tmp_path: Path) -> None:
    for path in ("one.json", "gpu/two.json", "subset/one.json"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(json.dumps({"question": path}))
    assert {name: r.subset for name, r in read_results(tmp_path).items()} == {"one": False, "gpu/two": False}
    assert {name: r.subset for name, r in read_subset(tmp_path).items()} == {"one": True}


def test_the_subset_stays_below_an_hour() -> None:
    assert LIMIT_SECONDS * len(RUNS) < 3600
    assert set(RUNS) <= {path.stem for path in FOLDER.glob("*.json")} | {"batch"}
