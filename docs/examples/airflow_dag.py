"""Airflow: videos in, fitted, questioned, each night. The CLI does the work; a retry goes on."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

COMMANDS = {
    "add": "nvp add 's3://bucket/incoming/**' --tag source=camera",
    "fit": "nvp fit --engine ray --workers 8 --gpus-a-worker 0.25",
    "labels": "nvp batch /srv/labels.sql -o s3://bucket/labels --engine ray --workers 8 --incremental",
    "gc": "nvp gc",
}

with DAG(
    "nvpstore_nightly",
    schedule="0 1 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=10)},
) as dag:
    before = None
    for name, command in COMMANDS.items():
        task = BashOperator(
            task_id=name,
            bash_command=command,
            env={"NVP_ARCHIVE": "s3://bucket/archive"},
            append_env=True,
        )
        if before is not None:
            before >> task
        before = task
