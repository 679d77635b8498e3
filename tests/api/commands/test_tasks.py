"""`nvp tasks`: what is registered, what is refused, what training says."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest

from nvpstore import archive
from nvpstore.adapters.stabilizer import VARIANTS
from nvpstore.api import cli
from nvpstore.api.commands import tasks
from nvpstore.ingest import learning
from nvpstore.ingest.routes import RouteSettings
from nvpstore.ingest.stabilizing import StabilizerSummary
from nvpstore.ingest.training import TrainedVideo
from nvpstore.tasks.preprocessing import Fit
from nvpstore.types import TaskKind
from nvpstore.upkeep.tasks import AddedTask, TaskRequest

if TYPE_CHECKING:
    from tests.api.conftest import Nvp

DICE = ("dice", "--like", "resnet50", "--model", "resnet18", "--size", "32x32", "--random", "1")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """`run(*arguments)` runs `nvp` in this process on an archive of its own: (status, stdout, stderr)."""
    archive.open(tmp_path / "archive", create=True)

    def nvp(*arguments: object) -> tuple[int, str, str]:
        try:
            status = cli.main([*(str(a) for a in arguments), "--archive", str(tmp_path / "archive")])
        except SystemExit as stopped:  # argparse
            status = int(stopped.code or 0)
        return (status, *capfd.readouterr())

    return nvp


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "faces.txt"
    path.write_text("cat\ndog\n\N{SNOWMAN}\n", "utf-8")
    return path


class TestAdd:
    def test_it_says_what_is_registered_now(self, run: Run, labels: Path) -> None:
        status, out, err = run("tasks", "add", *DICE, "--labels", labels, "--json")
        assert (status, err) == (0, "")
        added = json.loads(out)
        assert set(added) == {field.name for field in dataclasses.fields(AddedTask)}
        assert (added["name"], added["kind"], added["labels"]) == ("dice", "classification", 3)
        assert (added["weights"], added["weights_bytes"], added["warning"]) == ("random", 0, None)
        assert added["already_registered"] is False
        status, out, _ = run("tasks", "add", *DICE, "--labels", labels)
        assert (status, out.count("\n")) == (0, 1)
        assert "dice@" in out
        assert "was registered" in out

    def test_lists_say_where_weights_are(self, run: Run, labels: Path) -> None:
        run("tasks", "add", *DICE, "--labels", labels)
        (listed,) = json.loads(run("tasks", "list", "--json")[1])
        assert set(listed) == {"name", "version", "kind", "cuts", "weights"}
        assert listed["weights"] == "random"
        heading, _, row = run("tasks", "list")[1].splitlines()
        assert heading.split() == ["name", "kind", "cuts", "weights", "version"]
        assert row.split()[3] == "random"
        shown = json.loads(run("tasks", "show", "dice", "--json")[1])
        assert (shown["weights"], shown["labels"]) == ("random", ["cat", "dog", "\N{SNOWMAN}"])
        available = {row["name"]: row for row in json.loads(run("tasks", "list", "--available", "--json")[1])}
        assert (available["dice"]["weights"], available["labels"]["weights"]) == ("random", "package")
        assert available["vit_b16"]["weights"] is None

    @pytest.mark.parametrize(
        ("arguments", "status", "says"),
        [
            (("faces",), 2, "not built in"),
            (("videos", "--like", "resnet50"), 2, "a view of the catalog"),
            (("resnet50",), 1, "say --weights FILE"),
            ((*DICE, "--labels", "absent.txt"), 1, "absent.txt"),
            ((*DICE, "--weights", "w.pth"), 2, "not allowed with argument"),
            ((*DICE, "--size", "224"), 2, "two whole numbers"),
            ((*DICE, "--clip", "32"), 2, "two whole numbers"),
            ((*DICE, "--mean", "1,2"), 2, "three numbers"),
            ((*DICE, "--options", "[1]"), 2, "not a JSON object"),
            ((*DICE, "--kind", "poetry"), 2, "invalid choice"),
        ],
    )
    def test_what_is_wrong_is_one_line(
        self, run: Run, arguments: tuple[str, ...], status: int, says: str
    ) -> None:
        found, out, err = run("tasks", "add", *arguments)
        assert (found, out, err.count("\n")) == (status, "", 1), err
        assert says in err

    def test_labels_are_text(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
        status, _, err = run("tasks", "add", *DICE, "--labels", tmp_path / "binary")
        assert (status, "not a text in UTF-8" in err) == (2, True)

    def test_what_it_cannot_do_is_a_warning(
        self, run: Run, labels: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        winding = "tests.upkeep.test_tasks:winding"
        monkeypatch.setenv("NVP_FACTORIES", winding)
        own = ("--provider", "factory", "--model", winding, "--kind", "classification", "--size", "16x16")
        status, out, err = run("tasks", "add", "odd", *own, "--labels", labels, "--random", "6", "--json")
        assert (status, err.count("\n")) == (0, 1)
        assert err.startswith("nvp: warning: only pixel and source routes can answer it: ")
        assert json.loads(out)["warning"] in err

    def test_its_options_are_the_requests_fields(self) -> None:
        fields = {field.name for field in dataclasses.fields(TaskRequest)}
        assert set(tasks.FIELDS) == fields - {"name", "labels"}
        assert get_args(TaskKind) == tasks.KINDS
        assert get_args(Fit) == tasks.FITS


@pytest.mark.slow
class TestTrain:
    @pytest.fixture
    def fitted(
        self, nvp: Nvp, run: Run, tmp_path: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Run:
        """On a copy of the archive that holds a fitted clip; with a task that it knows no routes for."""
        monkeypatch.setattr(learning, "SETTINGS", RouteSettings(adapters=1, epochs=1))
        shutil.rmtree(tmp_path / "archive")
        shutil.copytree(nvp.archive, tmp_path / "archive")
        assert run("tasks", "add", *DICE, "--labels", labels)[0] == 0
        return run

    def test_an_estimate_then_the_work_then_nothing(self, fitted: Run) -> None:
        train = ("tasks", "train", "dice", "--device", "cpu")
        status, out, err = fitted(*train, "--dry-run", "--json")
        (estimated,) = json.loads(out)
        assert (status, estimated["state"]) == (0, "estimated")
        assert err.splitlines()[-1].startswith("estimated: 1 videos, 12 frames, ")
        status, out, err = fitted(*train, "--json", "--share", "0.3")
        (row,) = json.loads(out)
        assert set(row) == set(estimated) == {field.name for field in dataclasses.fields(TrainedVideo)}
        assert (status, row["state"], row["name"], row["why"]) == (0, "trained", "square", None)
        assert (row["frames"], row["trained_frames"], row["measured_frames"]) == (12, 4, 8)
        assert "train  12/12 (100 %)" in err
        status, out, err = fitted(*train)
        assert (status, err) == (0, "no fitted video lacks routes of this task\n")
        status, out, err = fitted(*train, "--again", "--videos", "tags['camera'] = 'gate'")
        heading, _, shown = out.splitlines()
        assert heading.split()[:4] == ["name", "state", "segments", "fidelity"]
        assert shown.split()[:2] == ["square", "trained"]

    def test_what_failed_is_said_after_the_rows(self, fitted: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Any) -> None:
            raise archive.StoreError("the disk is gone")

        monkeypatch.setattr(learning.Learning, "segment", broken)
        status, out, err = fitted("tasks", "train", "dice", "--device", "cpu", "--json")
        assert (status, json.loads(out)[0]["state"]) == (1, "failed")
        assert err.splitlines()[-1] == "nvp: 1 of 1 videos were not trained: square: the disk is gone"

    @pytest.mark.parametrize(
        ("arguments", "status", "says"),
        [
            (("dise",), 1, "this archive has dice, labels"),
            (("dice", "--share", "2"), 2, "share 2.0"),
            (("dice", "--share", "x"), 2, "invalid float"),
            (("dice", "--videos", "colour = 1"), 1, "colour"),
        ],
    )
    def test_what_is_wrong_is_one_line(
        self, fitted: Run, arguments: tuple[str, ...], status: int, says: str
    ) -> None:
        found, out, err = fitted("tasks", "train", *arguments)
        assert (found, out, err.count("\n")) == (status, "", 1), err
        assert says in err

    def test_answers_are_made_steady(self, fitted: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        stabilize = ("tasks", "stabilize", "labels", "--device", "cpu", "--share", "1")
        status, out, _ = fitted(*stabilize, "--dry-run")
        assert (status, out.split()[:2]) == (0, ["labels:", "200"])
        assert fitted("tasks", "steadiness", "labels")[1].count("plain") == 1
        status, out, err = fitted(*stabilize, "--steps", "2", "--json")
        made = json.loads(out)
        assert (status, made["state"], made["change"]) == (0, "trained", None)
        assert set(made) == {field.name for field in dataclasses.fields(StabilizerSummary)}
        assert "train  1/2 (50 %)" in err  # later ones only where a second has passed
        status, out, _ = fitted("tasks", "steadiness", "labels", "--every", "0.1", "--json")
        assert [row["answers"] for row in json.loads(out)] == ["plain", "stabilized"]
        assert fitted("tasks", "steadiness", "labels", "--videos", "colour = 1")[0] == 1
        found, _, err = fitted(*stabilize, "--stability", "9")
        assert (found, "repeat the first one" in err) == (2, True)

    def test_defaults_of_stabilizing_are_the_archives_own(self) -> None:
        args = cli.build_parser().parse_args(["tasks", "stabilize", "labels"])
        assert (args.share, args.steps, args.stability) == (
            archive.DEFAULT_STEADY_SHARE,
            archive.DEFAULT_STEADY_STEPS,
            archive.DEFAULT_STABILITY,
        )
        assert set(tasks.STEADY_VARIANTS) == set(VARIANTS) - {"fixed"}

    def test_defaults_are_the_archives_own(self) -> None:
        args = cli.build_parser().parse_args(["tasks", "train", "dice"])
        assert args.share == archive.DEFAULT_SHARE
        assert f"up to {archive.DEFAULT_MEASURED} others" in tasks.TRAIN
