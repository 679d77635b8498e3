"""The command line `nvp`: arguments in, one call of `Archive`, a value out.

Exit status: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C, 141 the reader of stdout went away.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from nvpstore import __version__
from nvpstore.api.commands import COMMANDS
from nvpstore.api.output import JsonOutput, TextOutput
from nvpstore.config import load_settings
from nvpstore.errors import NvpError, UsageError

DONE, FAILED, USAGE, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141


class StableHelp(argparse.RawDescriptionHelpFormatter):
    """Help that is the same on every Python version and terminal, so that the docs can hold it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return ", ".join(action.option_strings) + f" {value}"


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the whole usage."""

    def error(self, message: str) -> NoReturn:
        print_error(f"{message} (see {self.prog} --help)")
        sys.exit(USAGE)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. Every command takes --archive and --json before or after its name."""
    parser = OneLineParser(
        prog="nvp",
        description="Videos stored as neural networks, questioned with SQL.",
        epilog="Every setting and environment variable: docs/configuration.md",
        formatter_class=StableHelp,
    )
    parser.add_argument("--version", action="version", version=f"nvp {__version__}")
    _add_common(parser, archive=None, as_json=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    # SUPPRESS: an option that is not repeated after the command must not undo the one before it.
    common = argparse.ArgumentParser(add_help=False)
    _add_common(common, archive=argparse.SUPPRESS, as_json=argparse.SUPPRESS)
    for add_command in COMMANDS:
        add_command(commands, parents=[common], formatter_class=StableHelp)
    return parser


def _add_common(parser: argparse.ArgumentParser, *, archive: str | None, as_json: bool | str) -> None:
    parser.add_argument("--archive", metavar="URI", default=archive, help="archive root (or NVP_ARCHIVE)")
    parser.add_argument(
        "--json", action="store_true", default=as_json, help="write one JSON document to stdout"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    args = build_parser().parse_args(argv)
    try:
        _run(args)
        sys.stdout.flush()
    except UsageError as error:
        return _fail(error, status=USAGE)
    except NvpError as error:
        return _fail(error, status=FAILED)
    except KeyboardInterrupt:
        print_error("interrupted; the same command again continues from what is finished")
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return PIPE_CLOSED
    except OSError as error:
        return _fail(error, status=FAILED)
    return DONE


def _run(args: argparse.Namespace) -> None:
    settings = load_settings()
    args.archive = args.archive or settings.archive
    args.run(args, JsonOutput() if args.json else TextOutput())


def _fail(error: Exception, *, status: int) -> int:
    # NVP_DEBUG may itself be what is malformed.
    if os.environ.get("NVP_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    print_error(_one_line(error))
    return status


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


def print_error(text: str) -> None:
    """One line on stderr, never a traceback."""
    sys.stderr.write(f"nvp: {text}\n")


def _silence_stdout() -> None:
    # Otherwise the interpreter complains once more when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
