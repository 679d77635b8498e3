"""What may be shown of a URI, of options and of a library's message: nothing that opens a door."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

_SHORTEST_SECRET = 4
_SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def without_credentials(uri: str) -> str:
    """The URI without user information and query."""
    return re.sub(r"://[^/]*@", "://", uri).partition("?")[0]


def secrets_of(uri: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """All strings that no message may show, longest first.

    They are the URI's user information and query, every option's value, and the environment's keys.
    """
    found = re.findall(r"://([^/]*)@", uri)
    found += [part for text in found for part in text.split(":")]
    found += [uri.partition("?")[2], *_strings(options)]
    found += [os.environ.get(variable, "") for variable in _SECRET_VARIABLES]
    return tuple(sorted({text for text in found if len(text) >= _SHORTEST_SECRET}, key=len, reverse=True))


def redacted(text: str, secrets: tuple[str, ...]) -> str:
    """`text` with every secret replaced, and URLs in it cut to what names a place."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return re.sub(r"(\w+://\S+?)\?\S*", r"\1", re.sub(r"://[^/@\s]*@", "://", text))


def _strings(value: object) -> list[str]:
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []
