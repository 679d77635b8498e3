"""Queries over real HTTP: every form's rows, errors before and behind the first byte, callers who go away."""

from __future__ import annotations

import csv
import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from nvpstore.api.service.formats import FORMATS, NOTES_KEY
from nvpstore.api.service.state import Service
from nvpstore.errors import IntegrityError
from nvpstore.query.allotment import ALLOTMENT
from nvpstore.query.operators import TorchOperators
from nvpstore.query.scheduler import SCHEDULER
from tests.api.service.served import again, service_over, serving
from tests.conftest import Micro
from tests.query.test_hostile import DEAF, GREEDY, REFUSED, table

ROWS = "SELECT frame, rank, label, score FROM labels WHERE rank <= 2 AND video_id = $id ORDER BY frame, rank"
STREAMED = "SELECT frame, label, score FROM labels WHERE rank = 1"


def ask(server: str, sql: str, **options: Any) -> httpx2.Response:
    """One query's answer. `accept` is the name of a form."""
    headers = dict(options.pop("headers", {}))
    if (accept := options.pop("accept", None)) is not None:
        headers["Accept"] = FORMATS[accept].media_type  # type: ignore[index]
    path = options.pop("path", "/v1/query")
    return httpx2.post(f"{server}{path}", json={"sql": sql, **options}, headers=headers, timeout=60)


@pytest.fixture
def sets_of_rows(service: Service, fitted: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = service.archive.sql(ROWS, params={"id": fitted}).arrow().to_pylist()
    assert len(rows) == 80
    return rows


class TestForms:
    def test_json(self, server: str, fitted: str, sets_of_rows: list[dict[str, Any]]) -> None:
        found = ask(server, ROWS, params={"id": fitted})
        assert found.headers["content-type"] == "application/json"
        document = found.json()
        assert document["rows"] == sets_of_rows
        assert [column["name"] for column in document["columns"]] == ["frame", "rank", "label", "score"]
        assert (document["skipped"], document["warnings"]) == ([], [])

    def test_lines(self, server: str, fitted: str, sets_of_rows: list[dict[str, Any]]) -> None:
        lines = ask(server, ROWS, params={"id": fitted}, accept="ndjson").text.splitlines()
        assert [json.loads(line) for line in lines] == sets_of_rows

    def test_csv(self, server: str, fitted: str, sets_of_rows: list[dict[str, Any]]) -> None:
        found = ask(server, ROWS, params={"id": fitted}, accept="csv")
        heading, *rows = csv.reader(io.StringIO(found.text, newline=""))
        assert heading == list(sets_of_rows[0])
        assert [(int(row[0]), float(row[3])) for row in rows] == [
            (row["frame"], row["score"]) for row in sets_of_rows
        ]

    def test_arrow(self, server: str, fitted: str, service: Service) -> None:
        found = ask(server, ROWS, params={"id": fitted}, accept="arrow")
        with pa.ipc.open_stream(found.content) as reader:
            assert reader.read_all() == service.archive.sql(ROWS, params={"id": fitted}).arrow()

    def test_parquet(self, server: str, fitted: str, sets_of_rows: list[dict[str, Any]]) -> None:
        found = ask(server, ROWS, params={"id": fitted}, accept="parquet")
        assert pq.read_table(io.BytesIO(found.content)).to_pylist() == sets_of_rows

    @pytest.mark.parametrize("accept", list(FORMATS))
    def test_no_rows(self, server: str, accept: str) -> None:
        found = ask(server, "SELECT frame FROM labels WHERE label = 'no such'", accept=accept)
        assert found.status_code == 200
        assert found.headers["cache-control"] == "no-store"

    def test_blobs(self, server: str, fitted: str, service: Service) -> None:
        sql = "SELECT frame, image FROM frames(format := 'png') WHERE video_id = $id AND frame IN (0, 35)"
        found = ask(server, sql, params={"id": fitted}, accept="arrow")
        with pa.ipc.open_stream(found.content) as reader:
            assert reader.read_all() == service.archive.sql(sql, params={"id": fitted}).arrow()

    def test_other_forms_are_refused(self, server: str) -> None:
        found = ask(server, "SELECT 1", headers={"Accept": "image/png"})
        assert found.status_code == 406
        assert "text/csv" in found.json()["detail"]

    def test_values_take_the_place_of_parameters(self, server: str) -> None:
        found = ask(server, "SELECT ? + 1 AS n, ? AS t, ? AS l", params=[1, "it's", [1, 2]])
        assert found.json()["rows"] == [{"n": 2, "t": "it's", "l": [1, 2]}]


class TestNotes:
    SKIPS = "SELECT frame FROM labels(on_error := 'skip', route := 'adapter') WHERE rank = 1 AND label <> ''"

    @pytest.mark.parametrize("accept", list(FORMATS))
    def test_segments_that_are_left_out_are_told(self, server: str, added: str, accept: str) -> None:
        found = ask(server, self.SKIPS, accept=accept)
        assert found.headers["x-nvp-skipped"] == "1"
        (skip,) = {"json": _from_json, "arrow": _from_arrow, "parquet": _from_parquet}.get(
            accept, lambda _: [{"video_id": added}]
        )(found)
        assert skip["video_id"] == added

    def test_warnings_are_told(self, server: str) -> None:
        found = ask(server, "SELECT frame FROM labels(top := 3) WHERE rank = 4")
        (warning,) = found.json()["warnings"]
        assert "rank" in warning
        assert json.loads(found.headers["x-nvp-warnings"]) == [warning]


def _from_json(found: httpx2.Response) -> Any:
    return found.json()["skipped"]


def _from_arrow(found: httpx2.Response) -> Any:
    with pa.ipc.open_stream(found.content) as reader:
        *_, last = reader.iter_batches_with_custom_metadata()
    return json.loads(last.custom_metadata[NOTES_KEY])["skipped"]


def _from_parquet(found: httpx2.Response) -> Any:
    return json.loads(pq.ParquetFile(io.BytesIO(found.content)).metadata.metadata[NOTES_KEY])["skipped"]


class TestRefusals:
    @pytest.mark.parametrize(("sql", "message"), table(REFUSED)[::9])
    def test_what_reaches_beyond_reading(self, server: str, sql: str, message: str) -> None:
        found = ask(server, sql)
        assert found.status_code == 422
        assert message in found.json()["detail"]

    def test_the_rest_of_them_at_once(self, server: str) -> None:
        hostile = [sql for sql, _ in table(REFUSED)]
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda sql: ask(server, sql), hostile))
        assert {answer.status_code for answer in found} == {422}
        assert {answer.headers["content-type"] for answer in found} == {"application/problem+json"}

    @pytest.mark.parametrize("body", ['{"sql": 1}', '{"sql": ""}', "{}", '{"sql": "SELECT 1", "x": 1}', "["])
    def test_malformed_requests(self, server: str, body: str) -> None:
        headers = {"Content-Type": "application/json"}
        assert httpx2.post(f"{server}/v1/query", content=body, headers=headers).status_code == 422

    def test_what_is_wrong_is_said_with_its_place(self, server: str) -> None:
        found = ask(server, "SELECT frame,\n labl FROM labels")
        assert found.status_code == 422
        assert "line 2, column" in found.json()["detail"]
        assert found.json()["error"] == "QueryError"


