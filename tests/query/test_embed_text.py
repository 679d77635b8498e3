"""`embed_text('task', 'text')`: what becomes of it, when a model is asked, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from nvpstore.errors import QueryError, TaskError
from nvpstore.query import texts
from nvpstore.query.parse import parse
from nvpstore.query.text_calls import MAX_CALLS, MAX_CHARACTERS
from nvpstore.query.texts import Vectors
from nvpstore.types import TaskRecord
from tests.query.archive_fixture import CountingOperators, FixtureSnapshot, ask

TYPE = "typeof(embed_text('embed', 'a dog'))"
HARD = (0.1, -1e-12, 3.4e38, 16777217.0, 1 / 3, 0.0)


class Reading(CountingOperators):
    """Texts as two numbers, as the fixture's embeddings are: their length and how many words they have."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def embed_texts(self, task: TaskRecord, texts: Sequence[str]) -> NDArray[np.float32] | None:
        self.asked.append((task.name, tuple(texts)))
        return np.array([[len(text), len(text.split())] for text in texts], np.float32)


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "VECTORS", Vectors())


class TestValue:
    def test_it_is_a_list_of_floats(self, snapshot: FixtureSnapshot) -> None:
        result = ask(snapshot, f"SELECT embed_text('embed', 'a red car') AS v, {TYPE} AS t", Reading())
        assert result.fetchall() == [([9.0, 3.0], "FLOAT[]")]
        assert result.arrow().schema.field("v").type.value_type == pa.float32()

    def test_every_bit_of_it_arrives(self, snapshot: FixtureSnapshot) -> None:
        class Odd(Reading):
            def embed_texts(self, task: TaskRecord, texts: Sequence[str]) -> NDArray[np.float32] | None:
                return np.array([HARD], np.float32)

        ((found,),) = ask(snapshot, "SELECT embed_text('embed', 'x')", Odd()).fetchall()
        assert found == np.array(HARD, np.float32).tolist()

    @pytest.mark.parametrize(
        "sql",
        [
            "SELECT frame FROM embed ORDER BY list_distance(embedding, {}), video_id, frame LIMIT 5",
            "SELECT frame, list_cosine_similarity(embedding, {}) FROM embed WHERE frame < 9 ORDER BY ALL",
            "SELECT video_id, frame FROM embed WHERE list_distance(embedding, {}) < 8 ORDER BY ALL",
            "WITH near AS (SELECT frame, list_distance(embedding, {}) AS d FROM embed)"
            " SELECT min(d), count(*) FROM near WHERE d > (SELECT len({}))",
            "SELECT max(d) FROM (SELECT list_distance(e.embedding, {}) AS d FROM embed e"
            " JOIN labels l USING (video_id, frame) WHERE l.rank = 1 AND l.ts < 0.5)",
            "SELECT {}.list_sum(), {}[1], list_transform({}, lambda x: x + 1)",
        ],
    )
    def test_it_may_stand_anywhere(self, snapshot: FixtureSnapshot, sql: str) -> None:
        found = ask(snapshot, sql.replace("{}", "embed_text('embed', 'a red car')"), Reading()).fetchall()
        plain = ask(snapshot, sql.replace("{}", "CAST([9, 3] AS FLOAT[])"), Reading()).fetchall()
        assert found == plain
        assert plain

    def test_task_and_text_may_be_parameters(self, snapshot: FixtureSnapshot) -> None:
        sql = "SELECT embed_text($task, $text)"
        found = ask(snapshot, sql, Reading(), params={"task": "embed", "text": "it's"}).fetchall()
        assert found == [([4.0, 1.0],)]

    def test_a_version_may_be_named(self, snapshot: FixtureSnapshot) -> None:
        operators = Reading()
        sql = "SELECT embed_text('EMBED@e0', 'a'), EMBED_TEXT('embed', 'a')"
        assert ask(snapshot, sql, operators).fetchall() == [([1.0, 1.0], [1.0, 1.0])]
        assert operators.asked == [("embed", ("a",))]

    def test_views_may_hold_it(self, snapshot: FixtureSnapshot) -> None:
        views = {"cars": "SELECT frame, list_distance(embedding, embed_text('embed', 'car')) AS d FROM embed"}
        sql = "SELECT min(d) FROM cars WHERE d > len(embed_text('embed', 'dog'))"
        operators = Reading()
        assert ask(snapshot, sql, operators, views=views).fetchall()
        assert {text for _, asked in operators.asked for text in asked} == {"car", "dog"}

    def test_any_text_is_only_text(self, snapshot: FixtureSnapshot) -> None:
        text = "'); DROP TABLE videos; SELECT ('é$1?"
        found = ask(snapshot, "SELECT embed_text('embed', ?)[1]", Reading(), params=[text]).fetchall()
        assert found == [(float(len(text)),)]


