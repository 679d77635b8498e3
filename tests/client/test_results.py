from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

import nvpstore
from nvpstore.client.streams import NOTES_KEY, RemoteStream
from nvpstore.errors import QueryError, ServiceError, UsageError
from tests.client.proxy import Fault, Proxy
from tests.serving import Serving

if TYPE_CHECKING:
    from nvpstore.archive import Archive
    from nvpstore.client.remote import RemoteArchive

LABELS = "SELECT frame, ts, rank, label, score, route FROM labels(stride := 4) ORDER BY ALL"
SKIPPING = "SELECT * FROM labels(route := 'adapter', on_error := 'skip')"
QUERIES = (
    "SELECT * FROM videos ORDER BY video_id",
    LABELS,
    "SELECT video_id, frame, image FROM frames(stride := 8) ORDER BY ALL",
    "SELECT tags, [1, 2] AS list, {'a': 1.5, 'b': NULL} AS pair, encode('é') AS b FROM videos ORDER BY ALL",
    "SELECT 1::DECIMAL(9, 3) AS d, DATE '2026-05-01' AS day, INTERVAL 2 DAY AS span, 'nan'::FLOAT AS n",
    "SELECT label FROM labels WHERE score > 2",
    "FROM range(20000) t(n)",
)


@pytest.mark.parametrize("query", QUERIES)
def test_rows_are_those_of_the_archive_itself(remote: RemoteArchive, local: Archive, query: str) -> None:
    far, near = remote.sql(query).arrow(), local.sql(query).arrow()
    assert far.schema.equals(near.schema)
    if "nan" in query:  # which equals nothing
        assert far.drop(["n"]).equals(near.drop(["n"]))
        assert math.isnan(far["n"][0].as_py())
    else:
        assert far.equals(near)


class TestResult:
    def test_asks_when_rows_are_wanted_and_once(self, served: Serving) -> None:
        with Proxy(served.url) as proxy:
            result = nvpstore.connect(proxy.url).sql(LABELS)
            assert (result.computed, len(proxy.seen), bool(result)) == (False, 0, True)
            assert "not asked" in repr(result)
            assert result.fetchall() == list(result)
            assert len(result) == len(result.fetchall())
            assert (result.computed, len(proxy.seen)) == (True, 1)
        assert "rows: frame" in repr(result)

    def test_gives_what_people_use(self, remote: RemoteArchive) -> None:
        result = remote.sql("SELECT n, n * 2 AS m FROM range(3) t(n) ORDER BY n")
        assert result.columns == ["n", "m"]
        assert result.df().to_dict("list") == {"n": [0, 1, 2], "m": [0, 2, 4]}
        assert result.pl().to_dict(as_series=False) == {"n": [0, 1, 2], "m": [0, 2, 4]}
        assert [result.fetchone() for _ in range(4)] == [(0, 0), (1, 2), (2, 4), None]
        assert [batch.num_rows for batch in result.batches(2)] == [2, 1]
        assert pa.table(result).equals(result.table)

    def test_takes_parameters(self, remote: RemoteArchive) -> None:
        assert remote.sql("SELECT $a + 1, $b", params={"a": 1, "b": "é"}).fetchall() == [(2, "é")]
        assert remote.sql("SELECT ? + ?", params=[1, 2]).fetchall() == [(3,)]

    @pytest.mark.parametrize("value", [datetime(2026, 5, 1), b"bytes", math.inf, [1, math.nan], {"x": b""}])
    def test_refuses_parameters_that_json_has_no_form_for(self, remote: RemoteArchive, value: object) -> None:
        with pytest.raises(UsageError, match="parameter a"):
            remote.sql("SELECT $a", params={"a": value})

    def test_joins_no_tables_of_the_caller(self, remote: RemoteArchive) -> None:
        with pytest.raises(UsageError, match="mine"):
            remote.sql("SELECT * FROM mine", tables={"mine": pa.table({"a": [1]})})

    def test_tells_what_was_skipped(self, remote: RemoteArchive, local: Archive) -> None:
        far, near = remote.sql(SKIPPING), local.sql(SKIPPING)
        assert [(s.video_id, s.segment, s.table, s.reason) for s in far.skipped] == [
            (s.video_id, s.segment, s.table, s.reason) for s in near.skipped
        ]
        assert far.skipped

    def test_tells_warnings(self, remote: RemoteArchive, local: Archive) -> None:
        query = "SELECT label FROM labels(top := 2) WHERE rank = 4"
        assert remote.sql(query).warnings == local.sql(query).warnings != ()


