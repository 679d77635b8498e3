"""One file over HTTP, from a host that was looked at before anything is sent to it.

The connection goes to an address that was checked, whatever the name leads to a moment later; redirects are
not followed. So a URL cannot be made to reach what stands behind the server.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit

from nvpstore.api.jobs import spool
from nvpstore.errors import SourceError, StoreError, UsageError

Resolve = Callable[[str, int], Sequence[str]]  # (host, port) -> addresses

SILENCE_SECONDS = 30.0
LONGEST_SECONDS = 6 * 3600.0
_PIECE_BYTES = 1 << 20
_IN_A_TARGET = "%/:@!$&'()*+,;=~?"
# IPv4 inside of IPv6: what such an address leads to is another's decision.
_TRANSLATED = tuple(
    ipaddress.ip_network(n) for n in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)


def addresses_of(host: str, port: int) -> Sequence[str]:
    """What the system's resolver says. Raises StoreError where it knows no such host."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as cause:  # the latter for names that cannot be
        raise StoreError(f"{host}: its address cannot be found ({cause})") from cause
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def fetch(
    url: str,
    folder: Path,
    *,
    most_bytes: int,
    named: bool,
    resolve: Resolve = addresses_of,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The file at `url`, written into `folder`. `progress` gets the bytes so far, and all of them or 0.

    Unless an operator `named` its host, all of that host's addresses must be public. Raises UsageError where
    they are not, SourceError for what is not there or larger than `most_bytes`, StoreError for what passes.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or {"http": 80, "https": 443}[parts.scheme]
    address = _checked_addresses(host, resolve(host, port), named=named)[0]
    connection = _connection(parts.scheme, host, port, address)
    path = folder / _file_name(parts.path)
    try:
        connection.request("GET", _target(parts))
        response = connection.getresponse()
        _check_answer(url, response, folder, most_bytes=most_bytes)
        _write(url, response, path, most_bytes=most_bytes, progress=progress or _ignored)
    except (OSError, http.client.HTTPException) as cause:
        raise StoreError(f"{url}: cannot be fetched ({cause or type(cause).__name__})") from cause
    finally:
        connection.close()
    return path


def is_public(address: str) -> bool:
    """Whether an address is anybody's to reach: not this machine's, its network's, or a special one."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        elif any(found in network for network in _TRANSLATED):
            return False
    return found.is_global and not found.is_multicast


def _checked_addresses(host: str, addresses: Sequence[str], *, named: bool) -> Sequence[str]:
    if not addresses:
        raise StoreError(f"{host}: it has no address")
    if not named and not all(is_public(address) for address in addresses):
        # Not which one: that would tell callers about the network behind the server.
        raise UsageError(f"{host}: has no public address; an operator has to allow such a host by its name")
    return addresses


def _connection(scheme: str, host: str, port: int, address: str) -> http.client.HTTPConnection:
    if scheme == "https":
        return _PinnedHttps(host, port, address)
    return _Pinned(host, port, address)


class _Pinned(http.client.HTTPConnection):
    """A connection to `address`, whatever `host` leads to."""

    def __init__(self, host: str, port: int, address: str) -> None:
        super().__init__(host, port, timeout=SILENCE_SECONDS)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), self.timeout)


class _PinnedHttps(_Pinned):
    """The same behind TLS, whose certificate is checked for the name."""

    default_port = 443

    def connect(self) -> None:
        super().connect()
        context = ssl.create_default_context()
        self.sock = context.wrap_socket(self.sock, server_hostname=self.host)


def _check_answer(url: str, response: http.client.HTTPResponse, folder: Path, *, most_bytes: int) -> None:
    if 300 <= response.status < 400:
        raise SourceError(f"{url}: is elsewhere ({response.status}); redirects are not followed")
    if response.status >= 500 or response.status == 429:
        raise StoreError(f"{url}: the server answers {response.status} {response.reason}")
    if response.status != 200:
        raise SourceError(f"{url}: the server answers {response.status} {response.reason}; 200 is needed")
    if (response.length or 0) > most_bytes:
        raise SourceError(f"{url}: has {response.length} bytes; at most {most_bytes} are allowed")
    spool.check_free(folder, response.length or 0)


def _write(
    url: str,
    response: http.client.HTTPResponse,
    path: Path,
    *,
    most_bytes: int,
    progress: Callable[[int, int], None],
) -> None:
    until, done, total = time.monotonic() + LONGEST_SECONDS, 0, response.length or 0
    with path.open("xb") as file:
        while piece := response.read(_PIECE_BYTES):
            done += len(piece)
            if done > most_bytes:
                raise SourceError(f"{url}: has more than the {most_bytes} bytes that are allowed")
            if time.monotonic() > until:
                raise SourceError(f"{url}: took longer than {LONGEST_SECONDS / 3600:g} h to arrive")
            spool.check_free(path.parent, len(piece))
            file.write(piece)
            progress(done, total)
    if total and done < total:
        raise StoreError(f"{url}: broke off after {done} of {total} bytes")


def _target(parts: SplitResult) -> str:
    """Path and query as a request line takes them: in ASCII, without spaces."""
    asked = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    return quote(asked, safe=_IN_A_TARGET)


def _file_name(path: str) -> str:
    """A harmless name that keeps the suffix, by which FFmpeg tells some formats."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", unquote(path).rpartition("/")[2])[-80:].lstrip(".") or "video"


def _ignored(done: int, total: int) -> None:
    pass