class TestTooMuch:
    @pytest.fixture
    def strict(self, micro: Micro, tmp_path: Path) -> Iterator[str]:
        """A server whose queries may take two seconds and little memory."""
        archive = micro.copy(tmp_path)
        settings = archive.settings
        archive.settings = replace(settings, query_seconds=2.0, memory_bytes=256 << 20)
        with serving(service_over(archive, tmp_path / "state")) as url:
            yield url

    @pytest.mark.slow
    @pytest.mark.parametrize("sql", [*DEAF.strip().splitlines(), *GREEDY.strip().splitlines()])
    def test_it_ends_and_the_server_answers_on(self, strict: str, sql: str) -> None:
        found = ask(strict, sql)
        assert found.status_code in (422, 504)
        assert ask(strict, "SELECT 1 AS a").json()["rows"] == [{"a": 1}]

    def test_a_deadline_is_told_apart(self, strict: str) -> None:
        found = ask(strict, "SELECT count(*) FROM range(100000) a, range(100000) b, range(1000) c")
        assert found.status_code == 504
        assert found.json()["error"] == "QueryTimeout"
        assert "stopped after 2.0 s (NVP_QUERY_TIMEOUT)" in found.json()["detail"]

    def test_a_caller_has_only_so_many_at_once(self, service: Service, tmp_path: Path) -> None:
        with serving(again(service, tmp_path, queries_at_once=1)) as url:
            waiting = threading.Thread(target=_give_up, args=(url,))
            waiting.start()
            _wait_until(lambda: SCHEDULER.running > 0)
            found = ask(url, "SELECT 1")
            assert (found.status_code, found.headers["retry-after"]) == (429, "1")
            assert "respond-async" in found.json()["detail"]
            waiting.join()
            _wait_until(lambda: ask(url, "SELECT 1").status_code == 200)
            for _ in range(20):  # whoever has an answer may ask the next at once
                assert ask(url, "SELECT 1").status_code == 200


