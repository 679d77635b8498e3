"""Keys: who may do what. A key is `nvp_<id>_<secret>`; only a digest of the secret is kept."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from nvpstore.errors import NotFound, StoreError, UsageError

Scope = Literal["read", "query", "ingest", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

USED_SECONDS = 60.0  # how often `last_used_at` is written, at most
LONGEST_NAME = 255
_ID_BYTES, _SECRET_BYTES = 4, 32
_KEY = re.compile(rf"nvp_([0-9a-f]{{{2 * _ID_BYTES}}})_([0-9a-f]{{{2 * _SECRET_BYTES}}})", re.ASCII)
_BUSY_SECONDS = 10.0
_COLUMNS = "id, name, scopes, created_at, expires_at, revoked_at, last_used_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What is known of a key. Times are seconds since 1970 (UTC); `last_used_at` is right to a minute."""

    id: str
    name: str
    scopes: frozenset[Scope]
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None

    def usable(self, now: float) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class KeyRing:
    """The keys of one server, in a SQLite file. Any number of processes may use it at a time."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = path, clock
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # SQLite would make a file that others can read.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as cause:
            raise StoreError(f"cannot keep keys in {path}: {cause.strerror}") from cause
        with self._connection() as con:
            con.executescript(files(__package__).joinpath("schema.sql").read_text())

    def add(self, name: str, scopes: Iterable[Scope], *, expires_at: float | None = None) -> tuple[Key, str]:
        """A new key, and the text that callers send: it is shown here once, and cannot be had again.

        Raises UsageError for a name, scopes or a time of expiry that no key can have.
        """
        now, wanted = self._clock(), frozenset(scopes)
        _check_name(name)
        _check_scopes(wanted)
        if expires_at is not None and not expires_at > now:
            late = f"key {name!r} would have expired {now - expires_at:.0f} s ago"
            raise UsageError(f"{late}: a time to come is needed")
        key_id, secret = secrets.token_hex(_ID_BYTES), secrets.token_hex(_SECRET_BYTES)
        kept = [scope for scope in SCOPES if scope in wanted]
        with self._connection() as con:
            con.execute(
                "INSERT INTO keys (id, name, scopes, digest, created_at, expires_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (key_id, name, " ".join(kept), _digest(secret), now, expires_at),
            )
            return _known(con, key_id), f"nvp_{key_id}_{secret}"

    def keys(self) -> list[Key]:
        """All keys, the oldest first; revoked and expired ones too."""
        with self._connection() as con:
            rows = con.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY created_at, id")
            return [_key(row) for row in rows]

    def revoke(self, key_id: str) -> Key:
        """From now on nobody can use it. Raises NotFound for an unknown one."""
        with self._connection() as con:
            con.execute(
                "UPDATE keys SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?", (self._clock(), key_id)
            )
            return _known(con, key_id)

    def check(self, secret: str) -> Key | None:
        """The key whose whole text this is; None where it is malformed, unknown, revoked or expired."""
        match = _KEY.fullmatch(secret)
        if match is None:
            return None
        now = self._clock()
        with self._connection() as con:
            row = con.execute(f"SELECT {_COLUMNS}, digest FROM keys WHERE id = ?", (match[1],)).fetchone()
            if row is None or not hmac.compare_digest(row[-1], _digest(match[2])):
                return None
            key = _key(row[:-1])
            if not key.usable(now):
                return None
            if key.last_used_at is None or now - key.last_used_at >= USED_SECONDS:
                _used(con, key.id, now)
            return key

    def empty(self) -> bool:
        """Whether nobody could log in: no key is there that is neither revoked nor expired."""
        now = self._clock()
        return not any(key.usable(now) for key in self.keys())

    def untouched(self) -> bool:
        """Whether no key was ever made, so that nobody has asked for any to be needed.

        Not the same as `empty`: to revoke the last key must not open the door to everybody.
        """
        with self._connection() as con:
            (count,) = con.execute("SELECT count(*) FROM keys").fetchone()
            return not count

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            con = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
            try:
                con.execute("PRAGMA journal_mode = WAL")
                con.execute("PRAGMA synchronous = FULL")  # a key that was revoked stays so
                yield con
            finally:
                con.close()
        except sqlite3.Error as cause:
            raise StoreError(f"the keys in {self.path} cannot be used: {cause}") from cause


def _check_name(name: str) -> None:
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise UsageError(f"key name {name!r}: 1 to {LONGEST_NAME} printable characters are needed")


def _check_scopes(scopes: frozenset[str]) -> None:
    unknown = sorted(scopes - set(SCOPES))
    if unknown or not scopes:
        said = ", ".join(unknown) or "none"
        raise UsageError(f"scopes: {said} given, one or more of {', '.join(SCOPES)} are allowed")


def _used(con: sqlite3.Connection, key_id: str, now: float) -> None:
    # Who may not write (a full disk) may still come in.
    with suppress(sqlite3.Error):
        con.execute(
            "UPDATE keys SET last_used_at = max(coalesce(last_used_at, 0), ?) WHERE id = ?", (now, key_id)
        )


def _digest(secret: str) -> bytes:
    # No slow hash: a secret of 256 random bits cannot be guessed from its digest.
    return hashlib.sha256(secret.encode("ascii")).digest()


def _known(con: sqlite3.Connection, key_id: str) -> Key:
    row = con.execute(f"SELECT {_COLUMNS} FROM keys WHERE id = ?", (key_id,)).fetchone()
    if row is None:
        raise NotFound(f"no key {key_id!r}: `nvp keys ls` lists them")
    return _key(row)


def _key(row: Sequence[Any]) -> Key:
    fields = dict(zip(_COLUMNS.split(", "), row, strict=True))
    return Key(**{**fields, "scopes": frozenset(fields["scopes"].split())})
