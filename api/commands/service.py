"""`nvp serve`, `nvp keys add`, `nvp keys ls`, `nvp keys revoke`."""

from __future__ import annotations

import argparse
import getpass
import sys
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

from nvpstore.api.auth.audit import AuditLog, Deed
from nvpstore.api.auth.keys import SCOPES, Key, KeyRing, Scope
from nvpstore.api.commands.opening import Subparsers, instant, open_itself
from nvpstore.api.output import Output, fields_of
from nvpstore.api.service.settings import ServiceSettings, load_service_settings
from nvpstore.errors import UsageError

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000
DEFAULT_SCOPES: tuple[Scope, ...] = ("read", "query")
SECONDS_A_DAY = 86_400

SERVE = """\
Serves the archive over HTTP until SIGTERM or Ctrl-C, and keeps the processes that fit what is uploaded.
Jobs, keys, the audit log and unfinished uploads are in the state folder (NVP_STATE): they survive a
restart. Log lines are JSON, on stderr. docs/service.md says more.

On loopback no key is needed as long as none was ever made. Elsewhere the server does not start without one.
"""
KEYS = """\
Keys let callers of the archive's server in. They are in the state folder (NVP_STATE) of this machine, and
a running server sees changes at once.

Scopes: read (videos, frames, clips, jobs, tasks), query (SQL), ingest (uploads, fits, tasks, names and
tags), admin (all of these, erasing, others' jobs).
"""
ADD = """\
The key is shown once: only a digest of it is kept.

--json: id, name, scopes, created_at, expires_at, revoked_at, last_used_at, secret.
"""
LS = """\
--json: id, name, scopes, created_at, expires_at, revoked_at, last_used_at (right to a minute).
"""


def add_serve(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser("serve", help="serve the archive over HTTP", description=SERVE, **options)
    parser.add_argument(
        "--host", metavar="HOST", default=DEFAULT_HOST, help=f"address to listen on (default: {DEFAULT_HOST})"
    )
    parser.add_argument(
        "--port", metavar="PORT", type=_port, default=DEFAULT_PORT,
        help=f"0 takes a free one (default: {DEFAULT_PORT})",
    )  # fmt: skip
    parser.add_argument(
        "--workers", metavar="N", type=int, help="processes that fit videos (default: NVP_WORKERS, else 1)"
    )
    parser.set_defaults(run=serve)


def serve(args: argparse.Namespace, output: Output) -> None:
    server = _server()
    settings = load_service_settings()
    if args.workers is not None:
        settings = replace(settings, workers=args.workers)
    service = server.build_service(open_itself(args), settings, server.is_loopback(args.host))

    def started(url: str) -> None:
        output.done({"url": url, "archive": args.archive}, text=f"serving {args.archive} at {url}")
        sys.stdout.flush()  # who waits for this line reads a pipe

    server.run(service, args.host, args.port, started=started)


def add_keys(commands: Subparsers, **options: Any) -> None:
    parser = commands.add_parser("keys", help="who may use the server", description=KEYS, **options)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    add_parser = actions.add_parser("add", help="make a key", description=ADD, **options)
    add_parser.add_argument("name", metavar="NAME", help="whose key it is")
    add_parser.add_argument(
        "--scope",
        action="append",
        choices=SCOPES,
        help=f"repeatable (default: {', '.join(DEFAULT_SCOPES)})",
    )
    until = add_parser.add_mutually_exclusive_group()
    until.add_argument("--days", type=_days, metavar="N", help="how long it works (default: until revoked)")
    until.add_argument("--expires", type=instant, metavar="TIME", help="ISO 8601; UTC where it names no zone")
    add_parser.set_defaults(run=add_key)
    ls_parser = actions.add_parser("ls", help="list keys", description=LS, **options)
    ls_parser.set_defaults(run=list_keys)
    revoke_parser = actions.add_parser("revoke", help="make a key useless at once", **options)
    revoke_parser.add_argument("id", metavar="ID", help="as `nvp keys ls` shows it")
    revoke_parser.set_defaults(run=revoke_key)


def add_key(args: argparse.Namespace, output: Output) -> None:
    settings = _settings_of(args)
    expires = time.time() + args.days * SECONDS_A_DAY if args.days else None
    if args.expires is not None:
        expires = args.expires.timestamp()
    ring = _ring(settings)
    key, secret = ring.add(args.name, args.scope or DEFAULT_SCOPES, expires_at=expires)
    _audit(settings, "nvp keys add", key)
    output.done({**_shown(key), "secret": secret}, text=secret)


def list_keys(args: argparse.Namespace, output: Output) -> None:
    found = [_shown(key) for key in _ring(_settings_of(args)).keys()]  # noqa: SIM118
    output.rows(found, columns=("id", "name", "scopes", "expires_at", "revoked_at", "last_used_at"))


def revoke_key(args: argparse.Namespace, output: Output) -> None:
    settings = _settings_of(args)
    key = _ring(settings).revoke(args.id)
    _audit(settings, "nvp keys revoke", key)
    output.done(_shown(key), text=f"revoked {key.id} ({key.name})")


def _settings_of(args: argparse.Namespace) -> ServiceSettings:
    return load_service_settings().of_archive(open_itself(args).log.archive_id)


def _ring(settings: ServiceSettings) -> KeyRing:
    return KeyRing(settings.state_dir / "keys.sqlite")


def _audit(settings: ServiceSettings, action: str, key: Key) -> None:
    user = None
    with suppress(OSError, KeyError):  # a container's user may have no name
        user = getpass.getuser()
    AuditLog(settings.state_dir / "audit.jsonl").write(
        Deed(
            action=action,
            target={"key": key.id, "name": key.name, "scopes": " ".join(sorted(key.scopes))},
            status=0,
            key=None,
            name=user,
            address=None,
            request=None,
        )
    )


def _shown(key: Key) -> dict[str, Any]:
    """A key's fields with times as people read them."""
    fields = {**fields_of(key), "scopes": [scope for scope in SCOPES if scope in key.scopes]}
    for name in ("created_at", "expires_at", "revoked_at", "last_used_at"):
        if fields[name] is not None:
            fields[name] = datetime.fromtimestamp(fields[name], UTC).isoformat(timespec="seconds")
    return fields


def _server() -> ModuleType:
    try:
        # Neither FastAPI nor what it brings is needed by any other command.
        from nvpstore.api.service import serve as server
    except ModuleNotFoundError as cause:
        if (cause.name or "").startswith("nvpstore"):
            raise
        raise UsageError(
            f"the server needs {cause.name}, which is not installed: pip install 'nvpstore[service]'"
        ) from cause
    return server


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 0 to 65535 are allowed")
    return int(text)


def _days(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 36_500:
        raise argparse.ArgumentTypeError(f"{text!r} days: a number above 0 and below 36500 is needed")
    return value
