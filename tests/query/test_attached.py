"""Catalog views in a connection that is not ours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import duckdb
import pytest

from nvpstore.catalog.files import IndexFile
from nvpstore.errors import UsageError
from nvpstore.query.attached import attach_views
from tests.query.archive_fixture import FixtureSnapshot

VIEWS = ("videos", "segments", "tasks", "routes")


def indexed(snapshot: FixtureSnapshot) -> Any:
    file = IndexFile(number=7, digest="x", path=snapshot.path, base=None)
    return SimpleNamespace(index=SimpleNamespace(file=file))


def test_views_stand_beside_the_users_own_tables(snapshot: FixtureSnapshot) -> None:
    with duckdb.connect() as con:
        con.execute("CREATE TABLE mine AS SELECT 'yard.mp4' AS name, 5 AS n")
        assert attach_views(con, indexed(snapshot)) == VIEWS
        assert con.sql("SELECT n FROM videos JOIN mine USING (name)").fetchall() == [(5,)]
        assert con.sql("SELECT count(*) FROM segments").fetchall() == [(7,)]
        assert con.sql("SELECT count(*) FROM nvp.tasks").fetchall() == [(4,)]
        assert con.sql("SELECT current_database()").fetchall() == [("memory",)]


def test_a_name_that_the_user_has_keeps_its_meaning(snapshot: FixtureSnapshot) -> None:
    with duckdb.connect() as con:
        con.execute("CREATE TABLE videos AS SELECT 1 AS mine")
        assert attach_views(con, indexed(snapshot)) == ("nvp.videos", *VIEWS[1:])
        assert con.sql("FROM videos").fetchall() == [(1,)]
        assert con.sql("SELECT count(*) FROM nvp.videos").fetchall() == [(3,)]


def test_a_second_call_shows_another_snapshot(snapshot: FixtureSnapshot) -> None:
    with duckdb.connect() as con:
        assert attach_views(con, indexed(snapshot)) == VIEWS
        assert attach_views(con, indexed(snapshot)) == VIEWS
        assert con.sql("SELECT count(*) FROM videos").fetchall() == [(3,)]


def test_the_index_cannot_be_written(snapshot: FixtureSnapshot) -> None:
    with duckdb.connect() as con:
        attach_views(con, indexed(snapshot))
        with pytest.raises(duckdb.Error, match="read-only"):
            con.execute("DELETE FROM nvp_base.store.videos")


def test_a_file_that_is_gone_is_a_clear_error(snapshot: FixtureSnapshot) -> None:
    gone = SimpleNamespace(path=snapshot.path.with_name("gone.duckdb"))
    with duckdb.connect() as con, pytest.raises(UsageError, match="cannot be attached"):
        attach_views(con, indexed(gone))  # type: ignore[arg-type]
