"""`python -m benchmarks.soak hostile`: everything that somebody who means harm sends to a server.

A server of its own process, off loopback by its keys: unknown, malformed, revoked and expired keys; keys of
one scope on the routes of another; SQL that would reach out or never end; names and URIs that climb out of
their place or point inward; bodies that lie about themselves; headers within headers. Each attempt must be
refused with a status that says so, none may be let in, nothing may appear beside the archive, and the server
must answer as before in the end. The table of attempts is in the result.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from benchmarks.soak.load import address_of, draw
from benchmarks.soak.outcome import Options, Outcome
from nvpstore.api.auth.keys import KeyRing, Scope

QUERY_SECONDS = 5
UPLOAD_BYTES = 1 << 20
STALL_SECONDS = 2
READY_TRIES = 6
CANARY = "outside.txt"

Send = Callable[["Attacker"], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """`send` gives the status that it is answered with (0: the connection was closed)."""

    group: str
    what: str
    send: Send
    allowed: tuple[int, ...]


@dataclass(slots=True)
class Attacker:
    """What attempts are made with: an address, keys by what they may, a client."""

    url: str
    keys: Mapping[str, str]
    folder: Path
    client: httpx2.Client = field(default_factory=lambda: httpx2.Client(timeout=60.0))

    def send(self, method: str, path: str, *, key: str | None = "admin", **more: Any) -> int:
        headers = dict(more.pop("headers", {}))
        if key is not None:
            headers.setdefault("Authorization", f"Bearer {self.keys.get(key, key)}")
        return self.client.request(method, f"{self.url}{path}", headers=headers, **more).status_code

    def sql(self, text: str, *, key: str = "query") -> int:
        return self.send("POST", "/v1/query", key=key, json={"sql": text})

    def raw(self, data: bytes, *, wait: float = 10.0) -> int:
        """Bytes as they are; the status of the first answer."""
        place = urlsplit(self.url)
        with socket.create_connection((place.hostname, place.port), timeout=wait) as line:
            line.sendall(data)
            line.settimeout(wait)
            try:
                answer = line.recv(4096)
            except TimeoutError:
                return -1  # still listening to it
            except ConnectionResetError:
                return 0
        parts = answer.split(b" ", 2)
        return int(parts[1]) if len(parts) > 1 and parts[0].startswith(b"HTTP/") else 0


def run(options: Options) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="soak-hostile-") as name:
        folder = Path(name)
        root = draw(folder)
        with served(root, folder) as (url, keys):
            attacker = Attacker(url=url, keys=keys, folder=folder)
            before = healthy(attacker)
            for _ in range(READY_TRIES):  # a first query starts a process, which takes a busy machine a while
                before = healthy(attacker) if 504 in before else before
            rows = [attempted(attempt, attacker) for attempt in attempts(folder)]
            after = healthy(attacker)
            jobs = attacker.client.get(
                f"{url}/v1/jobs", headers={"Authorization": f"Bearer {keys['admin']}"}
            ).json()["jobs"]
        broken = [f"{row['what']}: status {row['status']}" for row in rows if not row["refused"]]
        broken += [] if before == after else [f"the server answered {before} before and {after} after"]
        broken += [f"job {job['id']} was made" for job in jobs]
        broken += [f"{path} was written" for path in folder.parent.glob(CANARY)]
    return Outcome(
        question="does a server ever let in, or end by, what means it harm?",
        figures={
            "attempts": len(rows),
            "refused": sum(row["refused"] for row in rows),
            "by_group": dict(Counter(row["group"] for row in rows)),
            "table": rows,
        },
        broken=tuple(broken),
    )


def attempted(attempt: Attempt, attacker: Attacker) -> dict[str, Any]:
    began = time.monotonic()
    try:
        status = attempt.send(attacker)
    except httpx2.HTTPError:
        status = 0
    return {
        "group": attempt.group,
        "what": attempt.what,
        "status": status,
        "refused": status in attempt.allowed,
        "seconds": round(time.monotonic() - began, 2),
    }


def healthy(attacker: Attacker) -> tuple[int, int, int]:
    return (
        attacker.send("GET", "/readyz", key=None),
        attacker.send("GET", "/v1/videos", key="read"),
        attacker.sql("SELECT count(*) FROM labels WHERE rank = 1"),
    )


# ---------------------------------------------------------------- attempts


def attempts(folder: Path) -> Iterator[Attempt]:
    yield from _keys()
    yield from _scopes()
    yield from _sql()
    yield from _places(folder)
    yield from _bodies()
    yield from _headers()


def _keys() -> Iterator[Attempt]:
    wrong = {
        "no key": {},
        "an unknown key": {"Authorization": "Bearer nvp_00000000_" + "0" * 43},
        "a revoked key": {"Authorization": "Bearer {revoked}"},
        "an expired key": {"Authorization": "Bearer {expired}"},
        "a right key cut short": {"Authorization": "Bearer {short}"},
        "a right key under another name": {"Authorization": "Bearer {swapped}"},
        "a key as a password": {"Authorization": "Basic {admin}"},
        "a bare key": {"Authorization": "{admin}"},
        "an empty key": {"Authorization": "Bearer "},
        "a key of 100,000 letters": {"Authorization": "Bearer " + "A" * 100_000},
        "a key in a cookie": {"Cookie": "key={admin}"},
        "a key in another header": {"X-Api-Key": "{admin}"},
    }
    for what, headers in wrong.items():

        def send(a: Attacker, headers: Mapping[str, str] = headers) -> int:
            filled = {name: value.format_map(a.keys) for name, value in headers.items()}
            return a.send("GET", "/v1/videos", key=None, headers=filled)

        yield Attempt(group="keys", what=what, send=send, allowed=(401, 429, 431, 400, 0))
    yield Attempt(
        group="keys",
        what="a key in the address",
        send=lambda a: a.send(
            "GET", f"/v1/videos?key={a.keys['admin']}&access_token={a.keys['admin']}", key=None
        ),
        allowed=(401, 422, 429),
    )


def _scopes() -> Iterator[Attempt]:
    beyond: tuple[tuple[str, str, str], ...] = (
        ("read", "POST", "/v1/query"),
        ("read", "POST", "/v1/query/explain"),
        ("read", "POST", "/v1/videos"),
        ("read", "DELETE", "/v1/videos/x"),
        ("read", "PATCH", "/v1/videos/x"),
        ("read", "POST", "/v1/videos/x/fit"),
        ("read", "POST", "/v1/tasks"),
        ("read", "POST", "/v1/tasks/labels/train"),
        ("query", "GET", "/v1/videos"),
        ("query", "GET", "/v1/videos/x/clip.mp4"),
        ("query", "GET", "/v1/videos/x/original"),
        ("query", "POST", "/v1/videos"),
        ("ingest", "POST", "/v1/query"),
        ("ingest", "DELETE", "/v1/videos/x"),
        ("ingest", "POST", "/v1/tasks"),
    )
    for scope, method, path in beyond:

        def send(a: Attacker, scope: str = scope, method: str = method, path: str = path) -> int:
            return a.send(method, path, key=scope, json={"sql": "SELECT 1"} if method != "GET" else None)

        yield Attempt(group="scopes", what=f"{method} {path} with {scope} alone", send=send, allowed=(403,))


def _sql() -> Iterator[Attempt]:
    texts = (
        "COPY (SELECT 1) TO '/tmp/outside.txt'",
        "ATTACH '/tmp/x.duckdb'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_parquet('http://127.0.0.1:1/x')",
        "SELECT * FROM glob('/*')",
        "SELECT getenv('NVP_STATE')",
        "SELECT current_setting('memory_limit')",
        "PRAGMA database_list",
        "SET memory_limit = '1TB'",
        "INSTALL httpfs",
        "LOAD '/tmp/evil.so'",
        "SELECT 1; DROP TABLE videos",
        "DELETE FROM videos",
        "CREATE TABLE t AS SELECT 1",
        "EXPORT DATABASE '/tmp/x'",
        "CALL pragma_version()",
        "SELECT * FROM duckdb_settings()",
        "SELECT repeat('x', 4000000000)",
        "SELECT count(*) FROM range(10000000000) a, range(10000000000) b",
        "WITH RECURSIVE t AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM t) SELECT count(*) FROM t",
        "SELECT " + "(" * 5_000 + "1" + ")" * 5_000,
        "SELECT '" + "x" * 900_000,
        "",
        "\x00",
    )
    for text in texts:
        yield Attempt(
            group="sql",
            what=text[:60] or "nothing",
            send=lambda a, text=text: a.sql(text),  # type: ignore[misc]
            allowed=(400, 413, 422, 504),
        )


def _places(folder: Path) -> Iterator[Attempt]:
    uris = (
        "file:///etc/passwd",
        "/etc/passwd",
        "../../../../etc/passwd",
        f"file://{folder}/allowed/../state/keys.sqlite",
        f"{folder}/allowed-not/clip.mp4",
        "http://127.0.0.1/clip.mp4",
        "http://[::1]/clip.mp4",
        "http://169.254.169.254/latest/meta-data",
        "http://2130706433/clip.mp4",
        "https://localhost/clip.mp4",
        "s3://bucket/clip.mp4",
        "ftp://host/clip.mp4",
        "gopher://host/",
        "data:video/mp4;base64,AAAA",
        "\\\\host\\share\\clip.mp4",
    )
    for uri in uris:
        yield Attempt(
            group="places",
            what=f"ingest {uri.replace(str(folder), '…')}",
            send=lambda a, uri=uri: a.send("POST", "/v1/videos", key="ingest", json={"uri": uri}),  # type: ignore[misc]
            allowed=(400, 403, 404, 422),
        )
    for path in (
        "/v1/videos/..%2f..%2fetc%2fpasswd",
        "/v1/videos/../../../etc/passwd/original",
        "/console/..%2f..%2fapp.py",
        "/console/%2e%2e/service.py",
        "/v1/videos/x/frames/-1.png",
        "/v1/videos/x/frames/1e9.png",
        "/v1/videos/x/frames/0.svg",
    ):
        yield Attempt(
            group="places",
            what=f"GET {path}",
            send=lambda a, path=path: a.send("GET", path),  # type: ignore[misc]
            allowed=(400, 404, 405, 422),
        )


def _bodies() -> Iterator[Attempt]:
    def declared(a: Attacker) -> int:
        head = f"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {a.keys['ingest']}\r\n"
        head += "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 99999999999999\r\n\r\n"
        return a.raw(head.encode())

    def endless(a: Attacker) -> int:
        head = f"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {a.keys['ingest']}\r\n"
        head += "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000\r\n\r\n--b"
        return a.raw(head.encode(), wait=6 * STALL_SECONDS)  # and nothing more comes

    def large(a: Attacker) -> int:
        files = {"file": ("clip.mp4", b"x" * (2 * UPLOAD_BYTES), "video/mp4")}
        return a.send("POST", "/v1/videos", key="ingest", files=files)

    def form(name: str, data: Mapping[str, str]) -> Send:
        return lambda a: a.send(
            "POST", "/v1/videos", key="ingest", files={"file": (name, b"", "video/mp4")}, data=dict(data)
        )

    bodies: Mapping[str, tuple[Send, tuple[int, ...]]] = {
        "a body declared as 100 TB": (declared, (413,)),
        "a sender who stops": (endless, (408, 400, 0)),
        "an upload above the limit": (large, (413, 0)),
        "an empty file": (form("clip.mp4", {}), (400, 422)),
        "tags that are no object": (form("c.mp4", {"tags": "[1]"}), (400, 422)),
        "a name of a megabyte": (form("c.mp4", {"name": "n" * 1_200_000}), (400, 413, 422, 0)),
        "a name with control characters": (form("c.mp4", {"name": "a\x00b"}), (400, 422)),
        "an unknown field": (form("c.mp4", {"evil": "1"}), (400, 422)),
        "a form without a file": (
            lambda a: a.send("POST", "/v1/videos", key="ingest", data={"name": "x"}),
            (400, 415, 422),
        ),
        "JSON that is none": (
            lambda a: a.send("POST", "/v1/query", content=b"{", headers={"Content-Type": "application/json"}),
            (400, 422),
        ),
        "JSON 100,000 deep": (
            lambda a: a.send(
                "POST",
                "/v1/query",
                content=b"[" * 100_000 + b"]" * 100_000,
                headers={"Content-Type": "application/json"},
            ),
            (400, 413, 422),
        ),
        "JSON of 2 MB": (lambda a: a.send("POST", "/v1/query", json={"sql": "x" * 2_000_000}), (413, 0)),
        "XML": (
            lambda a: a.send("POST", "/v1/query", content=b"<a/>", headers={"Content-Type": "text/xml"}),
            (400, 415, 422),
        ),
        "a factory as a model": (
            lambda a: a.send(
                "POST", "/v1/tasks", json={"name": "evil", "provider": "factory", "model": "os:system"}
            ),
            (400, 403, 422),
        ),
        "a pickle as weights": (
            lambda a: a.send(
                "POST",
                "/v1/tasks",
                files={"weights": ("w.pt", b"\x80\x04cos\nsystem\n.", "application/octet-stream")},
                data={"name": "evil", "like": "resnet50"},
            ),
            (400, 415, 422),
        ),
    }
    for what, (send, allowed) in bodies.items():
        yield Attempt(group="bodies", what=what, send=send, allowed=allowed)


def _headers() -> Iterator[Attempt]:
    def plain(*lines: str, path: str = "/v1/videos", body: str = "") -> Send:
        def send(a: Attacker) -> int:
            head = [f"GET {path} HTTP/1.1", *(line.format_map(a.keys) for line in lines), "", body]
            return a.raw("\r\n".join(head).encode("latin-1"))

        return send

    host, key = "Host: 127.0.0.1", "Authorization: Bearer {admin}"
    raw: Mapping[str, tuple[Send, tuple[int, ...]]] = {
        "no host": (plain(key), (400, 421, 0)),
        "two authorizations": (plain(host, key, "Authorization: Bearer x"), (400, 401)),
        "a header of a megabyte": (plain(host, key, "X-Big: " + "x" * 1_000_000), (400, 431, 0)),
        "10,000 headers": (plain(host, key, *(f"X-{i}: 1" for i in range(10_000))), (400, 431, 0)),
        "a length and chunks at once": (
            plain(host, key, "Content-Length: 5", "Transfer-Encoding: chunked", body="0\r\n\r\n"),
            (400, 0),
        ),
        "a negative length": (plain(host, key, "Content-Length: -1"), (400, 0)),
        "an unknown method": (lambda a: a.send("BREW", "/v1/videos"), (400, 404, 405, 501)),
        "a line feed in the address": (
            plain(host, key, path="/v1/videos%0d%0aSet-Cookie:%20a=b/original"),
            (400, 404, 422),
        ),
        "no HTTP at all": (lambda a: a.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), (400, 0)),
    }
    for what, (send, allowed) in raw.items():
        yield Attempt(group="headers", what=what, send=send, allowed=allowed)


# ---------------------------------------------------------------- the server


@contextmanager
def served(root: str, folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A server that wants keys: (its address, keys by what they may, and some that may nothing)."""
    (folder / "allowed").mkdir()
    environment = {
        **os.environ,
        "NVP_STATE": str(folder / "state"),
        "NVP_CACHE": str(folder / "cache"),
        "NVP_INGEST_ROOTS": str(folder / "allowed"),
        "NVP_UPLOAD_LIMIT": str(UPLOAD_BYTES),
        "NVP_UPLOAD_STALL": str(STALL_SECONDS),
        "NVP_QUERY_TIMEOUT": str(QUERY_SECONDS),
        "NVP_RATE_LIMIT": "100000/minute",
    }
    base = [sys.executable, "-m", "nvpstore.api.cli", "--archive", root]

    def made(*arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [*base, "--json", "keys", "add", *arguments], env=environment, stdout=subprocess.PIPE, check=True
        )
        key: dict[str, Any] = json.loads(done.stdout)
        return key

    scopes: tuple[Scope, ...] = ("read", "query", "ingest", "admin")
    all_keys = {scope: made(scope, "--scope", scope) for scope in scopes}
    keys = {scope: str(key["secret"]) for scope, key in all_keys.items()}
    keys |= _useless(made, folder, all_keys)
    process = subprocess.Popen(
        [*base, "serve", "--port", "0", "--workers", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield address_of(process), keys
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _useless(
    made: Callable[..., dict[str, Any]], folder: Path, keys: Mapping[str, dict[str, Any]]
) -> dict[str, str]:
    """Keys that are revoked, expired, cut short, or have another's name."""
    revoked = made("revoked", "--scope", "admin")
    (path,) = folder.glob("state/*/keys.sqlite")
    ring = KeyRing(path)
    ring.revoke(revoked["id"])
    _, past = ring.add("past", ["admin"], expires_at=time.time() + 1)
    time.sleep(1.1)
    secret, other = keys["admin"]["secret"], keys["read"]["secret"]
    return {
        "revoked": revoked["secret"],
        "expired": past,
        "short": secret[:-1],
        "swapped": "_".join([*other.split("_")[:2], *secret.split("_")[2:]]),
    }
