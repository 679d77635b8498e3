"""How large a query may be: what parsing and planning take grows with it, and neither can be interrupted."""

from __future__ import annotations

import sqlglot
from sqlglot import TokenType

from nvpstore.errors import QueryError

MAX_CHARACTERS = 200_000
MAX_TOKENS = 40_000
MAX_NESTING = 40  # brackets in brackets
MAX_METHODS = 64  # `.upper()` after a closing bracket: sqlglot takes quadratic time for chains of them
MAX_TABLES = 128  # references in FROM: DuckDB orders their joins before anything can stop it

_BRACKETS = {
    **dict.fromkeys((TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE, TokenType.CASE), 1),
    **dict.fromkeys((TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.R_BRACE, TokenType.END), -1),
}


def check_size(sql: str) -> None:
    """Raises QueryError, with line and column, where a text is too long or deep; SqlglotError for no SQL."""
    if len(sql) > MAX_CHARACTERS:
        raise QueryError(f"the query has {len(sql)} characters; at most {MAX_CHARACTERS} are allowed")
    depth = methods = 0
    closed = False
    for number, token in enumerate(sqlglot.tokenize(sql, read="duckdb")):
        where = f"line {token.line}, column {token.col}"
        if number >= MAX_TOKENS:
            hint = "; give long lists as a table"
            raise QueryError(f"{where}: the query goes on beyond {MAX_TOKENS} words and signs{hint}")
        depth += _BRACKETS.get(token.token_type, 0)
        if depth > MAX_NESTING:
            raise QueryError(f"{where}: the query is nested too deeply: {MAX_NESTING} levels are allowed")
        methods += closed and token.token_type is TokenType.DOT
        if methods > MAX_METHODS:
            raise QueryError(f"{where}: {methods} method calls on results: at most {MAX_METHODS} are allowed")
        closed = token.token_type is TokenType.R_PAREN


def check_tables(references: int) -> None:
    """Raises QueryError where a query reads too many tables."""
    if references > MAX_TABLES:
        raise QueryError(f"the query reads {references} tables; at most {MAX_TABLES} are allowed")
