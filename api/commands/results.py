"""`nvp results ls`, `nvp results drop`."""

from __future__ import annotations

import argparse
from typing import Any

from nvpstore.api.commands.opening import Subparsers, open_itself
from nvpstore.api.output import Output
from nvpstore.api.progress import size
from nvpstore.errors import UsageError

RESULTS = """\
What queries computed is kept in the archive as answers, so that nothing is computed twice. They are
derived: dropping them only makes queries slower. A refit of a video or new routes of a task drop theirs.
"""
LS = """\
--json: task, version, video_id, name, result (digest of what else the answers depend on), frames
(covered; 0: damaged), rows, bytes, stored_at, key.
"""
DROP = """\
Later queries compute the answers again; gc deletes the objects after the archive's grace.

--json: objects, bytes and frames dropped.
"""


def add_results(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser("results", help="stored answers of queries", description=RESULTS, **options)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    ls_parser = actions.add_parser("ls", help="what is stored", description=LS, **options)
    _add_filters(ls_parser)
    ls_parser.set_defaults(run=list_results)
    drop_parser = actions.add_parser("drop", help="forget stored answers", description=DROP, **options)
    _add_filters(drop_parser)
    drop_parser.add_argument("--all", action="store_true", help="of all tasks and videos")
    drop_parser.set_defaults(run=drop_results)


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", metavar="NAME", help="of this task, or NAME@VERSION")
    parser.add_argument("--video", metavar="VIDEO", help="of this video: id, its beginning, or unique name")


def list_results(args: argparse.Namespace, output: Output) -> None:
    found = open_itself(args).results(video=args.video, task=args.task)
    output.rows(found, columns=("task", "name", "frames", "rows", "bytes", "stored_at", "video_id"))


def drop_results(args: argparse.Namespace, output: Output) -> None:
    if args.all == bool(args.task or args.video):
        raise UsageError("say what to drop: --task, --video or both, or else --all")
    dropped = open_itself(args).drop_results(video=args.video, task=args.task)
    total = {
        "objects": len(dropped),
        "bytes": sum(result.bytes for result in dropped),
        "frames": sum(result.frames for result in dropped),
    }
    text = f"dropped answers on {total['frames']} frames: {len(dropped)} objects, {size(total['bytes'])}"
    output.done(total, text=text)
