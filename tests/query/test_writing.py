"""What DuckDB runs means what the user wrote."""

from __future__ import annotations

import duckdb
import pytest

from nvpstore.errors import QueryError
from nvpstore.query.parse import parse
from nvpstore.query.safety import UNSTABLE_FUNCTIONS, is_refused

# Ways of writing that sqlglot does not read; each has another one.
UNREAD = {"apply", "factorial", "!__postfix", "reduce", "decode"}


def test_every_function_of_duckdb_means_the_same_after_writing() -> None:
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    examples = con.sql(
        "SELECT DISTINCT function_name, unnest(examples) FROM duckdb_functions()"
        " WHERE function_type IN ('scalar', 'aggregate', 'macro') ORDER BY ALL"
    ).fetchall()
    wrong, asked = [], 0
    for name, example in examples:
        if is_refused(name) or name in UNSTABLE_FUNCTIONS or name in UNREAD:
            continue
        try:
            expected = con.sql(f"SELECT {example} AS x").to_arrow_table().to_pylist()
        except (duckdb.Error, OverflowError):
            continue  # an example that needs a table of its own, or has no value in Python
        asked += 1
        found = con.sql(parse(f"SELECT {example} AS x", ()).sql).to_arrow_table().to_pylist()
        if repr(found) != repr(expected):
            wrong.append(example)
    assert wrong == []
    assert asked > 350


@pytest.mark.parametrize("name", ["apply", "reduce"])
def test_what_is_not_read_is_a_clear_error(name: str) -> None:
    with pytest.raises(QueryError, match="line 1, column"):
        parse(f"SELECT {name}([1, 2], lambda x, y: x + y)", ())


def test_columns_inside_a_pivot_keep_their_qualifiers() -> None:
    inner = "SELECT a.n, a.k FROM (SELECT 1 AS n, 'p' AS k) AS a WHERE EXISTS (SELECT 1 FROM range(5) AS b(n)"
    text = f"PIVOT ({inner} WHERE b.n = a.n + 9)) ON k IN ('p') USING count(*)"
    assert "b.n = a.n + 9" in parse(text, ()).sql
    found = duckdb.sql(parse(text, ()).sql).fetchall()
    assert found == duckdb.sql(text).fetchall()