class TestExplain:
    def test_is_the_local_plan(self, remote: RemoteArchive, local: Archive) -> None:
        far, near = remote.sql(LABELS), local.sql(f"EXPLAIN {LABELS}")
        assert far.explain() == near.explain()
        assert far.explain_dict() == near.explain_dict()
        assert not far.computed

    def test_of_an_explain_is_its_answer(self, remote: RemoteArchive) -> None:
        result = remote.sql(f"\n EXPLAIN {LABELS}")
        assert result.explain().startswith("Query\n")
        assert result.explain() == remote.sql(LABELS).explain()

    def test_analyze_says_what_it_took(self, remote: RemoteArchive) -> None:
        assert "Measured" in remote.sql(f"EXPLAIN ANALYZE {LABELS}").explain()

    def test_of_a_wrong_query_is_its_error(self, remote: RemoteArchive) -> None:
        with pytest.raises(QueryError, match="no_such_column"):
            remote.sql("SELECT no_such_column FROM videos").explain()


class TestStream:
    def test_gives_the_rows_in_batches(self, remote: RemoteArchive) -> None:
        stream = remote.stream("FROM range(50000) t(n)")
        assert stream.schema is None
        batches = list(stream)
        assert len(batches) > 1
        assert pa.Table.from_batches(batches)["n"].to_pylist() == list(range(50000))

    def test_of_no_rows_has_one_empty_batch(self, remote: RemoteArchive) -> None:
        batches = list(remote.stream("SELECT label FROM labels WHERE score > 2"))
        assert [(batch.num_rows, batch.schema.names) for batch in batches] == [(0, ["label"])]

    def test_says_at_its_end_what_was_skipped(self, remote: RemoteArchive) -> None:
        stream = remote.stream(SKIPPING)
        assert stream.skipped == ()
        list(stream)
        assert stream.skipped

    def test_can_be_left_early(self, remote: RemoteArchive) -> None:
        stream = remote.stream("FROM range(100000000) t(n)")
        assert next(stream).num_rows
        stream.close()
        assert remote.sql("SELECT 1").fetchall() == [(1,)]


class TestAnswersThatBreakOff:
    @pytest.mark.parametrize("after", [1, 700, 100_000])
    def test_are_never_taken_for_whole(self, served: Serving, after: int) -> None:
        with (
            Proxy(served.url, Fault(cut_after=after), only="/query") as proxy,
            pytest.raises(ServiceError, match="broke off"),
        ):
            nvpstore.connect(proxy.url).sql("FROM range(100000) t(n)").arrow()
        assert len(proxy.seen) == 1

    def test_nor_where_the_connection_ends_well(self, served: Serving) -> None:
        """A proxy that makes a whole of a part."""
        table = pa.table({"n": [1, 2]})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        part = sink.getvalue().to_pybytes()
        assert NOTES_KEY not in part
        with (
            Proxy(served.url, Fault(status=200, body=part), only="/query") as proxy,
            pytest.raises(ServiceError, match="broke off"),
        ):
            nvpstore.connect(proxy.url).sql("SELECT 1").arrow()

    def test_nor_what_is_no_arrow(self, served: Serving) -> None:
        page = Fault(status=200, headers={"Content-Type": "text/html"}, body=b"<html>welcome</html>")
        with Proxy(served.url, page) as proxy, pytest.raises(ServiceError, match="text/html"):
            list(RemoteStream(nvpstore.connect(proxy.url)._transport, "SELECT 1", params=None))
