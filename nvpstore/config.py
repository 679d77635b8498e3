"""Settings: what the environment may say. Every variable is described in docs/configuration.md."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, cast, get_args

from nvpstore.errors import UsageError

AnswersMode = Literal["on", "read", "off"]

N = TypeVar("N", int, float)

_UNITS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"", "0", "false", "no", "off"})

# The environment variable behind each field of Settings.
VARIABLES: Mapping[str, str] = {
    "archive": "NVP_ARCHIVE",
    "cache_dir": "NVP_CACHE",
    "cache_bytes": "NVP_CACHE_LIMIT",
    "memory_bytes": "NVP_MEMORY_LIMIT",
    "threads": "NVP_THREADS",
    "query_seconds": "NVP_QUERY_TIMEOUT",
    "debug": "NVP_DEBUG",
    "answers": "NVP_ANSWERS",
    "sharing": "NVP_SHARING",
    "checkpoint_seconds": "NVP_CHECKPOINT",
    "factories": "NVP_FACTORIES",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One process's settings.

    `archive` is the archive used where none is named. `cache_dir` holds indexes, the checkpoints of
    unfinished fits, and what was fetched of remote archives: for each at most `cache_bytes` of their videos
    and as much of originals (0: nothing that can be done without). `memory_bytes` bounds DuckDB,
    `threads` (≥ 1) bounds DuckDB, decoding and torch. `query_seconds` (> 0, None: no
    limit) bounds a query. With `debug`, the CLI shows tracebacks. `answers`: whether queries read what
    others computed and stored in the archive and store theirs ("on"), only read it, or neither. With
    `sharing` the queries of a process that run at once decode what they both need once.
    `checkpoint_seconds` (≥ 0) of a fit may be lost where its process is killed.
    `factories` are the functions `package.module:name` that may be called to make a task's model.
    """

    archive: str | None
    cache_dir: Path
    cache_bytes: int
    memory_bytes: int
    threads: int
    query_seconds: float | None
    debug: bool
    answers: AnswersMode = "on"
    sharing: bool = True
    checkpoint_seconds: float = 15.0
    factories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UsageError(f"NVP_THREADS is {self.threads}: at least 1 is needed")
        if self.memory_bytes < 64 * 2**20:
            raise UsageError(f"NVP_MEMORY_LIMIT is {self.memory_bytes} bytes: at least 64 MiB is needed")
        if self.query_seconds is not None and not self.query_seconds > 0:
            raise UsageError(f"NVP_QUERY_TIMEOUT is {self.query_seconds}: more than 0 seconds is needed")
        if not self.checkpoint_seconds >= 0:
            raise UsageError(f"NVP_CHECKPOINT is {self.checkpoint_seconds}: at least 0 seconds is needed")


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the environment (default: `os.environ`). Raises UsageError naming a malformed variable."""
    env = os.environ if environment is None else environment
    timeout = env.get("NVP_QUERY_TIMEOUT", "")
    return Settings(
        archive=env.get("NVP_ARCHIVE") or None,
        cache_dir=_cache_dir(env),
        cache_bytes=parse_bytes(env.get("NVP_CACHE_LIMIT") or "10GB", name="NVP_CACHE_LIMIT"),
        memory_bytes=parse_bytes(env.get("NVP_MEMORY_LIMIT") or "2GB", name="NVP_MEMORY_LIMIT"),
        threads=_number(env.get("NVP_THREADS") or str(_usable_cores()), int, name="NVP_THREADS"),
        query_seconds=_number(timeout, float, name="NVP_QUERY_TIMEOUT") if timeout else None,
        debug=_flag(env.get("NVP_DEBUG", ""), name="NVP_DEBUG"),
        answers=_answers(env.get("NVP_ANSWERS") or "on"),
        sharing=_flag(env.get("NVP_SHARING") or "on", name="NVP_SHARING"),
        checkpoint_seconds=_number(env.get("NVP_CHECKPOINT") or "15", float, name="NVP_CHECKPOINT"),
        factories=tuple(name.strip() for name in env.get("NVP_FACTORIES", "").split(",") if name.strip()),
    )


def parse_bytes(text: str, *, name: str) -> int:
    """`512MiB`, `2GB` or a bare number of bytes. `name` says in the error whose value it was."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2].upper() not in _UNITS:
        raise UsageError(f"{name} is {text!r}: a size is a number and one of KB MB GB TB KiB MiB GiB TiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _cache_dir(env: Mapping[str, str]) -> Path:
    if named := env.get("NVP_CACHE"):
        return Path(named).expanduser()
    base = env.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "nvpstore"


def _usable_cores() -> int:
    # A container or taskset may leave fewer than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(text: str, kind: type[N], *, name: str) -> N:
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"{name} is {text!r}: a number is needed") from None


def _answers(text: str) -> AnswersMode:
    if text.lower() not in get_args(AnswersMode):
        raise UsageError(f"NVP_ANSWERS is {text!r}: use {', '.join(get_args(AnswersMode))}")
    return cast(AnswersMode, text.lower())


def _flag(text: str, *, name: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise UsageError(f"{name} is {text!r}: use 1 or 0")