class TestAsking:
    def test_a_task_is_asked_once_for_all_texts_of_a_query(self, snapshot: FixtureSnapshot) -> None:
        operators = Reading()
        calls = ", ".join(f"embed_text('embed', '{text}')" for text in ("cat", "dog", "cat"))
        ask(snapshot, f"SELECT {calls} FROM videos", operators)
        assert operators.asked == [("embed", ("cat", "dog"))]

    def test_what_was_asked_before_is_known(self, snapshot: FixtureSnapshot) -> None:
        sql = "SELECT embed_text('embed', 'cat')"
        first = ask(snapshot, sql, Reading()).fetchall()
        assert ask(snapshot, sql, operators=object()).fetchall() == first

    def test_only_the_last_ones_are_kept(self) -> None:
        task = TaskRecord(name="embed", version="1", kind="embedding", cuts=1, labels=(), spec="{}")
        asked: list[str] = []

        def embed(task: TaskRecord, texts: Sequence[str]) -> NDArray[np.float32]:
            asked.extend(texts)
            return np.ones((len(texts), 2), np.float32)

        vectors = Vectors(most=2)
        for some in (["a", "b"], ["a"], ["c"], ["a"], ["b"], ["x", "y", "z"]):
            found = vectors.of(task, some, embed)
            assert found is not None
            assert [vector.tolist() for vector in found] == [[1, 1]] * len(some)
        assert asked == ["a", "b", "c", "b", "x", "y", "z"]

    @pytest.mark.parametrize(
        "sql",
        [
            "SELECT count(*) FROM embed",
            "SELECT name FROM videos WHERE name <> 'embed_text(''embed'', ''x'')'",
        ],
    )
    def test_nobody_is_where_there_is_no_call(self, snapshot: FixtureSnapshot, sql: str) -> None:
        assert ask(snapshot, sql, operators=object()).fetchall()

    def test_nothing_is_decoded_for_it(self, snapshot: FixtureSnapshot) -> None:
        operators = Reading()
        ask(snapshot, "SELECT frame, embed_text('embed', 'cat') FROM embed WHERE frame < 5", operators)
        assert operators.asked
        assert operators.decoded.total() == 0

    def test_a_plan_holds_what_duckdb_will_run(self, snapshot: FixtureSnapshot) -> None:
        sql = "SELECT frame FROM embed ORDER BY list_distance(embedding, embed_text('embed', 'a dog'))"
        ((text,),) = ask(snapshot, f"EXPLAIN (FORMAT json) {sql}", Reading()).fetchall()
        assert "CAST('[5.0, 2.0]' AS REAL[])" in json.loads(text)["sql"]

    def test_parsing_asks_nobody_and_changes_no_tree(self) -> None:
        query = parse("SELECT embed_text('embed', 'a dog')", ("embed",))
        assert query.sql == "SELECT CAST(NULL AS REAL[])"
        (call,) = query.texts
        assert (call.task, call.version, call.text, call.where) == ("embed", "", "a dog", "line 1, column 8")
        task = TaskRecord(name="embed", version="7", kind="embedding", cuts=1, labels=(), spec="{}")
        filled = texts.with_texts(query, [task], lambda *_: np.ones((1, 2), np.float32))
        assert filled.sql == "SELECT CAST('[1.0, 1.0]' AS REAL[])"
        assert query.sql == "SELECT CAST(NULL AS REAL[])"


# A query; what is said of it.
REFUSED = [
    (
        "SELECT\n  embed_text('embd', 'x')",
        'line 2, column 3: embed_text: unknown task "embd"; did you mean "embed"',
    ),
    ("SELECT embed_text('frames', 'x')", 'column 8: embed_text: unknown task "frames"'),
    ("SELECT embed_text('embed@', 'x')", 'column 8: embed_text: unknown task "embed@"'),
    ("SELECT embed_text('embed@77', 'x')", 'line 1, column 8: unknown task "embed@77"'),
    (
        "SELECT embed_text('labels', 'x')",
        "column 8: embed_text: labels is a task of kind classification; of kind em",
    ),
    (
        "SELECT embed_text('embed', label) FROM labels",
        "column 8: embed_text takes the name of a task and a text",
    ),
    ("SELECT embed_text('embed', 'a' || 'b')", "both literals"),
    ("SELECT embed_text('embed', 5)", "both literals"),
    ("SELECT embed_text('embed', NULL)", "both literals"),
    ("SELECT embed_text('embed')", "found EMBED_TEXT('embed')"),
    ("SELECT embed_text('embed', 'x', 'y')", "both literals"),
    ("SELECT embed_text(task := 'embed', text := 'x')", "both literals"),
    ("SELECT embed_text(DISTINCT 'embed', 'x')", "both literals"),
    ("SELECT 'embed'.embed_text('x')", "column 16: embed_text takes"),
    ("SELECT main.embed_text('embed', 'x')", "column 13: embed_text takes"),
    ("SELECT embed_text('embed', 'x') OVER () FROM videos", "column 8: embed_text takes"),
    ("SELECT embed_text('embed', 'x') FILTER (WHERE true)", "column 8: embed_text takes"),
    ("SELECT embed_text('embed', (SELECT 'x'))", "both literals"),
    ("SELECT * FROM embed_text('embed', 'x')", 'refused table function "embed_text"'),
    (f"SELECT embed_text('embed', '{'x' * 2001}')", f"2001 characters: at most {MAX_CHARACTERS} are allowed"),
    (
        "SELECT " + ", ".join(["embed_text('embed', 'x')"] * 65),
        f"65 calls of embed_text: at most {MAX_CALLS}",
    ),
    # Nor is a model asked for what DuckDB will refuse.
    (
        "SELECT embed_text('embed', 'x'), nothing FROM labels",
        'column 34: Binder Error: Referenced column "nothing"',
    ),
]


