"""What an operator may set for the service. Every variable is described in docs/configuration.md."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from nvpstore.config import parse_bytes
from nvpstore.errors import UsageError

VARIABLES: Mapping[str, str] = {
    "state_dir": "NVP_STATE",
    "workers": "NVP_WORKERS",
    "worker_bytes": "NVP_WORKER_MEMORY",
    "roots": "NVP_INGEST_ROOTS",
    "upload_bytes": "NVP_UPLOAD_LIMIT",
    "upload_seconds": "NVP_UPLOAD_DURATION",
    "stall_seconds": "NVP_UPLOAD_STALL",
    "clip_bytes": "NVP_CLIP_CACHE",
    "pixels": "NVP_UPLOAD_PIXELS",
    "waiting_jobs": "NVP_QUEUE_LIMIT",
    "rate": "NVP_RATE_LIMIT",
    "queries_at_once": "NVP_QUERIES_AT_ONCE",
    "hosts": "NVP_HOSTS",
    "grace_seconds": "NVP_SHUTDOWN_GRACE",
}
_ABOVE_ZERO = (
    "upload_bytes", "upload_seconds", "stall_seconds", "pixels", "waiting_jobs", "queries_at_once",
    "grace_seconds",
)  # fmt: skip

LEAST_WORKER_BYTES = 2**30  # torch alone takes a good part of it
_WHOLE = ("pixels", "waiting_jobs", "queries_at_once", "grace_seconds")  # numbers of at least 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """One server's settings.

    `state_dir` holds jobs, keys, the audit log and unfinished uploads: it must survive restarts. `workers` (≥
    0) processes fit videos, each in at most `worker_bytes` of memory (None: as much as it needs). `roots` are
    the URI prefixes from which `{"uri": …}` may be ingested (none: uploads only). A video may have at most
    `upload_bytes` bytes, `upload_seconds` seconds and `pixels` pixels a frame; who sends less than 64 KiB of
    one in `stall_seconds` is cut off. Clips that were made are kept, up to `clip_bytes` of them. At most
    `waiting_jobs` jobs wait. `rate` bounds each key's requests, such as `600/minute`; `queries_at_once` (≥ 1)
    the queries of each that run at the same time. `hosts` are the names under which it is reached (none: any;
    on loopback only those of loopback). Requests get `grace_seconds` to end when it stops.
    """

    state_dir: Path
    workers: int = 1
    worker_bytes: int | None = None
    roots: tuple[str, ...] = ()
    upload_bytes: int = 20 * 10**9
    upload_seconds: float = 12 * 3600.0
    stall_seconds: float = 30.0
    clip_bytes: int = 5 * 10**9
    pixels: int = 4096 * 2304
    waiting_jobs: int = 1_000
    rate: str = "1200/minute"
    queries_at_once: int = 8
    hosts: tuple[str, ...] = ()
    grace_seconds: int = 20
    spool_dir: Path = field(init=False)

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UsageError(f"NVP_WORKERS is {self.workers}: 0 or more are allowed")
        if self.worker_bytes is not None and self.worker_bytes < LEAST_WORKER_BYTES:
            raise UsageError(f"NVP_WORKER_MEMORY is {self.worker_bytes} bytes: at least 1 GiB is needed")
        for name in _ABOVE_ZERO:
            if not getattr(self, name) > 0:
                raise UsageError(f"{VARIABLES[name]} is {getattr(self, name)}: more than 0 is needed")
        object.__setattr__(self, "spool_dir", self.state_dir / "uploads")

    def of_archive(self, archive_id: str) -> ServiceSettings:
        """The same with a folder of that archive's own."""
        return replace(self, state_dir=self.state_dir / archive_id)


def load_service_settings(environment: Mapping[str, str] | None = None) -> ServiceSettings:
    """Read the environment (default: `os.environ`). Raises UsageError naming a malformed variable."""
    env = os.environ if environment is None else environment
    given: dict[str, object] = {"state_dir": _state_dir(env)}
    for name in ("workers", *_WHOLE):
        if text := env.get(VARIABLES[name]):
            given[name] = _number(text, int, name=VARIABLES[name])
    if text := env.get("NVP_UPLOAD_LIMIT"):
        given["upload_bytes"] = parse_bytes(text, name="NVP_UPLOAD_LIMIT")
    if text := env.get("NVP_WORKER_MEMORY"):
        given["worker_bytes"] = parse_bytes(text, name="NVP_WORKER_MEMORY")
    if text := env.get("NVP_CLIP_CACHE"):
        given["clip_bytes"] = parse_bytes(text, name="NVP_CLIP_CACHE")
    for name in ("upload_seconds", "stall_seconds"):
        if text := env.get(VARIABLES[name]):
            given[name] = _number(text, float, name=VARIABLES[name])
    if text := env.get("NVP_RATE_LIMIT"):
        given["rate"] = text
    given["roots"] = tuple(env.get("NVP_INGEST_ROOTS", "").split())
    given["hosts"] = tuple(env.get("NVP_HOSTS", "").split())
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