def _give_up(url: str) -> None:
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"{url}/v1/query", json={"sql": "SELECT count(*) FROM range(1000000000000)"}, timeout=1.5)


class TestGoingAway:
    def test_before_the_first_row(self, server: str) -> None:
        _give_up(server)
        _wait_until(lambda: SCHEDULER.running == 0)
        assert ALLOTMENT.granted_bytes == 0

    def test_between_two_batches_the_query_ends(
        self, service: Service, server: str, fitted: str, added: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slowed = Slowed(max(fitted, added))
        for name in ("fetch", "source"):
            monkeypatch.setattr(TorchOperators, name, slowed.waiting(getattr(TorchOperators, name)))
        before = _cancelled(service)
        body = {"sql": STREAMED}
        with httpx2.stream("POST", f"{server}/v1/query", json=body, headers=_lines(), timeout=60) as answer:
            lines = answer.iter_lines()  # kept: with it the connection would close
            next(lines)
            _wait_until(lambda: slowed.begun > 0)
        # The connection is closed; what is being read of the second video is read to its end.
        time.sleep(0.3)
        begun = slowed.begun
        slowed.go_on()
        _wait_until(lambda: SCHEDULER.running == 0)
        assert slowed.begun == begun
        _wait_until(lambda: _cancelled(service) == before + 1)


def _cancelled(service: Service) -> float:
    """Queries that were cancelled so far."""
    found = service.metrics.registry.get_sample_value("nvp_query_seconds_count", {"outcome": "cancelled"})
    return found or 0.0


def _lines() -> dict[str, str]:
    return {"Accept": FORMATS["ndjson"].media_type}


class Slowed:
    """Reads of one video, each of which waits until it may."""

    def __init__(self, video_id: str) -> None:
        self.begun = 0
        self._video_id = video_id
        self._may = threading.Event()

    def go_on(self) -> None:
        self._may.set()

    def waiting(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def wait(operators: Any, snapshot: Any, video_id: str, *rest: Any) -> Any:
            if video_id == self._video_id:
                self.begun += 1
                assert self._may.wait(timeout=30)
            return real(operators, snapshot, video_id, *rest)

        return wait


class TestBreakingOff:
    @pytest.fixture
    def rows(self, fitted: str, added: str) -> int:
        """Of the video that comes first."""
        return 40 if fitted < added else 12

    @pytest.fixture
    def broken(self, server: str, fitted: str, added: str, monkeypatch: pytest.MonkeyPatch) -> str:
        """Its second video cannot be read."""
        second = max(fitted, added)

        def half(real: Callable[..., Any]) -> Callable[..., Any]:
            def read(operators: Any, snapshot: Any, video_id: str, *rest: Any) -> Any:
                if video_id == second:
                    raise IntegrityError("bytes differ")
                return real(operators, snapshot, video_id, *rest)

            return read

        for name in ("fetch", "source"):
            monkeypatch.setattr(TorchOperators, name, half(getattr(TorchOperators, name)))
        return server

    @pytest.mark.parametrize("accept", list(FORMATS))
    def test_an_ordinary_client_notices(self, broken: str, accept: str) -> None:
        with pytest.raises(httpx2.RemoteProtocolError):
            ask(broken, STREAMED, accept=accept)

    def test_another_ordinary_client_notices(self, broken: str, rows: int) -> None:
        *lines, last = _half(broken, "ndjson").decode().splitlines()
        assert len(lines) == rows
        assert "bytes differ" in json.loads(last)["error"]["detail"]

    def test_json_ends_in_the_error(self, broken: str, rows: int) -> None:
        found = json.loads(_half(broken, "json"))
        assert len(found["rows"]) == rows
        assert found["error"]["error"] == "IntegrityError"
        assert "skipped" not in found

    def test_what_cannot_be_read_may_be_left_out(self, broken: str, rows: int) -> None:
        sql = STREAMED.replace("labels", "labels(on_error := 'skip')")
        for accept in FORMATS:
            found = ask(broken, sql, accept=accept)
            assert found.status_code == 200
            if accept in ("csv", "ndjson"):
                assert found.headers["x-nvp-skipped"] == "1"
                assert len(found.text.splitlines()) == rows + (accept == "csv")


def _half(server: str, accept: str) -> bytes:
    """What arrives of an answer that breaks off, by another client."""
    connection = http.client.HTTPConnection(server.removeprefix("http://"), timeout=60)
    headers = {"Content-Type": "application/json", "Accept": FORMATS[accept].media_type}  # type: ignore[index]
    connection.request("POST", "/v1/query", body=json.dumps({"sql": STREAMED}), headers=headers)
    with pytest.raises(http.client.IncompleteRead) as error:
        connection.getresponse().read()
    connection.close()
    return bytes(error.value.partial)


class TestTogether:
    MIXED = (
        "SELECT name, state FROM videos ORDER BY name",
        "SELECT frame, label FROM labels(every := 0.4) WHERE rank = 1 ORDER BY video_id, frame",
        "SELECT label, count(*) AS n FROM labels WHERE rank = 1 GROUP BY label ORDER BY ALL",
        "SELECT range AS n FROM range(5000) ORDER BY n DESC",
        "SELECT name, max(ts) AS t FROM labels JOIN videos USING (video_id) GROUP BY ALL ORDER BY ALL",
        "SELECT frame, width FROM frames WHERE frame < 3 ORDER BY video_id, frame",
        "SELECT label FROM labels WHERE rank = 1 AND label = 'no such'",
        "SELECT labl FROM labels",
    )

    def test_many_mixed_queries_at_once_have_the_right_rows(self, service: Service, tmp_path: Path) -> None:
        *good, _ = self.MIXED
        expected = {sql: service.archive.sql(sql).arrow().to_pylist() for sql in good}
        with serving(again(service, tmp_path, queries_at_once=64)) as url, ThreadPoolExecutor(64) as threads:
            asked = [self.MIXED[n % len(self.MIXED)] for n in range(64)]
            found = list(threads.map(lambda sql: ask(url, sql), asked))
        for sql, answer in zip(asked, found, strict=True):
            if sql in expected:
                assert (answer.status_code, answer.json()["rows"]) == (200, expected[sql])
            else:
                assert answer.status_code == 422
        _wait_until(lambda: SCHEDULER.running == 0)


class TestPlans:
    def test_as_json(self, server: str, service: Service) -> None:
        found = ask(server, STREAMED, path="/v1/query/explain")
        expected = service.archive.explain(STREAMED, plan_format="json")
        document = json.loads(expected.arrow()["plan"][0].as_py())
        assert found.json() == {**document, "warnings": []}
        assert found.json()["scans"][0]["frames"] == 52

    def test_as_text(self, server: str, service: Service) -> None:
        sql = "SELECT label FROM labels WHERE rank = 1"
        found = ask(server, sql, path="/v1/query/explain", headers={"Accept": "text/plain"})
        assert found.headers["content-type"].startswith("text/plain")
        assert found.text == service.archive.sql(f"EXPLAIN {sql}").explain() + "\n"

    def test_as_rows_of_a_query(self, server: str) -> None:
        found = ask(server, "EXPLAIN SELECT label FROM labels")
        assert found.json()["rows"][0] == {"plan": "Query"}

    def test_with_what_it_took(self, server: str) -> None:
        sql = f"EXPLAIN ANALYZE {STREAMED}"
        found = ask(server, sql, path="/v1/query/explain")
        assert found.json()["measured"]["frames_decoded"]

    def test_what_is_wrong_is_refused(self, server: str) -> None:
        found = ask(server, "SELECT labl FROM labels", path="/v1/query/explain")
        assert found.status_code == 422


def test_queries_are_counted_by_how_they_ended(service: Service, tmp_path: Path) -> None:
    own = again(service, tmp_path)
    with serving(own) as url:
        ask(url, "SELECT 1")
        ask(url, "SELECT wrong FROM labels")
    text = own.metrics.text().decode()
    for outcome in ("done", "refused"):
        assert f'nvp_query_seconds_count{{outcome="{outcome}"}} 1.0' in text


def _wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 25
    while not holds():
        assert time.monotonic() < until, "it does not come true"
        time.sleep(0.02)
