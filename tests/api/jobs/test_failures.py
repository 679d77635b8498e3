"""What a job's owner is told of an error, and which errors are worth another attempt."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from nvpstore import errors
from nvpstore.api.jobs.failures import OURS, described
from nvpstore.api.service.problems import status_of
from nvpstore.errors import (
    CommitDropped,
    IntegrityError,
    NvpError,
    ObjectExists,
    ObjectMissing,
    SourceError,
    StoreError,
    TaskError,
    UsageError,
)


def all_errors() -> Iterator[type[NvpError]]:
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, NvpError):
            yield value


@pytest.mark.parametrize("kind", list(all_errors()))
def test_a_job_and_a_request_fail_with_the_same_status(kind: type[NvpError]) -> None:
    failure = described(kind("why"))
    assert failure.status == status_of(kind("why")).value
    assert (failure.error, failure.detail) == (kind.__name__, "why")
    assert failure.expected


@pytest.mark.parametrize("kind", [StoreError, ObjectMissing])
def test_what_may_pass_is_tried_again(kind: type[NvpError]) -> None:
    assert described(kind("why")).retry


@pytest.mark.parametrize(
    "kind", [SourceError, UsageError, TaskError, CommitDropped, IntegrityError, ObjectExists, NvpError]
)
def test_what_stays_is_not(kind: type[NvpError]) -> None:
    assert not described(kind("why")).retry


def test_a_full_disk_is_said_clearly_and_tried_again() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as cause:
            raise StoreError("cannot write videos/x in /secret/place") from cause
    except StoreError as error:
        behind = described(error)
    bare = described(OSError(errno.EDQUOT, "Disk quota exceeded"))
    for failure in (behind, bare):
        assert (failure.status, failure.detail, failure.retry) == (507, "the server's disk is full", True)
        assert failure.expected


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: 1")])
def test_want_of_memory_is_said_clearly(error: Exception) -> None:
    failure = described(error)
    assert "out of memory" in failure.detail
    assert not failure.expected


def test_of_our_own_mistakes_nothing_is_shown() -> None:
    failure = described(KeyError("/secret/place"))
    assert failure.to_json() == {"title": "Internal Server Error", "detail": OURS, "status": 500}
    assert (failure.retry, failure.expected) == (True, False)


def test_lines_become_one() -> None:
    assert described(SourceError("a\n  b")).detail == "a b"
