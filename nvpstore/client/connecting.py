"""From an address and a key to an archive that is served there."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from nvpstore.errors import UsageError

if TYPE_CHECKING:
    from nvpstore.client.remote import RemoteArchive

KEY_VARIABLE = "NVP_KEY"
_SERVED = re.compile(r"https?://", re.IGNORECASE)
_KEY = re.compile(r"[\x21-\x7e]+")


def connect(url: str, *, key: str | None = None) -> RemoteArchive:
    """The archive that `nvp serve` offers at `url`, such as `http://127.0.0.1:8080`; nothing is asked yet.

    `key` (default: NVP_KEY in the environment) is sent to this server and to no other. Raises UsageError for
    a malformed address or key, and where the extra `client` is not installed.
    """
    address = _checked(url)
    given = key if key is not None else os.environ.get(KEY_VARIABLE, "").strip() or None
    if given is not None and not _KEY.fullmatch(given):
        raise UsageError(f"the key for {address} is malformed: keys are printable ASCII without blanks")
    try:
        from nvpstore.client.remote import RemoteArchive
    except ModuleNotFoundError as cause:
        if cause.name != "httpx2":
            raise
        raise UsageError(
            f"{address} is a server, which needs httpx2: pip install 'nvpstore[client]'"
        ) from cause
    return RemoteArchive(address, key=given)


def is_server(uri: str) -> bool:
    """Whether an archive is named by a server's address."""
    return _SERVED.match(uri) is not None


def _checked(url: str) -> str:
    """The address without a slash at its end. It may have a path, where a proxy puts the server under one."""
    if not is_server(url):
        raise UsageError(f"{url!r} is no server's address: http:// or https:// is needed")
    parts = _split(url)
    if parts.username is not None or parts.password is not None:
        # Not repeated in the message: what stands there may be a secret.
        raise UsageError(f"the address of {parts.hostname} holds a name or password: give a key instead")
    if not parts.hostname or parts.query or parts.fragment:
        raise UsageError(f"{url!r} is no server's address: scheme, host, port and path are allowed")
    return url.rstrip("/")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        assert parts.port is None or parts.port >= 0
    except ValueError as cause:
        raise UsageError(f"{url!r} is no server's address: {cause}") from cause
    return parts
