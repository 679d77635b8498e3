"""The demo at its smallest: two short videos, the `micro` preset, everything else as newcomers run it."""

from __future__ import annotations

import contextlib
import io
import json
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import nvpstore
from benchmarks import demo
from benchmarks.charts import bars
from benchmarks.figures import HOLD_EVERY, Agreement, Answers, agree, compare, without_answers
from benchmarks.pictures import moments


@dataclass(frozen=True)
class Ran:
    out: Path
    arguments: list[str]
    status: int
    stdout: str
    stderr: str

    @property
    def report(self) -> str:
        return (self.out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    out = tmp_path_factory.mktemp("demo")
    arguments = ["--out", str(out), "--preset", "micro", "--frames-bikes", "12", "--frames-collage", "8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NVP_CACHE", str(out / "cache"))
        return run(out, arguments)


def run(out: Path, arguments: list[str]) -> Ran:
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        status = demo.main(arguments)
    return Ran(out, arguments, status, stdout.getvalue(), stderr.getvalue())


def test_figures_name_the_machine_the_phases_and_every_check(ran: Ran) -> None:
    figures = json.loads((ran.out / "figures.json").read_text(encoding="utf-8"))
    assert figures["machine"]["cores"] >= 1
    assert list(figures["seconds"])[:3] == ["footage", "ingest bikes", "ingest collage"]
    assert {(c["check"], c["passed"]) for c in figures["checks"]} >= {("bikes: PSNR", False)}
    for video in figures["videos"].values():
        frames = video["facts"]["frames"]
        assert video["agreements"]["default"]["all_frames"]["frames"] == frames
        assert video["agreements"]["default"]["unseen"]["frames"] == frames // 3
        assert len(video["frame_psnr"]) == frames
        assert set(video["costs"]) == {"default", "pixel", "source"}


def test_failed_checks_are_told_but_only_strict_fails(ran: Ran) -> None:
    assert ran.status == 0
    assert re.search(r"bikes: PSNR +at least 28.50 +[\d.]+ dB +FAILED", ran.stdout)


def test_queries_and_their_rows_are_shown(ran: Ran) -> None:
    assert ran.stdout.count("FROM labels") == 3
    assert "Measured" in ran.stdout


def test_report_is_one_well_formed_file_that_needs_nothing_else(ran: Ran) -> None:
    page = Page()
    page.feed(ran.report)
    page.close()
    assert page.open_tags == []
    assert page.addresses
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= page.ids
    assert "<script" not in ran.report
    assert "@import" not in ran.report


def test_report_says_that_pictures_are_reconstructed(ran: Ran) -> None:
    assert ran.report.count("decoded from the network: reconstructed,") == ran.report.count("<img ") / 2 == 12


def test_second_run_does_no_fit_and_strict_gives_status_1(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVP_CACHE", str(ran.out / "cache"))
    log = sorted((ran.out / "archive" / "log").iterdir())
    again = run(ran.out, [*ran.arguments, "--strict"])
    assert again.status == 1
    assert again.stderr.count("stored before") == 2
    assert sorted((ran.out / "archive" / "log").iterdir()) == log


def test_archive_of_another_preset_is_refused(ran: Ran) -> None:
    with pytest.raises(SystemExit, match="of a different demo"):
        run(ran.out, ["--out", str(ran.out), "--preset", "demo", *ran.arguments[4:]])


# ---------------------------------------------------------------- figures by hand


def test_queries_that_are_timed_compute_their_answers(ran: Ran) -> None:
    opened = nvpstore.open(ran.out / "archive")
    archive = nvpstore.Archive(opened.store, replace(opened.settings, answers="on"))
    answered = []
    for asked in (archive, archive, without_answers(archive)):
        result = asked.sql("SELECT label FROM labels WHERE rank = 1")
        result.fetchall()
        answered.append(result.explain_dict()["measured"]["answered_frames"])
    assert answered[1] > 0
    assert answered[2] == 0


def answers(labels: str, scores: list[float] | None = None) -> Answers:
    n = len(labels)
    return Answers(
        ts=tuple(i / 25 for i in range(n)),
        labels=tuple(labels),
        scores=tuple(scores or [0.9] * n),
        route=("adapter",) * n,
    )


def test_agreement_counts_every_third_frame_as_unseen() -> None:
    found = agree("aaabaa", "abaaab", [True, True, True, True, True, False])
    assert found.unseen == Agreement(share=0.5, frames=2)
    assert found.unseen_confident == Agreement(share=1.0, frames=1)
    assert found.confident == Agreement(share=0.6, frames=5)
    assert found.all_frames == Agreement(share=0.5, frames=6)


def test_agreement_over_no_frames_is_none() -> None:
    assert agree("a", "a", [False]).unseen_confident == Agreement(share=None, frames=0)


def test_baselines_are_the_commonest_confident_answer_and_the_held_one() -> None:
    source = "a" * 20 + "b" * 30
    found = compare({"source": answers(source), "default": answers(source), "pixel": answers("c" * 50)})
    assert found["constant_answer"] == "b"
    assert found["agreements"]["constant"].unseen.share == pytest.approx(10 / 16)
    held = "a" * HOLD_EVERY + "b" * HOLD_EVERY
    same = sum(held[i] == source[i] for i in range(2, 50, 3))
    assert found["agreements"]["held"].unseen.share == pytest.approx(same / 16)
    assert found["error_ratio"] == 0
    assert found["agreements"]["pixel"].unseen.share == 0


def test_error_ratio_is_none_where_the_baseline_makes_no_error() -> None:
    one = answers("aaaa")
    assert compare({"source": one, "default": one, "pixel": one})["error_ratio"] is None


def test_bars_break_where_the_label_the_doubt_or_the_agreement_changes() -> None:
    source = answers("aabb", [0.9, 0.1, 0.9, 0.9])
    found = [(bar.start, bar.stop, bar.is_sure, bar.agrees) for bar in bars(answers("aaab"), source)]
    assert found == [(0, 1, True, True), (1, 2, False, True), (2, 3, True, False), (3, 4, True, True)]


def test_moments_are_the_surest_frame_of_each_part() -> None:
    assert moments([0.1, 0.9, 0.8, 0.2], 2) == (1, 2)
    assert moments([0.5], 6) == (0,)


class Page(HTMLParser):
    """What a page opens without closing, refers to, and names."""

    EMPTY = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.EMPTY:
            self.open_tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.add(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """SVG's own closing."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags, f"</{tag}> closes nothing"
        assert self.open_tags.pop() == tag