class TestErrors:
    @pytest.mark.parametrize(("sql", "said"), REFUSED, ids=[said[-24:] for _, said in REFUSED])
    def test_what_cannot_be_embedded_is_said_with_its_place(
        self, snapshot: FixtureSnapshot, sql: str, said: str
    ) -> None:
        operators = Reading()
        with pytest.raises(QueryError) as error:
            ask(snapshot, sql, operators)
        assert said in str(error.value)
        assert operators.asked == []

    def test_a_view_is_named(self, snapshot: FixtureSnapshot) -> None:
        views = {"near": "SELECT\n embed_text('labels', 'x') AS v"}
        with pytest.raises(
            QueryError, match='view "near", line 2, column 2: embed_text: labels is a task of'
        ):
            ask(snapshot, "SELECT * FROM near", Reading(), views=views)

    def test_a_model_that_reads_no_text(self, snapshot: FixtureSnapshot) -> None:
        class Blind(Reading):
            def embed_texts(self, task: TaskRecord, texts: Sequence[str]) -> NDArray[np.float32] | None:
                return None

        with pytest.raises(
            QueryError, match="line 1, column 8: embed_text: the model of embed reads no text"
        ):
            ask(snapshot, "SELECT embed_text('embed', 'x')", Blind())

    def test_a_model_that_cannot_be_had(self, snapshot: FixtureSnapshot) -> None:
        class Absent(Reading):
            def embed_texts(self, task: TaskRecord, texts: Sequence[str]) -> NDArray[np.float32] | None:
                raise TaskError("weights are absent")

        with pytest.raises(TaskError, match="line 1, column 8: embed_text: weights are absent"):
            ask(snapshot, "SELECT embed_text('embed', 'x')", Absent())

    def test_vectors_of_other_lengths(self, snapshot: FixtureSnapshot) -> None:
        class Long(Reading):
            def embed_texts(self, task: TaskRecord, texts: Sequence[str]) -> NDArray[np.float32] | None:
                return np.ones((len(texts), 3), np.float32)

        sql = "SELECT list_distance(embedding, embed_text('embed', 'x')) FROM embed"
        with pytest.raises(QueryError, match=r"list_distance: list dimensions must be equal|got .*2.*3"):
            ask(snapshot, sql, Long())


@pytest.mark.slow  # models of transformers and torchvision are imported
class TestRealModels:
    NEAR = (
        "SELECT frame, list_cosine_similarity(embedding, embed_text('looks', 'a dog')) AS alike"
        " FROM looks(route := 'source') ORDER BY alike DESC, frame LIMIT 5"
    )

    def test_pictures_are_ranked_by_a_text(self, kinds: Any) -> None:
        found = kinds.archive.sql(self.NEAR).fetchall()
        words = kinds.tasks["looks"].words.embed(["a dog"])[0].numpy()
        pictures = kinds.archive.sql("SELECT frame, embedding FROM looks(route := 'source')").fetchall()
        alike = sorted(((-float(np.dot(words, vector)), frame) for frame, vector in pictures))[:5]
        assert [row[0] for row in found] == [frame for _, frame in alike]
        assert [row[1] for row in found] == pytest.approx([-value for value, _ in alike], abs=1e-5)

    def test_a_model_of_pictures_alone_says_so(self, kinds: Any) -> None:
        with pytest.raises(QueryError, match="line 1, column 8: embed_text: the model of mute reads no text"):
            kinds.archive.sql("SELECT embed_text('mute', 'a dog')")

    def test_a_saved_view_asks_no_model_until_it_is_read(self, kinds: Any, tmp_path: Path) -> None:
        code = f"""
import sys, shutil, nvpstore
shutil.copytree({str(kinds.clip.parent / "archive")!r}, {str(tmp_path / "archive")!r})
archive = nvpstore.open({str(tmp_path / "archive")!r})
archive.save_view("dogs", {self.NEAR!r})
assert archive.sql("SELECT count(*) FROM looks").fetchall() == [(26,)]
assert "torch" not in sys.modules
assert len(archive.sql("SELECT * FROM dogs").fetchall()) == 5
assert "torch" in sys.modules
"""
        factories = "tests.query.factories:pictures_and_texts"
        environment = {**os.environ, "NVP_FACTORIES": factories, "NVP_CACHE": str(tmp_path / "cache")}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
