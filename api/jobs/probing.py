"""What an untrusted file claims to be, found out in a process of its own:
`python -m nvpstore.api.jobs.probing FILE LIMITS`.

Whoever opens a media file lets it decide how much memory and time that takes. So the first to open it is a
child without credentials, which the system ends at its limits; what it says is then held against what this
server takes (`check`). The child prints what the container claims before it decodes anything: where decoding
kills it, that is known.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from nvpstore.api.service.settings import ServiceSettings
from nvpstore.errors import NvpError, SourceError
from nvpstore.video.converter import Converter
from nvpstore.video.decoder import Decoder, open_decoder

MOST_STREAMS = 64
MOST_FPS = 240  # frames a second of the longest video allowed: bounds how many frames are looked at
LEAST_SIDE = 2
_REPORT_BYTES = 1 << 20  # of what the child may print
_OPEN_FILES = 64
_START_SECONDS = 60.0  # a new interpreter and its imports, on a busy machine
_KEPT_VARIABLES = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TMPDIR")
_POLL_SECONDS = 0.01
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeLimits:
    """What the child may take beyond its imports: bytes of memory, seconds of computing, seconds at all."""

    memory_bytes: int = 2 * 2**30
    cpu_seconds: int = 60
    wall_seconds: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What a file claims, and once `decoded` the size of its first picture as shown.

    `declared_frames` is 0 where the container does not say; so is `seconds`, which is the longest that the
    container or its first video stream claims.
    """

    container: str
    codec: str
    streams: int
    width: int
    height: int
    seconds: float
    declared_frames: int
    decoded: bool = False


def probe_apart(path: Path, settings: ServiceSettings, *, limits: ProbeLimits | None = None) -> Probed:
    """Probe `path` in a child, and `check` what it says.

    Raises SourceError for what is no video, claims too much, or takes too much to open.
    """
    limits = limits or ProbeLimits()
    with tempfile.TemporaryFile("w+") as report:
        status = _run(path, settings, limits, report)
        report.seek(0)
        lines = [json.loads(line) for line in report.read(_REPORT_BYTES).splitlines() if line.endswith("}")]
    # What was claimed first explains best why the rest went wrong.
    found = [Probed(**line) for line in lines if "error" not in line]
    for probed in found:
        check(probed, settings, str(path))
    if errors := [line["error"] for line in lines if "error" in line]:
        raise SourceError(errors[0])
    if not found or not found[-1].decoded:
        raise SourceError(f"{path}: {_death(status, limits)}")
    return found[-1]


def check(probed: Probed, settings: ServiceSettings, name: str) -> None:
    """Raises SourceError where a file claims more than this server takes."""
    if probed.streams > MOST_STREAMS:
        raise SourceError(f"{name}: has {probed.streams} streams; at most {MOST_STREAMS} are allowed")
    if probed.width * probed.height > settings.pixels:
        raise SourceError(
            f"{name}: has {probed.width}x{probed.height} pixels; at most {settings.pixels} pixels are allowed"
        )
    if probed.seconds > settings.upload_seconds:
        raise SourceError(
            f"{name}: lasts {probed.seconds:.0f} s; at most {settings.upload_seconds:g} s are allowed"
        )
    if probed.declared_frames > most_frames(settings):
        raise SourceError(
            f"{name}: has {probed.declared_frames} frames; at most {most_frames(settings)} are allowed"
        )


def most_frames(settings: ServiceSettings) -> int:
    """How many frames of a video are looked at, whatever it claims."""
    return int(settings.upload_seconds * MOST_FPS)


# ---------------------------------------------------------------- the parent's side


def _run(path: Path, settings: ServiceSettings, limits: ProbeLimits, report: IO[str]) -> int:
    """The child's exit status, negative for a signal."""
    terms = json.dumps({**asdict(limits), "pixels": settings.pixels})
    command = [sys.executable, "-m", "nvpstore.api.jobs.probing", os.path.abspath(path), terms]
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=report,
        stderr=subprocess.DEVNULL,
        # One arena, so that what counts as memory is what is used.
        env={**environment, "MALLOC_ARENA_MAX": "1"},
        start_new_session=True,
    )
    try:
        _await(child.pid, _START_SECONDS + limits.wall_seconds)
    finally:
        # Before its number is given back: neither it nor what it may have started stays.
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        status = child.wait()
    return status


def _await(pid: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > until:
            return
        time.sleep(_POLL_SECONDS)


def _death(status: int, limits: ProbeLimits) -> str:
    if status in (-signal.SIGALRM, -signal.SIGKILL):
        return f"could not be opened within {limits.wall_seconds:g} s"
    if status == -signal.SIGXCPU:
        return f"could not be opened within {limits.cpu_seconds} s of computing"
    return (
        f"could not be opened: it needs more than {limits.memory_bytes // 2**20} MiB of memory, "
        f"or is made to crash its reader (status {status})"
    )


# ---------------------------------------------------------------- the child's side


def main() -> int:
    path, terms = sys.argv[1], json.loads(sys.argv[2])
    pixels = terms.pop("pixels")
    _limit(ProbeLimits(**terms))
    try:
        _look(path, most_pixels=pixels)
    except (NvpError, MemoryError) as cause:
        reason = str(cause) if isinstance(cause, NvpError) else f"{path}: needs more memory than is allowed"
        _say({"error": reason})
        return 1
    return 0


def _limit(limits: ProbeLimits) -> None:
    """From here on the system itself refuses memory and files, and ends the process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    spent_seconds = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    for kind, most in (
        (resource.RLIMIT_AS, used_bytes + limits.memory_bytes),
        (resource.RLIMIT_CPU, int(spent_seconds) + limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, _REPORT_BYTES),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        # A processor's limit warns by SIGXCPU at the soft limit, which says more than SIGKILL.
        resource.setrlimit(kind, (most, most + (kind == resource.RLIMIT_CPU)))
    signal.setitimer(signal.ITIMER_REAL, limits.wall_seconds)


def _look(path: str, *, most_pixels: int) -> None:
    with open_decoder(path) as decoder:
        claimed = _claimed(decoder)
        _say(asdict(claimed))
        if claimed.width * claimed.height > most_pixels or claimed.streams > MOST_STREAMS:
            return
        decoder.stream.codec_context.thread_count = 1
        try:
            width, height = _first_size(decoder)
        except SourceError as cause:
            if claimed.width * claimed.height:
                raise
            raise SourceError(f"{path}: its pictures have no size, or one that no decoder takes") from cause
        _say(asdict(replace(claimed, width=width, height=height, decoded=True)))


def _first_size(decoder: Decoder) -> tuple[int, int]:
    """(width, height) of the first picture as shown."""
    for _, frame in decoder.frames():
        return Converter(decoder.path, frame).size
    decoder.check_complete()  # says more, where the file is cut short
    raise decoder.no_frames()


def _claimed(decoder: Decoder) -> Probed:
    container, stream = decoder.container, decoder.stream
    seconds = max((container.duration or 0) / 1_000_000, float((stream.duration or 0) * decoder.time_base))
    return Probed(
        container=container.format.name,
        codec=stream.codec_context.name,
        streams=len(container.streams),
        width=stream.codec_context.width,
        height=stream.codec_context.height,
        seconds=seconds,
        declared_frames=max(decoder.declared_frames, stream.frames),
    )


def _say(found: Mapping[str, Any]) -> None:
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    sys.exit(main())
