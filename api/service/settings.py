"""What an operator may set for the service. Every variable is described in docs/configuration.md."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nvpstore.config import parse_bytes
from nvpstore.errors import UsageError

VARIABLES: Mapping[str, str] = {
    "state_dir": "NVP_STATE",
    "workers": "NVP_WORKERS",
    "roots": "NVP_INGEST_ROOTS",
    "upload_bytes": "NVP_UPLOAD_LIMIT",
    "upload_seconds": "NVP_UPLOAD_DURATION",
    "pixels": "NVP_UPLOAD_PIXELS",
    "waiting_jobs": "NVP_QUEUE_LIMIT",
    "rate": "NVP_RATE_LIMIT",
    "queries_at_once": "NVP_QUERIES_AT_ONCE",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """One server's settings.

    `state_dir` holds jobs, keys, the audit log and unfinished uploads: it must survive restarts. `workers`
    (≥ 0) processes fit videos. `roots` are the URI prefixes from which `{"uri": …}` may be ingested (none:
    uploads only). A video may have at most `upload_bytes` bytes, `upload_seconds` seconds and `pixels` pixels
    a frame. At most `waiting_jobs` jobs wait. `rate` bounds each key's requests, such as `600/minute`;
    `queries_at_once` (≥ 1) the queries of each that run at the same time.
    """

    state_dir: Path
    workers: int = 1
    roots: tuple[str, ...] = ()
    upload_bytes: int = 20 * 10**9
    upload_seconds: float = 12 * 3600.0
    pixels: int = 4096 * 2304
    waiting_jobs: int = 1_000
    rate: str = "1200/minute"
    queries_at_once: int = 8
    spool_dir: Path = field(init=False)

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UsageError(f"NVP_WORKERS is {self.workers}: 0 or more are allowed")
        for name in ("upload_bytes", "upload_seconds", "pixels", "waiting_jobs", "queries_at_once"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{VARIABLES[name]} is {getattr(self, name)}: more than 0 is needed")
        object.__setattr__(self, "spool_dir", self.state_dir / "uploads")


def load_service_settings(environment: Mapping[str, str] | None = None) -> ServiceSettings:
    """Read the environment (default: `os.environ`). Raises UsageError naming a malformed variable."""
    env = os.environ if environment is None else environment
    given: dict[str, object] = {"state_dir": _state_dir(env)}
    for name, read in (("workers", int), ("waiting_jobs", int), ("queries_at_once", int), ("pixels", int)):
        if text := env.get(VARIABLES[name]):
            given[name] = _number(text, read, name=VARIABLES[name])
    if text := env.get("NVP_UPLOAD_LIMIT"):
        given["upload_bytes"] = parse_bytes(text, name="NVP_UPLOAD_LIMIT")
    if text := env.get("NVP_UPLOAD_DURATION"):
        given["upload_seconds"] = _number(text, float, name="NVP_UPLOAD_DURATION")
    if text := env.get("NVP_RATE_LIMIT"):
        given["rate"] = text
    given["roots"] = tuple(root for root in env.get("NVP_INGEST_ROOTS", "").split() if root)
    return ServiceSettings(**given)  # type: ignore[arg-type]


def _state_dir(env: Mapping[str, str]) -> Path:
    if named := env.get("NVP_STATE"):
        return Path(named).expanduser()
    base = env.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "nvpstore"


def _number(text: str, kind: type[int] | type[float], *, name: str) -> float:
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"{name} is {text!r}: a number is needed") from None
