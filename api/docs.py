"""The CLI reference, from the parsers themselves.

python -m nvpstore.api.docs [--check] docs/cli.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from nvpstore.api.cli import build_parser

INTRODUCTION = """\
# Command line

Written by `python -m nvpstore.api.docs docs/cli.md` from the same text as `--help`.

Exit status: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C, 141 the reader of stdout went away.
Results go to stdout; progress, estimates and one line for each error go to stderr. With `--json`, stdout
holds one JSON document in which floats read back exactly, blobs are base64, and NaN and infinities are
`null`.
"""


def cli_reference() -> str:
    """The whole of docs/cli.md."""
    sections = [
        f"## {parser.prog}\n\n```text\n{parser.format_help()}```\n" for parser in parsers(build_parser())
    ]
    return "\n".join([INTRODUCTION, *sections])


def parsers(root: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """`root` and the parsers of all its commands, in the order of --help."""
    yield root
    for action in root._actions:
        if isinstance(action, argparse._SubParsersAction):
            for parser in action.choices.values():
                yield from parsers(parser)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m nvpstore.api.docs")
    parser.add_argument("path", type=Path)
    parser.add_argument("--check", action="store_true", help="fail where the file differs; write nothing")
    args = parser.parse_args()
    if not args.check:
        args.path.write_text(cli_reference(), encoding="utf-8")
    elif args.path.read_text(encoding="utf-8") != cli_reference():
        sys.stderr.write(f"{args.path} differs from --help: run python -m nvpstore.api.docs {args.path}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
