"""A checked tree, or a part of one, as the text that DuckDB runs: nothing else writes for it."""

from __future__ import annotations

from sqlglot import exp
from sqlglot.dialects.duckdb import DuckDB
from sqlglot.generators.duckdb import DuckDBGenerator


class _Writer(DuckDBGenerator):
    """sqlglot's, except for PIVOT.

    There it drops the qualifiers of every column, also inside subqueries: `c.box.x0` would lose its struct,
    and `a.frame = b.frame` hold for every row.
    """

    TRANSFORMS = {  # noqa: RUF012 (the form that its base class has)
        kind: write for kind, write in DuckDBGenerator.TRANSFORMS.items() if kind is not exp.Pivot
    }


def written(tree: exp.Expr) -> str:
    """`tree` as DuckDB's SQL, without comments; `tree` stays as it is."""
    return str(_Writer(dialect=DuckDB(), comments=False).generate(tree))
