"""`nvp views add`, `nvp views ls`, `nvp views rm`."""

from __future__ import annotations

import argparse
from typing import Any

from nvpstore.api.commands.opening import Subparsers, open_itself
from nvpstore.api.output import Output

VIEWS = """\
A view is a SELECT under a name, saved in the archive. Every query of the archive can name it like a table,
under the same rules as the query itself. Views belong to no video: `nvp rm` and `nvp copy` leave them as
they are, also where their text holds a video's name.
"""
ADD = """\
SELECT is checked against the archive's tables, tasks and views, and may have no parameters. A view of that
name is replaced. A name is a lowercase letter, then up to 62 of a-z 0-9 _; names of tasks, of the
catalog's views and of SQL are refused. If the archive gets a task of a view's name later, queries that name
it fail until the view is dropped.

--json: name, sql, saved_at.
"""
LS = """\
--json: name, sql, saved_at.
"""
RM = """\
Views and queries that name the view fail from now on. gc deletes its object after the archive's grace.

--json: name, sql, saved_at of what was dropped.
"""


def add_views(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser("views", help="saved SELECTs", description=VIEWS, **options)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    add_parser = actions.add_parser("add", help="save a SELECT under a name", description=ADD, **options)
    add_parser.add_argument("name", metavar="NAME")
    add_parser.add_argument("sql", metavar="SELECT")
    add_parser.set_defaults(run=add_view)
    ls_parser = actions.add_parser("ls", help="what is saved", description=LS, **options)
    ls_parser.set_defaults(run=list_views)
    rm_parser = actions.add_parser("rm", help="drop a view", description=RM, **options)
    rm_parser.add_argument("name", metavar="NAME")
    rm_parser.set_defaults(run=remove_view)


def add_view(args: argparse.Namespace, output: Output) -> None:
    view = open_itself(args).save_view(args.name, args.sql)
    output.done(view, text=f"{view.name} is saved: queries can name it like a table")


def list_views(args: argparse.Namespace, output: Output) -> None:
    output.rows(open_itself(args).views(), columns=("name", "saved_at", "sql"))


def remove_view(args: argparse.Namespace, output: Output) -> None:
    view = open_itself(args).drop_view(args.name)
    output.done(view, text=f"dropped the view {view.name}")
