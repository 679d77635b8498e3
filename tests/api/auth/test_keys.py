"""Keys: what lets somebody in, until when, and what is kept of it."""

from __future__ import annotations

import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from nvpstore.api.auth.keys import SCOPES, USED_SECONDS, KeyRing
from nvpstore.errors import NotFound, StoreError, UsageError


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ring(tmp_path: Path, clock: Clock) -> KeyRing:
    return KeyRing(tmp_path / "keys.sqlite", clock=clock)


class TestChecking:
    def test_the_text_of_a_key_gives_the_key(self, ring: KeyRing) -> None:
        key, secret = ring.add("pipeline", ["ingest", "read"])
        found = ring.check(secret)
        assert found is not None
        assert (found.id, found.name, found.scopes) == (key.id, "pipeline", {"ingest", "read"})
        assert secret.startswith(f"nvp_{key.id}_")

    @pytest.mark.parametrize("spoil", [
        lambda secret: "",
        lambda secret: secret[:-1],
        lambda secret: secret + "0",
        lambda secret: secret + "\n",
        lambda secret: " " + secret,
        lambda secret: secret.upper(),
        lambda secret: secret[:-1] + ("0" if secret[-1] != "0" else "1"),
        lambda secret: secret.replace("nvp_", "nvp-", 1),
        lambda secret: "nvp_00000000_" + secret.rpartition("_")[2],
        lambda secret: secret.rpartition("_")[2],
        lambda secret: "nvp_' OR 1=1 --_" + secret.rpartition("_")[2],
        lambda secret: secret[:-1] + "\u0660",  # a digit, but not of ASCII
    ])  # fmt: skip
    def test_anything_else_gives_none(self, ring: KeyRing, spoil) -> None:  # type: ignore[no-untyped-def]
        _, secret = ring.add("pipeline", ["read"])
        assert ring.check(spoil(secret)) is None

    def test_the_secret_of_one_key_does_not_open_another(self, ring: KeyRing) -> None:
        one, _ = ring.add("one", ["admin"])
        _, other = ring.add("other", ["read"])
        assert ring.check(f"nvp_{one.id}_{other.rpartition('_')[2]}") is None

    def test_an_expired_key_gives_none(self, ring: KeyRing, clock: Clock) -> None:
        _, secret = ring.add("guest", ["read"], expires_at=clock.now + 60)
        assert ring.check(secret) is not None
        clock.now += 60
        assert ring.check(secret) is None

    def test_a_revoked_key_gives_none_in_every_process(self, ring: KeyRing) -> None:
        key, secret = ring.add("guest", ["read"])
        KeyRing(ring.path).revoke(key.id)
        assert ring.check(secret) is None

    def test_use_is_noted_once_a_minute(self, ring: KeyRing, clock: Clock) -> None:
        _, secret = ring.add("pipeline", ["read"])
        first = clock.now
        for _ in range(2):
            ring.check(secret)
            assert ring.keys()[0].last_used_at == first
            clock.now += USED_SECONDS - 1
        clock.now += 1
        ring.check(secret)
        assert ring.keys()[0].last_used_at == clock.now

    def test_a_wrong_secret_is_no_use(self, ring: KeyRing) -> None:
        key, _ = ring.add("pipeline", ["read"])
        ring.check(f"nvp_{key.id}_{'0' * 64}")
        assert ring.keys()[0].last_used_at is None

    def test_a_key_works_where_its_use_cannot_be_noted(self, ring: KeyRing) -> None:
        _, secret = ring.add("pipeline", ["read"])
        with sqlite3.connect(ring.path) as con:
            con.execute(
                "CREATE TRIGGER full BEFORE UPDATE ON keys BEGIN SELECT RAISE(FAIL, 'disk is full'); END"
            )
        assert ring.check(secret) is not None

    def test_many_threads_check_while_keys_come_and_go(self, ring: KeyRing) -> None:
        _, secret = ring.add("pipeline", ["read"])
        answers: list[bool] = []

        def check() -> None:
            answers.extend(ring.check(secret) is not None for _ in range(10))

        threads = [threading.Thread(target=check) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(10):
            ring.revoke(ring.add(f"guest {number}", ["read"])[0].id)
        for thread in threads:
            thread.join()
        assert answers == [True] * 40


class TestMaking:
    def test_only_a_digest_is_kept_where_nobody_else_reads(self, ring: KeyRing) -> None:
        _, secret = ring.add("pipeline", ["read"])
        kept = b"".join(path.read_bytes() for path in ring.path.parent.iterdir())
        assert secret.rpartition("_")[2].encode() not in kept
        assert stat.S_IMODE(ring.path.stat().st_mode) == 0o600

    def test_keys_differ(self, ring: KeyRing) -> None:
        made = [ring.add("same", ["read"]) for _ in range(20)]
        assert len({key.id for key, _ in made}) == 20
        assert len({secret for _, secret in made}) == 20

    @pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31m", "x" * 256])
    def test_names_that_would_spoil_a_list_are_refused(self, ring: KeyRing, name: str) -> None:
        with pytest.raises(UsageError, match="printable"):
            ring.add(name, ["read"])

    @pytest.mark.parametrize("scopes", [[], ["root"], ["read", "write"]])
    def test_unknown_scopes_are_refused(self, ring: KeyRing, scopes: list[str]) -> None:
        with pytest.raises(UsageError, match="read, query, ingest, admin"):
            ring.add("pipeline", scopes)  # type: ignore[arg-type]

    def test_a_key_that_has_expired_already_is_refused(self, ring: KeyRing, clock: Clock) -> None:
        with pytest.raises(UsageError, match="expired"):
            ring.add("guest", ["read"], expires_at=clock.now - 1)

    def test_nothing_is_kept_of_a_key_that_is_refused(self, ring: KeyRing) -> None:
        with pytest.raises(UsageError):
            ring.add("", ["read"])
        assert ring.untouched()


class TestListing:
    def test_all_are_listed_oldest_first(self, ring: KeyRing, clock: Clock) -> None:
        for name in ("b", "a"):
            ring.add(name, SCOPES)
            clock.now += 1
        ring.revoke(ring.keys()[0].id)
        assert [(key.name, key.revoked_at is None) for key in ring.keys()] == [("b", False), ("a", True)]  # noqa: SIM118

    def test_the_first_revocation_counts(self, ring: KeyRing, clock: Clock) -> None:
        key, _ = ring.add("guest", ["read"])
        first = ring.revoke(key.id).revoked_at
        clock.now += 10
        assert ring.revoke(key.id).revoked_at == first == clock.now - 10

    def test_an_unknown_key_cannot_be_revoked(self, ring: KeyRing) -> None:
        with pytest.raises(NotFound, match="00000000"):
            ring.revoke("00000000")

    def test_empty_and_untouched_differ_once_all_are_revoked(self, ring: KeyRing, clock: Clock) -> None:
        assert ring.empty()
        assert ring.untouched()
        key, _ = ring.add("guest", ["read"], expires_at=clock.now + 1)
        assert not ring.empty()
        clock.now += 1
        assert ring.empty()
        ring.revoke(key.id)
        assert ring.empty()
        assert not ring.untouched()


class TestFile:
    def test_keys_survive_the_process(self, ring: KeyRing) -> None:
        _, secret = ring.add("pipeline", ["read"])
        assert KeyRing(ring.path).check(secret) is not None

    def test_a_file_that_is_no_database_is_said(self, tmp_path: Path) -> None:
        path = tmp_path / "keys.sqlite"
        path.write_bytes(b"not a database" * 100)
        with pytest.raises(StoreError, match=r"keys\.sqlite"):
            KeyRing(path)

    def test_a_folder_that_cannot_be_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "state").write_text("a file")
        with pytest.raises(StoreError, match="state"):
            KeyRing(tmp_path / "state" / "keys.sqlite")
