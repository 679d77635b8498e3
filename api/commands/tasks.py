"""`nvp tasks list`, `nvp tasks show`."""

from __future__ import annotations

import argparse
from typing import Any

from nvpstore.api.commands.opening import Subparsers, open_archive
from nvpstore.api.output import Output


def add_tasks(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser("tasks", help="list and show tasks", **options)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    list_parser = actions.add_parser("list", help="tasks of the archive", **options)
    list_parser.add_argument(
        "--available", action="store_true", help="all tasks that this release knows, registered or not"
    )
    list_parser.set_defaults(run=list_tasks)
    show_parser = actions.add_parser("show", help="one task with its labels", **options)
    show_parser.add_argument("name", metavar="NAME", help="task name, or NAME@VERSION")
    show_parser.set_defaults(run=show_task)


def list_tasks(args: argparse.Namespace, output: Output) -> None:
    tasks = open_archive(args).tasks(available=args.available)
    output.rows(tasks, columns=("name", "kind", "cuts", "version"))


def show_task(args: argparse.Namespace, output: Output) -> None:
    output.record(open_archive(args).task(args.name))
