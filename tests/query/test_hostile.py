"""Statements that reach for more than reading, or for more than their share: each with what is said of it."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace

import duckdb
import pytest

from nvpstore.errors import QueryError
from nvpstore.query.children import Children
from nvpstore.query.parse import parse
from nvpstore.query.request import Request
from nvpstore.query.run import execute
from nvpstore.query.safety import TABLE_FUNCTIONS, UNSTABLE_FUNCTIONS, is_refused
from tests.query.archive_fixture import SETTINGS, CountingOperators, FixtureSnapshot, ask

# A statement, two blanks or more, a part of the message.
REFUSED = """
SELECT * FROM 'x.csv'                                          unknown table "x.csv"
SELECT * FROM "/etc/passwd"                                    unknown table "/etc/passwd"
SELECT * FROM 's3://bucket/x.parquet'                          unknown table "s3://bucket/x.parquet"
SELECT * FROM 'https://example.com/x.csv'                      unknown table "https://example.com/x.csv"
SELECT * FROM 'ls |'                                           unknown table "ls |"
SELECT * FROM read_csv('/etc/passwd')                          function read_csv is not allowed
SELECT * FROM READ_CSV ('/etc/passwd')                         function read_csv is not allowed
SELECT * FROM "read_csv"('/etc/passwd')                        function read_csv is not allowed
SELECT * FROM/**/read_csv/**/('/etc/passwd')                   function read_csv is not allowed
SELECT $$ x $$ FROM read_csv($$/etc/passwd$$)                  function read_csv is not allowed
SELECT * FROM U&"read_csv"('x')                                syntax error
SELECT * FROM \uff52ead_csv('x')                            refused table function "\uff52ead_csv"
SELECT * FROM read_parquet('x.parquet')                        function read_parquet is not allowed
SELECT * FROM parquet_scan('x.parquet')                        refused table function "parquet_scan"
SELECT * FROM parquet_metadata('x.parquet')                    refused table function "parquet_metadata"
SELECT * FROM read_text('/etc/passwd')                         function read_text is not allowed
SELECT * FROM read_blob('/etc/passwd')                         function read_blob is not allowed
SELECT * FROM read_json_auto('x')                              function read_json_auto is not allowed
SELECT * FROM read_duckdb('x.duckdb')                          function read_duckdb is not allowed
SELECT * FROM glob('/*')                                       function glob is not allowed
SELECT * FROM sniff_csv('x')                                   refused table function "sniff_csv"
SELECT * FROM sqlite_scan('x', 'y')                            refused table function "sqlite_scan"
SELECT * FROM query('SELECT 1')                                function query is not allowed
SELECT * FROM query_table('videos')                            function query_table is not allowed
SELECT * FROM duckdb_settings()                                function duckdb_settings is not allowed
SELECT * FROM duckdb_secrets()                                 function duckdb_secrets is not allowed
SELECT * FROM duckdb_databases()                               function duckdb_databases is not allowed
SELECT * FROM pragma_database_size()                           function pragma_database_size is not allowed
SELECT * FROM arrow_scan(1, 2, 3)                              refused table function "arrow_scan"
SELECT * FROM seq_scan('x')                                    refused table function "seq_scan"
SELECT * FROM which_secret('x', 'y')                           function which_secret is not allowed
SELECT * FROM json_execute_serialized_sql('x')                 function json_execute_serialized_sql is not
SELECT * FROM enable_logging()                                 refused table function "enable_logging"
SELECT * FROM checkpoint()                                     refused table function "checkpoint"
SELECT * FROM information_schema.tables                        names with a schema or database are not offered
SELECT * FROM idx.store.segments                               names with a schema or database are not offered
SELECT * FROM main.videos                                      names with a schema or database are not offered
SELECT * FROM pg_catalog.pg_tables                             names with a schema or database are not offered
SELECT * FROM duckdb_tables                                    unknown table "duckdb_tables"
SELECT * FROM sqlite_master                                    unknown table "sqlite_master"
SELECT * FROM pragma_database_list                             unknown table "pragma_database_list"
SELECT * FROM (SHOW TABLES)                                    unknown table "SHOW"
SELECT * FROM (DESCRIBE videos)                                DESCRIBE is not allowed
SELECT * FROM (SUMMARIZE videos)                               SUMMARIZE is not allowed
SELECT * FROM videos, LATERAL read_csv(name)                   function read_csv is not allowed
SELECT (SELECT max(content) FROM read_text('/etc/passwd'))     function read_text is not allowed
SELECT 1 WHERE EXISTS (FROM glob('/root/*'))                   function glob is not allowed
WITH x AS (FROM read_text('/etc/passwd')) FROM x               function read_text is not allowed
SELECT * FROM range((SELECT count(*) FROM glob('/*')))         function glob is not allowed
SELECT * FROM unnest((SELECT list(content) FROM read_text('x')))  function read_text is not allowed
SELECT getenv('HOME')                                          function getenv is not allowed
SELECT "getenv"('HOME')                                        function getenv is not allowed
SELECT 'HOME'.getenv()                                         function getenv is not allowed
SELECT system.main.getenv('HOME')                              function getenv is not allowed
SELECT list_transform(['HOME'], lambda x: getenv(x))           function getenv is not allowed
SELECT * FROM labels(every := getenv('HOME'))                  function getenv is not allowed
SELECT current_setting('temp_directory')                       function current_setting is not allowed
SELECT getvariable('x')                                        function getvariable is not allowed
SELECT nextval('x')                                            function nextval is not allowed
SELECT setseed(0.5)                                            function setseed is not allowed
SELECT write_log('x')                                          function write_log is not allowed
SELECT sleep_ms(100000)                                        function sleep_ms is not allowed
SELECT current_database()                                      function current_database is not allowed
SELECT current_user                                            function current_user is not allowed
SELECT current_query()                                         function current_query is not allowed
SELECT version()                                               function version is not allowed
SELECT pg_get_viewdef(1)                                       function pg_get_viewdef is not allowed
SELECT json_serialize_plan('SELECT * FROM read_csv(1)')        function json_serialize_plan is not allowed
SELECT json_deserialize_sql('{}')                              function json_deserialize_sql is not allowed
SELECT __internal_compress_string_ubigint('x')                 function __internal_compress_string_ubigint is
SELECT invoke(1)                                               function invoke is not allowed
SELECT add_parquet_key('x', 'y')                               function add_parquet_key is not allowed
SELECT http_get('http://example.com')                          function http_get is not allowed
SELECT * INTO x FROM videos                                    INTO is not allowed
SELECT * FROM videos FOR UPDATE                                LOCK is not allowed
SELECT * FROM labels AT (VERSION => 1)                         does not support time travel
WITH x AS (INSERT INTO a VALUES (1)) SELECT 1                  INSERT is not allowed
WITH x AS (DELETE FROM a RETURNING *) SELECT * FROM x          DELETE is not allowed
WITH __nvp_0 AS (SELECT 1 AS frame) SELECT * FROM __nvp_0, labels  names that begin with __nvp_ are kept
WITH __view_x AS (SELECT 1) SELECT * FROM __view_x             names that begin with __view_ are kept
INSERT INTO videos VALUES (1)                                  INSERT statement given
UPDATE videos SET name = 'x'                                   UPDATE statement given
DELETE FROM videos                                             DELETE statement given
MERGE INTO videos USING videos ON true WHEN MATCHED THEN DELETE  MERGE statement given
CREATE TABLE x AS SELECT 1                                     CREATE statement given
CREATE OR REPLACE VIEW videos AS SELECT 1                      CREATE statement given
CREATE MACRO f() AS 1                                          CREATE statement given
CREATE SEQUENCE s                                              CREATE statement given
CREATE SECRET (TYPE s3, KEY_ID 'x', SECRET 'y')                syntax error
DROP VIEW videos                                               DROP statement given
ALTER TABLE x ADD COLUMN y INT                                 ALTER statement given
TRUNCATE x                                                     TRUNCATE statement given
COPY (SELECT 1) TO 'x.csv'                                     COPY statement given
COPY x FROM 'x.csv'                                            COPY statement given
EXPORT DATABASE 'x'                                            syntax error
IMPORT DATABASE 'x'                                            syntax error
ATTACH 'x.db'                                                  ATTACH statement given
DETACH idx                                                     DETACH statement given
USE idx                                                        USE statement given
SET threads = 1                                                SET statement given
SET VARIABLE x = 1                                             SET statement given
RESET threads                                                  RESET statement given
PRAGMA version                                                 PRAGMA statement given
INSTALL httpfs                                                 INSTALL statement given
FORCE INSTALL httpfs FROM 'http://example.com'                 FORCE statement given
LOAD '/tmp/x.so'                                               LOAD statement given
UPDATE EXTENSIONS                                              UPDATE statement given
CALL pragma_version()                                          CALL statement given
CHECKPOINT                                                     CHECKPOINT statement given
VACUUM                                                         VACUUM statement given
ANALYZE                                                        ANALYZE statement given
BEGIN                                                          BEGIN statement given
COMMIT                                                         COMMIT statement given
PREPARE p AS SELECT 1                                          PREPARE statement given
EXECUTE p                                                      EXECUTE statement given
DEALLOCATE p                                                   DEALLOCATE statement given
SHOW ALL TABLES                                                SHOW statement given
DESCRIBE videos                                                DESCRIBE statement given
SUMMARIZE videos                                               SUMMARIZE statement given
COMMENT ON VIEW videos IS 'x'                                  COMMENT statement given
EXPLAIN DROP VIEW videos                                       DROP statement given
EXPLAIN ANALYZE COPY (SELECT 1) TO 'x.csv'                     COPY statement given
EXPLAIN EXPLAIN SELECT 1                                       EXPLAIN statement given
SELECT 1; DROP VIEW videos                                     2 statements given
SELECT 1 /* ; */ ; /* x */ ATTACH 'x'                          statements given
FROM videos SELECT *; SET memory_limit = '1TB'                 2 statements given
PIVOT labels ON label USING count(*)                           PIVOT needs its values
SELECT * FROM (PIVOT labels ON label USING count(*))           PIVOT needs its values
SELECT * FROM "labels@1f3a; DROP VIEW videos"                  unknown table "labels@1f3a; drop view videos"
SELECT * FROM "labels""; DROP VIEW videos; --"                 unknown table "labels"; DROP VIEW videos; --"
SELECT * FROM labels(every := (SELECT 1))                      every := (SELECT 1): allowed is a number
SELECT error('x')                                              Invalid Input Error: x
"""


def table(lines: str) -> list[tuple[str, str]]:
    pairs = [line.rstrip().rpartition("  ") for line in lines.strip().splitlines()]
    return [(statement.rstrip(), message) for statement, _, message in pairs]


@pytest.mark.parametrize(("sql", "message"), table(REFUSED))
def test_what_reaches_beyond_reading_is_refused(snapshot: FixtureSnapshot, sql: str, message: str) -> None:
    with pytest.raises(QueryError) as error:
        ask(snapshot, sql, operators=object())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_sixty_statements_and_more_are_refused() -> None:
    assert len(table(REFUSED)) >= 60


@pytest.mark.parametrize(
    "text", ["E'\\x27; DROP VIEW videos; --'", "'''; DROP VIEW videos; --'", "$$'; DROP VIEW videos; --$$"]
)
def test_text_stays_text(snapshot: FixtureSnapshot, text: str) -> None:
    found = ask(snapshot, f'SELECT {text} AS "b""; DROP VIEW videos; --"', operators=object())
    assert found.fetchall() == [("'; DROP VIEW videos; --",)]


def test_no_table_function_of_duckdb_is_offered_but_those_listed() -> None:
    found = duckdb.sql(
        "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type LIKE 'table%'"
    ).fetchall()
    assert len(found) > 50
    for (name,) in found:
        if name not in TABLE_FUNCTIONS:
            with pytest.raises(QueryError):
                parse(f'SELECT * FROM "{name}"()', ())
            for lateral in (f'videos v, LATERAL "{name}"()', f'videos v JOIN LATERAL "{name}"() ON true'):
                with pytest.raises(QueryError):
                    parse(f"SELECT * FROM {lateral}", ())
            with pytest.raises(QueryError):
                parse(f'SELECT * FROM LATERAL "{name}"()', ())


@pytest.mark.parametrize(
    "called",
    [
        "LATERAL histogram_values('idx.store.videos', source_uri) t",
        "LATERAL register_external_resource_type('mine', kind := 'x', create_function := 'f') t",
        "LATERAL system.main.sniff_csv('x') t",
        "LATERAL checkpoint() t",
        "ROWS FROM (sniff_csv('x')) t",
    ],
)
def test_no_function_is_reached_beside_the_list(snapshot: FixtureSnapshot, called: str) -> None:
    with pytest.raises(QueryError, match="not allowed"):
        ask(snapshot, f"SELECT t.* FROM (SELECT 1) v, {called}", operators=object())


def test_what_is_lateral_and_harmless_is_answered(snapshot: FixtureSnapshot) -> None:
    for called, rows in (
        ("LATERAL (SELECT v.a + 1)", [(1, 2)]),
        ("LATERAL unnest([v.a, 5])", [(1, 1), (1, 5)]),
        ("LATERAL generate_series(v.a, 2)", [(1, 1), (1, 2)]),
    ):
        found = ask(
            snapshot, f"SELECT * FROM (SELECT 1 AS a) v, {called} t(b)", operators=object()
        ).fetchall()
        assert sorted(found) == rows


def test_no_function_that_reads_or_changes_hidden_state_is_offered() -> None:
    found = duckdb.sql(
        "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability = 'VOLATILE'"
        " OR function_name SIMILAR TO '(current_|pg_|has_|duckdb_|pragma_|read_|write_|inet_|__).*'"
    ).fetchall()
    harmless = {
        *("random", "uuid", "uuidv4", "uuidv7", "gen_random_uuid", "error", "pg_typeof", "pg_size_pretty"),
        *("current_date", "current_time", "current_localtime", "current_localtimestamp"),
    }
    assert {name for (name,) in found if not is_refused(name)} <= harmless
    assert harmless - {"pg_typeof", "pg_size_pretty"} <= UNSTABLE_FUNCTIONS


# ---------------------------------------------------------------- too large

DEEP = "nested too deeply"
LARGE = {
    "a million characters": ("SELECT '" + "x" * 1_000_000 + "'", "1000009 characters; at most 200000"),
    "brackets in brackets": ("SELECT " + "(" * 5000 + "1" + ")" * 5000, DEEP),
    "lists in lists": ("SELECT " + "[" * 5000 + "1" + "]" * 5000, DEEP),
    "brackets left open": ("SELECT " + "(" * 30_000, DEEP),
    "subqueries": ("SELECT * FROM " + "(FROM " * 300 + "labels" + ")" * 300, DEEP),
    "cases": ("SELECT " + "CASE WHEN 1 THEN " * 2000 + "1" + " END" * 2000, DEEP),
    "types": ("SELECT CAST(1 AS " + "STRUCT(a " * 1000 + "INT" + ")" * 1000 + ")", DEEP),
    "negations": ("SELECT " + "NOT " * 15_000 + "true", DEEP),
    "minus signs": ("SELECT " + "- " * 15_000 + "1", DEEP),
    "sums": ("SELECT " + "1+" * 15_000 + "1", "Max expression depth"),
    "arrows": ("SELECT " + "x->" * 10_000 + "1", "Max expression depth"),
    "methods": ("SELECT 'a'" + ".upper()" * 10_000, "65 method calls on results"),
    "casts": ("SELECT 1" + "::INT" * 30_000, "beyond 40000 words and signs"),
    "numbers": ("SELECT 1 IN (" + "1," * 50_000 + "1)", "give long lists as a table"),
    "semicolons": (";" * 100_000, "beyond 40000 words and signs"),
    "comments": ("SELECT /*" + " /*" * 30_000 + " 1", "syntax error"),
    "tables": ("SELECT 1 FROM " + ",".join(["labels"] * 5000), "reads 5000 tables; at most 128"),
    "unions": (" UNION ALL ".join(["FROM labels"] * 200), "reads 200 tables; at most 128"),
}


@pytest.mark.parametrize(("sql", "message"), LARGE.values(), ids=LARGE)
def test_what_is_too_large_is_refused_in_time(sql: str, message: str) -> None:
    begun = time.process_time()
    with pytest.raises(QueryError) as error:
        parse(sql, ("labels",))
    assert message in str(error.value)
    assert time.process_time() - begun < 4


# ---------------------------------------------------------------- too much work

ENDLESS = """
SELECT count(*) FROM range(1000000000000)
SELECT count(*) FROM range(100000) a, range(100000) b, range(1000) c
WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT max(n) FROM r
SELECT count(DISTINCT a.range * 31 + b.range) FROM range(1000000) a, range(1000000) b
SELECT count(*) FROM labels a, labels b, labels c, labels d WHERE a.score + b.score + c.score + d.score > 9
SELECT * FROM range(100) a, LATERAL (SELECT count(*) FROM range(1000000000) b WHERE b.range > a.range) x
"""
GREEDY = """
SELECT list(i) FROM range(10000000000) t(i)
SELECT string_agg(repeat('x', 1000), '') FROM range(100000000)
WITH RECURSIVE r(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM r) SELECT max(length(s)) FROM r
SELECT len(range(10000000000))
SELECT len(list_resize([1], 50000000000))
SELECT length(repeat(repeat('x', 1000000), 1000000))
"""
DEAF = """
SELECT length(repeat('x', 4000000000))
SELECT list_reduce(range(400000000), lambda a, b: a + b)
SELECT len(flatten([range(100000000), range(100000000), range(100000000)]))
SELECT levenshtein(repeat('a', 200000), repeat('b', 200000))
"""


@pytest.mark.parametrize("sql", ENDLESS.strip().splitlines())
def test_endless_work_is_stopped_at_the_time_limit(snapshot: FixtureSnapshot, sql: str) -> None:
    with pytest.raises(QueryError, match=r"stopped after 0\.3 s"):
        _limited(snapshot, sql)


@pytest.mark.parametrize("sql", GREEDY.strip().splitlines())
def test_greedy_work_is_stopped_at_the_memory_limit(snapshot: FixtureSnapshot, sql: str) -> None:
    with pytest.raises(QueryError, match=r"Out of Memory|Out of Range|Lists larger|stopped after"):
        _limited(snapshot, sql)


def _limited(snapshot: FixtureSnapshot, sql: str) -> None:
    execute(
        Request(
            sql=sql,
            snapshot=snapshot,
            operators_factory=CountingOperators,
            settings=replace(SETTINGS, memory_bytes=128 * 2**20, query_seconds=0.3),
        )
    )


@pytest.mark.parametrize("sql", DEAF.strip().splitlines())
def test_what_heeds_neither_limit_ends_with_its_process(snapshot: FixtureSnapshot, sql: str) -> None:
    children = Children(warm=1)
    asked = Request(
        sql=sql,
        snapshot=snapshot,
        operators_factory=CountingOperators,
        settings=replace(SETTINGS, memory_bytes=512 * 2**20),
        seconds=1.5,
        children=children,
    )
    begun = time.monotonic()
    with (
        closing(children),
        pytest.raises(QueryError, match=r"stopped after 1\.5 s|Out of Memory|want of memory"),
    ):
        execute(asked)
    assert time.monotonic() - begun < 30
