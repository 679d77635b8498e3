"""A result's rows in every form, computed once and only when asked for."""

from __future__ import annotations

import base64
import importlib.util
import io
import threading

import pyarrow as pa
import pytest
from PIL import Image

from nvpstore.errors import QueryError, UsageError
from nvpstore.query.notebook import MAX_ROWS, THUMBNAIL_SIDE, as_html
from nvpstore.query.plan import Plan
from nvpstore.query.result import Result
from tests.query.archive_fixture import FixtureSnapshot, ask

SQL = "SELECT frame, label FROM labels WHERE frame < 3 AND video_id < 'b' AND rank < 3 ORDER BY frame, rank"


def plan() -> Plan:
    steps = pa.table({"video_id": pa.array([], pa.string())})
    return Plan(scans=(), steps=steps, relations={}, sql="SELECT 1", snapshot_number=1)


def png(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (200, 10, 10)).save(out, "PNG")
    return out.getvalue()


def test_every_form_has_the_same_rows(snapshot: FixtureSnapshot) -> None:
    result = ask(snapshot, SQL)
    rows = result.fetchall()
    assert len(result) == len(rows) == 6
    assert list(result) == rows
    assert [result.fetchone() for _ in range(7)] == [*rows, None]
    assert [tuple(row.values()) for row in result.arrow().to_pylist()] == rows
    assert [batch.num_rows for batch in result.batches(4)] == [4, 2]
    assert pa.table(result).num_rows == 6
    assert result.columns == ["frame", "label"]


def test_a_value_that_python_lacks_is_a_clear_error(snapshot: FixtureSnapshot) -> None:
    result = ask(snapshot, "SELECT 'infinity'::TIMESTAMP AS t")
    assert len(result.arrow()) == 1
    with pytest.raises(UsageError, match=r"has no form in Python .*: use arrow\(\)"):
        result.fetchall()


def test_batches_of_no_rows_are_refused(snapshot: FixtureSnapshot) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        list(ask(snapshot, SQL).batches(0))


@pytest.mark.parametrize(("package", "method"), [("pandas", "df"), ("polars", "pl")])
def test_a_library_that_is_absent_is_named(snapshot: FixtureSnapshot, package: str, method: str) -> None:
    result = ask(snapshot, SQL)
    if importlib.util.find_spec(package) is None:
        with pytest.raises(UsageError, match=f"needs {package}, which is not installed"):
            getattr(result, method)()
    else:
        assert len(getattr(result, method)()) == 6


def test_rows_are_computed_once_and_not_for_a_plan() -> None:
    calls = []

    def compute() -> Result:
        calls.append(1)
        return Result(plan=plan(), table=pa.table({"a": [1, 2]}))

    result = Result(plan=plan(), compute=compute)
    assert result.explain()
    assert result.measured is None
    assert not result.computed
    assert "not computed" in repr(result)
    threads = [threading.Thread(target=result.arrow) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (result.fetchall(), result.skipped, calls) == ([(1,), (2,)], (), [1])


def test_an_error_comes_with_the_rows_and_comes_again() -> None:
    def compute() -> Result:
        raise QueryError("no")

    result = Result(plan=plan(), compute=compute)
    for _ in range(2):
        with pytest.raises(QueryError, match="no"):
            result.arrow()


def test_a_notebook_shows_few_rows_small_images_and_no_markup() -> None:
    rows = MAX_ROWS + 5
    table = pa.table(
        {
            "label": ["<script>alert(1)</script>"] * rows,
            "image": [png(640, 320)] * (rows - 1) + [None],
            "route": ["source"] + ["pixel"] * (rows - 1),
            "long": ["x" * 1000] * rows,
        }
    )
    html = as_html(table, warnings=["a < b"])
    assert html.count("<img ") == MAX_ROWS
    assert html.count('title="original"') == 1
    assert html.count('title="reconstructed"') == MAX_ROWS - 1
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "a &lt; b" in html
    assert "x" * 300 not in html
    assert f"the first {MAX_ROWS} of {rows} rows" in html


def test_a_thumbnail_is_a_small_picture() -> None:
    html = as_html(pa.table({"image": [png(640, 320)]}))
    encoded = html.split("base64,")[1].split('"')[0]
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        assert image.size == (THUMBNAIL_SIDE, THUMBNAIL_SIDE // 2)


@pytest.mark.parametrize("broken", [b"", b"not an image", png(8, 8)[:40]])
def test_what_is_no_image_is_its_size(broken: bytes) -> None:
    assert f"<td>{len(broken)} bytes</td>" in as_html(pa.table({"image": [broken]}))
