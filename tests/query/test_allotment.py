"""Queries that run at the same time share one process's memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import duckdb
import pytest

from nvpstore.errors import QueryError
from nvpstore.query.allotment import ALLOTMENT, FLOOR_BYTES, Allotment, Share
from nvpstore.query.limits import Limits
from nvpstore.query.request import Request
from nvpstore.query.run import execute, execute_stream
from nvpstore.query.safety import lock_down
from tests.query.archive_fixture import SETTINGS, CountingOperators, FixtureSnapshot, ask
from tests.query.test_sharing import at_once

LIMITS = Limits(memory_bytes=1 << 30)
BUDGET = LIMITS.duckdb_bytes


def limit_of(con: duckdb.DuckDBPyConnection) -> str:
    ((text,),) = con.execute("SELECT current_setting('memory_limit')").fetchall()
    return str(text)


@contextmanager
def running(
    allotment: Allotment, limits: Limits = LIMITS
) -> Iterator[tuple[duckdb.DuckDBPyConnection, Share]]:
    con = duckdb.connect(":memory:")
    lock_down(con, memory_limit=f"{FLOOR_BYTES >> 20}MiB", threads=1, changeable=("memory_limit",))
    with con, allotment.share(limits, con) as share:
        yield con, share


class TestShares:
    def test_one_alone_has_everything(self) -> None:
        with running(Allotment()) as (con, share):
            assert (share.duckdb_bytes, share.rows_bytes) == (BUDGET, LIMITS.rows_bytes)
            assert limit_of(con) == "512.0 MiB"

    def test_shares_follow_who_runs(self) -> None:
        allotment = Allotment()
        with running(allotment) as (first, share):
            for others in (1, 3, 0):
                with ExitStack() as stack:
                    rest = [stack.enter_context(running(allotment)) for _ in range(others)]
                    count = others + 1
                    assert limit_of(first) == f"{512 / count:.1f} MiB"
                    assert {limit_of(con) for con, _ in rest} <= {f"{512 / count:.1f} MiB"}
                    assert allotment.granted_bytes <= BUDGET
                    assert share.rows_bytes == LIMITS.rows_bytes // count
            assert limit_of(first) == "512.0 MiB"
        assert allotment.granted_bytes == 0

    def test_nobody_has_less_than_the_floor(self) -> None:
        allotment = Allotment()
        with ExitStack() as stack:
            small = Limits(memory_bytes=64 << 20)
            shares = [stack.enter_context(running(allotment, small))[1] for _ in range(5)]
            assert {share.duckdb_bytes for share in shares} == {FLOOR_BYTES}

    def test_what_duckdb_holds_is_not_granted_again(self) -> None:
        allotment = Allotment()
        with running(allotment) as (holding, share):
            share.close()  # nobody can change its limit any more
            with running(allotment) as (con, other):
                assert (share.duckdb_bytes, limit_of(holding)) == (BUDGET, "512.0 MiB")
                assert (other.duckdb_bytes, limit_of(con)) == (FLOOR_BYTES, "16.0 MiB")

    def test_a_running_sort_gives_way_to_disk(self) -> None:
        allotment, seen = Allotment(), []
        sql = "SELECT count(*) FROM (SELECT md5(i::VARCHAR) AS m FROM range(300000) AS t(i) ORDER BY m)"
        with running(allotment) as (con, _):
            con.execute("CREATE TABLE held AS SELECT md5(i::VARCHAR) AS m FROM range(2000000) AS t(i)")
            with running(allotment, replace(LIMITS, memory_bytes=128 << 20)) as (_, share):
                seen = con.execute(sql).fetchall()
                assert share.duckdb_bytes <= 64 << 20
        assert seen == [(300000,)]


class Meeting(CountingOperators):
    """Notes what is granted while all of `parties` decode."""

    def __init__(self, parties: int) -> None:
        super().__init__()
        self.barrier = threading.Barrier(parties)
        self.granted: list[int] = []

    def fetch(self, snapshot: Any, video_id: str, segment: int, stage: str) -> Any:
        self.barrier.wait(30)
        self.granted.append(ALLOTMENT.granted_bytes)
        self.barrier.wait(30)
        return super().fetch(snapshot, video_id, segment, stage)


class TestQueries:
    def test_two_at_once_are_granted_no_more_than_the_budget(self, snapshot: FixtureSnapshot) -> None:
        operators = Meeting(2)
        asked = [
            f"SELECT label FROM labels WHERE video_id = repeat('a', 32) AND segment = {segment}"
            for segment in (0, 1)
        ]
        expected = [ask(snapshot, sql).fetchall() for sql in asked]
        found = at_once([partial(ask, snapshot, sql, operators) for sql in asked])
        budget = Limits(memory_bytes=SETTINGS.memory_bytes).duckdb_bytes
        assert operators.granted == [budget, budget]
        assert [result.fetchall() for result in found] == expected
        assert ALLOTMENT.granted_bytes == 0

    def test_a_query_between_two_batches_of_a_stream_waits_for_nobody(
        self, snapshot: FixtureSnapshot
    ) -> None:
        request = Request(
            sql="SELECT label FROM labels",
            snapshot=snapshot,
            operators_factory=CountingOperators,
            settings=replace(SETTINGS, memory_bytes=64 << 20),
        )
        with ExitStack() as stack:
            streams = [execute_stream(request) for _ in range(4)]
            for stream in streams:
                stack.callback(stream.close)
                next(stream)
            rows = execute(request).fetchall()
            assert rows == [
                row for batch in streams[0] for row in zip(*batch.to_pydict().values(), strict=True)
            ]
        assert ALLOTMENT.granted_bytes == 0

    def test_a_query_cannot_change_its_share(self, snapshot: FixtureSnapshot) -> None:
        for sql in ("SET memory_limit = '9GB'", "PRAGMA memory_limit = '9GB'"):
            with pytest.raises(QueryError):
                ask(snapshot, sql)

    def test_a_failing_query_gives_its_share_back(self, snapshot: FixtureSnapshot) -> None:
        with pytest.raises(QueryError):
            ask(snapshot, "SELECT no_such_column FROM labels")
        assert ALLOTMENT.granted_bytes == 0
