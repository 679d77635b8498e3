from __future__ import annotations

import subprocess
import sys

import pytest

from nvpstore import __version__
from nvpstore.api import cli
from nvpstore.api.docs import parsers
from nvpstore.errors import StoreError, UsageError

COMMANDS = [
    "init", "ingest", "sql", "ls", "show", "tasks list", "tasks show", "export", "catalog rebuild", "verify",
]  # fmt: skip


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_run", run)


def test_all_commands_are_there() -> None:
    names = {parser.prog.removeprefix("nvp ") for parser in parsers(cli.build_parser())}
    assert set(COMMANDS) <= names


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_archive_and_json(command: str) -> None:
    parser = next(p for p in parsers(cli.build_parser()) if p.prog == f"nvp {command}")
    assert "--archive URI" in parser.format_help()
    assert "--json" in parser.format_help()


@pytest.mark.parametrize("argv", [["--json", "--archive", "a", "ls"], ["ls", "--archive", "a", "--json"]])
def test_common_options_stand_before_or_after_the_command(argv: list[str]) -> None:
    args = cli.build_parser().parse_args(argv)
    assert (args.archive, args.json) == ("a", True)


def test_the_later_archive_wins() -> None:
    assert cli.build_parser().parse_args(["--archive", "a", "ls", "--archive", "b"]).archive == "b"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "COMMAND"),
        (["frobnicate"], "invalid choice"),
        (["ingest"], "FILE"),
        (["ingest", "a.mp4", "--device", "tpu"], "invalid choice"),
        (["ingest", "a.mp4", "--tag", "gate"], "not KEY=VALUE"),
        (["export", "v", "o.mp4", "--start", "soon"], "not a number of seconds"),
        (["export", "v", "o.mp4", "--start", "-1"], "at least 0"),
        (["export", "v", "o.mp4", "--lossless", "--original"], "not allowed with"),
        (["sql", "SELECT 1", "--format", "yaml"], "invalid choice"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("nvp: ")
    assert said in captured.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["ls"], "no archive named"),
        (["init"], "no archive named"),
        (["sql", "SELECT 1", "--json", "--format", "csv", "--archive", "a"], "--json with --format csv"),
        (["export", "v", "o", "--start", "2", "--end", "1", "--archive", "a"], "after the start"),
        (["ingest", "a", "b", "--name", "x", "--archive", "a"], "one file at a time"),
    ],
)
def test_contradictions_are_one_line_and_status_2(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert said in captured.err


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (StoreError("disk is full:\n  10 bytes left"), 1, "nvp: disk is full: 10 bytes left\n"),
        (UsageError("no table labls"), 2, "nvp: no table labls\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "nvp: [Errno 13] Permission denied: '/x'\n"),
        (
            KeyboardInterrupt(),
            130,
            "nvp: interrupted; the same command again continues from what is finished\n",
        ),
    ],
)
def test_errors_are_one_line_and_a_status(
    error: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail_with(monkeypatch, error)
    assert cli.main(["ls"]) == status
    assert capsys.readouterr().err == said


def test_debug_shows_where_it_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NVP_DEBUG", "1")
    fail_with(monkeypatch, StoreError("no such bucket"))
    assert cli.main(["ls"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("nvp: no such bucket\n")


def test_a_malformed_setting_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NVP_THREADS", "many")
    assert cli.main(["ls", "--archive", "a"]) == 2
    assert capsys.readouterr().err == "nvp: NVP_THREADS is 'many': a number is needed\n"


def test_our_own_mistakes_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, AssertionError("a bug"))
    with pytest.raises(AssertionError):
        cli.main(["ls"])


def test_a_reader_that_goes_away_is_no_noise() -> None:
    code = (
        "import sys\nfrom nvpstore.api import cli\n"
        "cli._run = lambda args: [print('x' * 1000) for _ in range(1000)]\n"
        "sys.exit(cli.main(['ls']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        said = running.stderr.read()
    assert said == b""
    assert running.returncode == 141


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom nvpstore.api import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'duckdb' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"nvp {__version__}\n"
