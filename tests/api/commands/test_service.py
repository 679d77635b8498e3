"""`nvp keys` and what `nvp serve` refuses, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvpstore.api.auth.keys import KeyRing

if TYPE_CHECKING:
    from tests.api.conftest import Nvp

pytestmark = pytest.mark.slow  # a process a command


@pytest.fixture
def state(empty_nvp: Nvp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the archive's state will be."""
    monkeypatch.setenv("NVP_STATE", str(tmp_path / "state"))
    first = json.loads((empty_nvp.archive / "log" / f"{0:020}.json").read_text())
    return tmp_path / "state" / str(first["subject"])


class TestKeys:
    def test_a_key_is_shown_once_and_works(self, empty_nvp: Nvp, state: Path) -> None:
        made = empty_nvp.json("keys", "add", "pipeline", "--scope", "ingest", "--scope", "read")
        found = KeyRing(state / "keys.sqlite").check(made["secret"])
        assert found is not None
        assert (made["id"], made["scopes"]) == (found.id, ["read", "ingest"])
        (listed,) = empty_nvp.json("keys", "ls")
        assert listed["name"] == "pipeline"
        assert "secret" not in listed

    def test_people_get_the_key_alone_so_that_scripts_can_keep_it(self, empty_nvp: Nvp, state: Path) -> None:
        done = empty_nvp.run("keys", "add", "dashboard")
        found = KeyRing(state / "keys.sqlite").check(done.stdout.strip())
        assert found is not None
        assert found.scopes == {"read", "query"}

    def test_a_key_may_end(self, empty_nvp: Nvp, state: Path) -> None:
        by_days = empty_nvp.json("keys", "add", "guest", "--days", "1.5")
        ends = datetime.fromisoformat(by_days["expires_at"])
        assert timedelta(hours=35) < ends - datetime.now(UTC) < timedelta(hours=37)
        by_time = empty_nvp.json("keys", "add", "guest", "--expires", "2100-01-01T00:00:00+01:00")
        assert by_time["expires_at"] == "2099-12-31T23:00:00+00:00"

    def test_a_revoked_key_works_no_more_and_both_are_in_the_audit_log(
        self, empty_nvp: Nvp, state: Path
    ) -> None:
        made = empty_nvp.json("keys", "add", "guest")
        revoked = empty_nvp.json("keys", "revoke", made["id"])
        assert revoked["revoked_at"] is not None
        assert KeyRing(state / "keys.sqlite").check(made["secret"]) is None
        log = (state / "audit.jsonl").read_text()
        lines = [json.loads(line) for line in log.splitlines()]
        assert [line["action"] for line in lines] == ["nvp keys add", "nvp keys revoke"]
        assert {line["target"]["key"] for line in lines} == {made["id"]}
        assert made["secret"].rpartition("_")[2] not in log

    @pytest.mark.parametrize(("arguments", "says"), [
        (("revoke", "00000000"), "00000000"),
        (("add", "x", "--scope", "root"), "root"),
        (("add", "x", "--days", "0"), "days"),
        (("add", "x", "--expires", "2001-01-01"), "expired"),
        (("add", "x\ny"), "printable"),
    ])  # fmt: skip
    def test_wrong_usage_is_one_line(
        self, empty_nvp: Nvp, state: Path, arguments: tuple[str, ...], says: str
    ) -> None:
        done = empty_nvp.run("keys", *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert says in done.stderr


class TestServe:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::"])
    def test_off_loopback_it_asks_for_a_key_first(self, empty_nvp: Nvp, state: Path, host: str) -> None:
        done = empty_nvp.run("serve", "--host", host, "--port", "0")
        assert (done.returncode, done.stdout) == (2, "")
        assert "nvp keys add" in done.stderr

    @pytest.mark.parametrize(("arguments", "says"), [
        (("--port", "65536"), "65535"),
        (("--port", "http"), "no port"),
        (("--workers", "-1"), "NVP_WORKERS"),
        (("--host", "256.256.256.256"), "256.256.256.256"),
    ])  # fmt: skip
    def test_wrong_usage_is_one_line(
        self, empty_nvp: Nvp, state: Path, arguments: tuple[str, ...], says: str
    ) -> None:
        done = empty_nvp.run("serve", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr.splitlines()[-1]

    def test_a_malformed_variable_is_named(
        self, empty_nvp: Nvp, state: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NVP_UPLOAD_LIMIT", "much")
        done = empty_nvp.run("serve")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "NVP_UPLOAD_LIMIT" in done.stderr


class TestWithoutTheExtra:
    """As where `nvpstore` is installed without `[service]`."""

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        missing = "fastapi", "uvicorn", "starlette", "limits", "prometheus_client", "pydantic"
        hidden = f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
        command = [sys.executable, "-c", hidden + code]
        return subprocess.run(command, capture_output=True, text=True)

    def test_serve_names_the_extra(self, empty_nvp: Nvp, state: Path) -> None:
        call = f"main(['--archive', {str(empty_nvp.archive)!r}, 'serve'])"
        done = self.run(f"from nvpstore.api.cli import main; sys.exit({call})")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "nvpstore[service]" in done.stderr

    def test_help_and_keys_need_none_of_it(self, empty_nvp: Nvp, state: Path) -> None:
        call = f"main(['--archive', {str(empty_nvp.archive)!r}, 'keys', 'add', 'x'])"
        done = self.run(f"from nvpstore.api.cli import main; sys.exit({call} or 'torch' in sys.modules)")
        assert (done.returncode, done.stderr) == (0, "")
