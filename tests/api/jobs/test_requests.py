"""What jobs are asked: their JSON is read back as it was, and nothing else is taken for a request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nvpstore.api.jobs.requests import (
    DEFAULT_MEASURED,
    DEFAULT_PRESET,
    DEFAULT_SHARE,
    DEFAULT_TASKS,
    FitJob,
    IngestJob,
    QueryJob,
    TrainJob,
)
from nvpstore.archive import DEFAULT_MEASURED as MEASURED
from nvpstore.archive import DEFAULT_PRESET as PRESET
from nvpstore.archive import DEFAULT_SHARE as SHARE
from nvpstore.archive import DEFAULT_TASKS as TASKS
from nvpstore.errors import UsageError

REQUESTS = [
    IngestJob(file="/spool/a/clip.mp4", original_name="clip.mp4", sha256="ab" * 32),
    IngestJob(
        uri="s3://bucket/clip.mp4",
        original_name="clip.mp4",
        name="Tor",
        tags={"camera": "gäte"},
        recorded_at="2026-05-01T12:30:00+02:00",
        tasks=(),
        preset="micro",
        keep_source="reference",
        refit=True,
    ),
    FitJob(video="ab12", tasks=("labels", "other"), preset="micro", keep_source="copy", refit=True),
    FitJob(video="gate"),
    TrainJob(task="labels", videos="name = 'gate'", share=0.5, measured=7, again=True),
    TrainJob(task="labels"),
    QueryJob(sql="SELECT 1"),
    QueryJob(sql="SELECT ?", params=[1, None, "x"], format="parquet"),
    QueryJob(sql="SELECT $a", params={"a": [1.5]}, format="arrow"),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_json_is_read_back_as_it_was(request_: Any) -> None:
    assert type(request_).from_json(json.loads(json.dumps(request_.to_json()))) == request_


def test_what_is_left_out_is_as_in_the_archive() -> None:
    assert (DEFAULT_PRESET, DEFAULT_TASKS) == (PRESET, TASKS)
    assert (DEFAULT_SHARE, DEFAULT_MEASURED) == (SHARE, MEASURED)
    assert FitJob.from_json({"video": "x"}) == FitJob(video="x")
    assert IngestJob.from_json({"uri": "s3://b/x", "original_name": "x"}).tasks == TASKS


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"original_name": "x"}, "one of them is needed"),
        ({"file": "a", "uri": "b", "original_name": "x"}, "one of them is needed"),
        ({"file": "a"}, "original_name is None: a text is needed"),
        ({"file": 1, "original_name": "x"}, "file is 1: a text is needed"),
        ({"file": "a", "original_name": "x", "keep_source": "reference"}, "'copy' or not at all"),
        ({"file": "a", "original_name": "x", "keep_source": "both"}, "reference, copy, none are allowed"),
        ({"file": "a", "original_name": "x", "tags": {"a": 1}}, "texts by name"),
        ({"file": "a", "original_name": "x", "tags": ["a"]}, "texts by name"),
        ({"file": "a", "original_name": "x", "tasks": "labels"}, "a list of texts"),
        ({"file": "a", "original_name": "x", "tasks": ["labels", 1]}, "a list of texts"),
        ({"file": "a", "original_name": "x", "refit": 1}, "true or false"),
        ({"file": "a", "original_name": "x", "recorded_at": "yesterday"}, "ISO 8601"),
        ({"file": "a", "original_name": "x", "recorded_at": "2026-05-01T12:30:00"}, "with its zone"),
        ({"file": "a", "original_name": "x", "recorded_at": "0001-01-01T00:00:00+14:00"}, "a year from 2"),
        ({"file": "a", "original_name": "x", "recorded_at": "9999-12-31T23:59:59-12:00"}, "to 9998"),
        ({"file": "a", "original_name": "x", "device": "cuda"}, "no device"),
    ],
)
def test_an_ingest_that_is_malformed_says_where(value: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        IngestJob.from_json(value)


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (FitJob, {}, "video is None"),
        (FitJob, {"video": "x", "keep_source": "both"}, "are allowed"),
        (TrainJob, {"task": "labels", "share": "half"}, "a number"),
        (TrainJob, {"task": "labels", "measured": True}, "a whole number"),
        (TrainJob, {"task": "labels", "measured": 1.5}, "a whole number"),
        (QueryJob, {"sql": None}, "a text"),
        (QueryJob, {"sql": "SELECT 1", "params": "x"}, "a list or an object"),
        (QueryJob, {"sql": "SELECT 1", "format": "xml"}, "json, ndjson, csv, arrow, parquet"),
    ],
)
def test_other_jobs_that_are_malformed_say_where(kind: Any, value: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        kind.from_json(value)
