"""Which form an Accept header gets, and what comes before an answer's first byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import pyarrow as pa
import pytest

from nvpstore.api.service import answers
from nvpstore.api.service.answers import Head, choose, negotiated, pieces, told
from nvpstore.api.service.formats import FORMATS, Notes
from nvpstore.api.service.problems import Refused
from nvpstore.errors import IntegrityError, QueryError, QueryTimeout

ARROW, CSV = FORMATS["arrow"].media_type, FORMATS["csv"].media_type


class TestNegotiation:
    @pytest.mark.parametrize(
        ("accept", "name"),
        [
            (None, "json"),
            ("", "json"),
            ("*/*", "json"),
            ("application/*", "json"),
            ("application/json", "json"),
            ("text/csv", "csv"),
            ("TEXT/CSV; header=present", "csv"),
            ("text/*", "csv"),
            ("application/x-ndjson", "ndjson"),
            (ARROW, "arrow"),
            ("application/vnd.apache.parquet", "parquet"),
            (f"text/csv;q=0.5, {ARROW}", "arrow"),
            (f"text/csv;q=0.5, {ARROW};q=0.4, */*;q=0.1", "csv"),
            ("text/html, application/xhtml+xml, */*;q=0.8", "json"),
            ("application/json;q=0, */*;q=0.5", "ndjson"),
            ("text/csv;q=nonsense, application/x-ndjson;q=0.1", "ndjson"),
            ("text/*;q=0.9, application/json;q=0.2", "csv"),
        ],
    )
    def test_the_best_liked_form_is_taken(self, accept: str | None, name: str) -> None:
        assert negotiated(accept).name == name

    @pytest.mark.parametrize(
        "accept", ["image/png", "application/json;q=0", "text/html, image/*", "nonsense"]
    )
    def test_where_none_is_liked_all_are_named(self, accept: str) -> None:
        with pytest.raises(Refused, match=r"application/json, .*text/csv, .*apache\.arrow") as error:
            negotiated(accept)
        assert error.value.status is HTTPStatus.NOT_ACCEPTABLE

    def test_another_form_may_be_the_first_of_equals(self) -> None:
        assert negotiated("*/*", first=FORMATS["csv"]).name == "csv"
        assert negotiated("application/json", first=FORMATS["csv"]).name == "json"

    def test_plans_are_json_or_text(self) -> None:
        assert choose("text/plain, */*;q=0.1", ("application/json", "text/plain")) == "text/plain"


@dataclass
class Batches:
    """A stream of batches, and what is said of them; an exception among them is raised."""

    items: list[Any]
    skipped: tuple[Any, ...] = ()
    warnings: tuple[str, ...] = ()
    plan: Any = None
    taken: int = field(default=0)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self

    def __next__(self) -> pa.RecordBatch:
        if self.taken == len(self.items):
            raise StopIteration
        item = self.items[self.taken]
        self.taken += 1
        if isinstance(item, Exception):
            raise item
        return item


def batch(*values: int) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(values, pa.int64())})


class TestPieces:
    def test_nothing_comes_before_the_first_rows(self) -> None:
        stream = Batches([batch(), batch(), batch(1), batch(2)], warnings=("careful",))
        made = pieces(stream, FORMATS["ndjson"])  # type: ignore[arg-type]
        assert next(made) == Head(notes=Notes(warnings=("careful",)))
        assert stream.taken == 3
        assert list(made) == [b'{"n": 1}\n', b'{"n": 2}\n']

    def test_without_rows_the_columns_come(self) -> None:
        made = pieces(Batches([batch(), batch()]), FORMATS["csv"])  # type: ignore[arg-type]
        assert isinstance(next(made), Head)
        assert b"".join(made) == b"n\n"  # type: ignore[arg-type]

    def test_an_error_before_the_first_rows_is_raised_before_the_head(self) -> None:
        made = pieces(Batches([batch(), QueryError("no")]), FORMATS["json"])  # type: ignore[arg-type]
        with pytest.raises(QueryError):
            next(made)

    def test_an_error_after_them_is_told_and_raised(self) -> None:
        made = pieces(Batches([batch(1), IntegrityError("bytes\ndiffer")]), FORMATS["ndjson"])  # type: ignore[arg-type]
        next(made), next(made)
        last = next(made)
        assert isinstance(last, bytes)
        assert json.loads(last)["error"] == {
            "title": "Internal Server Error",
            "status": 500,
            "detail": "bytes differ",
            "error": "IntegrityError",
        }
        with pytest.raises(IntegrityError):
            next(made)

    def test_what_is_no_error_of_ours_is_told_to_nobody(self) -> None:
        assert "secret" not in json.dumps(told(RuntimeError("the secret plan")))
        assert told(QueryTimeout("too long"))["status"] == HTTPStatus.GATEWAY_TIMEOUT

    def test_a_long_list_of_warnings_fits_into_its_header(self) -> None:
        warnings = tuple(f"Warnung über Zeile {n}" for n in range(1000))
        headers = Head(notes=Notes(warnings=warnings)).headers()
        text = headers["X-Nvp-Warnings"]
        assert len(text) <= 4100
        assert text.isascii()
        assert json.loads(text)[0] == warnings[0]
        assert json.loads(text)[-1] == "…"


class TestSpooled:
    def test_what_may_leave_segments_out_is_whole_before_it_begins(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(answers, "may_skip_more", lambda _: True)
        stream = Batches([batch(1), batch(2), batch(3)])
        made = pieces(stream, FORMATS["csv"])  # type: ignore[arg-type]
        assert isinstance(next(made), Head)
        assert stream.taken == 3
        assert b"".join(made) == b"n\n1\n2\n3\n"  # type: ignore[arg-type]

    def test_forms_with_room_for_notes_at_the_end_need_not_wait(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(answers, "may_skip_more", lambda _: True)
        stream = Batches([batch(1), batch(2)])
        next(pieces(stream, FORMATS["arrow"]))  # type: ignore[arg-type]
        assert stream.taken == 1

    def test_it_has_a_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(answers, "may_skip_more", lambda _: True)
        monkeypatch.setattr(answers, "SPOOL_BYTES", 3)
        with pytest.raises(QueryError, match="more than 3 bytes: take JSON or Arrow"):
            list(pieces(Batches([batch(1), batch(2)]), FORMATS["csv"]))  # type: ignore[arg-type]
