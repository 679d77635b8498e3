"""DuckDB's word on a checked query before any work: are its names known, do its types fit?"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
from sqlglot import exp

from nvpstore.errors import QueryError
from nvpstore.query.asking import Asking
from nvpstore.query.parse import Query, binder_error
from nvpstore.query.relation import relation_schema
from nvpstore.query.versions import resolve_task, text_task
from nvpstore.query.views import views_alone
from nvpstore.query.writing import written
from nvpstore.types import TaskRecord


def check_binds(asking: Asking, query: Query, tasks: Sequence[TaskRecord]) -> None:
    """Lets DuckDB bind the query on empty relations: unknown names and wrong types fail before any work.

    Raises QueryError, which names the view that is at fault, if one is. Texts need not be embedded yet.
    """
    for call in query.texts:
        text_task(call, tasks)
    for table in query.tables:
        task = resolve_task(table, tasks)
        schema = relation_schema("frames" if task is None else task.kind)
        asking.register(table.relation, schema.empty_table())
    try:
        asking.check(query.sql)
    except duckdb.Error as cause:
        raise _refusal(asking, query.tree, cause) from cause
    for table in query.tables:
        asking.unregister(table.relation)


def _refusal(asking: Asking, tree: exp.Query, cause: duckdb.Error) -> QueryError:
    for name, view, alone in views_alone(tree):
        try:
            asking.check(written(alone))
        except duckdb.Error as own:
            error, shown = binder_error(own, view), f'view "{name}"'
            return error if str(error).startswith(shown) else QueryError(f"{shown}: {error}")
    return binder_error(cause, tree)
