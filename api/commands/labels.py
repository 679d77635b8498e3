"""`nvp export-labels`: answers on frames as a data set for other tools."""

from __future__ import annotations

import argparse
from typing import Any

from nvpstore.api.commands.opening import Subparsers, open_itself, seconds
from nvpstore.api.output import Output

EXPORT_LABELS = """\
Writes a task's answers on frames into the folder OUT: labels.json, and the frames as JPEG in data/.
Detections as COCO, boxes in source pixels; classifications, each frame's first label, as FiftyOne lays images
out. FiftyOne opens both (COCODetectionDataset, FiftyOneImageClassificationDataset).

--json: path, images, labels, pictures.
"""


def add_export_labels(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser(
        "export-labels",
        help="write answers and frames as a COCO or FiftyOne data set",
        description=EXPORT_LABELS,
        **options,
    )
    parser.add_argument("task", metavar="TASK", help="NAME or NAME@VERSION")
    parser.add_argument("out", metavar="OUT", help="a folder")
    parser.add_argument(
        "--where", metavar="SQL", help="frames for which this holds: columns of videos (as v), f.frame, f.ts"
    )
    parser.add_argument("--every", type=seconds, metavar="S", help="a frame every S seconds (default: all)")
    parser.add_argument(
        "--least-score", type=float, default=0.0, metavar="X", help="leave out labels below (default: 0)"
    )
    parser.add_argument("--no-pictures", action="store_true", help="labels.json alone")
    parser.set_defaults(run=export_labels)


def export_labels(args: argparse.Namespace, output: Output) -> None:
    # Here, since help must not load the archive.
    from nvpstore.handover.labels import Chosen
    from nvpstore.handover.labels import export_labels as write

    done = write(
        open_itself(args),
        args.task,
        args.out,
        chosen=Chosen(where=args.where, every=args.every, least_score=args.least_score),
        pictures=not args.no_pictures,
    )
    output.done(done, text=f"wrote {done.labels} labels of {done.images} frames to {done.path}")
