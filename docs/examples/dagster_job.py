"""Dagster: the same steps as assets, each materialised by one command of the CLI."""

from __future__ import annotations

import json
import shlex
import subprocess
from typing import Any

from dagster import (
    AssetExecutionContext,
    Definitions,
    MaterializeResult,
    ScheduleDefinition,
    asset,
    define_asset_job,
)

ARCHIVE = "s3://bucket/archive"
COMMANDS = {
    "added": "nvp add 's3://bucket/incoming/**' --tag source=camera --json",
    "fitted": "nvp fit --engine processes --workers 2 --json",
    "labels": "nvp batch /srv/labels.sql -o s3://bucket/labels --workers 2 --incremental --json",
}


def run(context: AssetExecutionContext, command: str) -> Any:
    """What the command says as JSON; a failure shows its one line."""
    done = subprocess.run([*shlex.split(command), "--archive", ARCHIVE], capture_output=True, text=True)
    context.log.info(done.stderr)
    done.check_returncode()
    return json.loads(done.stdout)


@asset
def added(context: AssetExecutionContext) -> MaterializeResult:
    videos = run(context, COMMANDS["added"])
    return MaterializeResult(metadata={"new": sum(not video["already_stored"] for video in videos)})


@asset(deps=[added])
def fitted(context: AssetExecutionContext) -> MaterializeResult:
    report = run(context, COMMANDS["fitted"])
    return MaterializeResult(metadata={"stored": len(report["stored"]), "failed": len(report["failed"])})


@asset(deps=[fitted])
def labels(context: AssetExecutionContext) -> MaterializeResult:
    report = run(context, COMMANDS["labels"])
    return MaterializeResult(metadata={name: report[name] for name in ("rows", "decoded_frames", "seconds")})


nightly = define_asset_job("nightly", selection="*")
definitions = Definitions(
    assets=[added, fitted, labels],
    schedules=[ScheduleDefinition(job=nightly, cron_schedule="0 1 * * *")],
)
