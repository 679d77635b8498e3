"""Servers of tests and benchmarks: gone when their owner is gone, and exact about what they saw."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError

from benchmarks.servers.proxy import FAULTS, Faults, Proxy

if TYPE_CHECKING:
    from benchmarks.servers.weed import Weed

pytestmark = pytest.mark.s3


def _listens(endpoint: str) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", urlsplit(endpoint).port)) == 0


def test_a_server_ends_with_its_owner_even_if_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import time; from benchmarks.servers.weed import Weed\n"
        "with Weed() as weed: print(weed.endpoint, flush=True); time.sleep(60)"
    )
    # Killed, it cannot clean up; so it leaves its files where pytest does.
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    ) as owner:
        assert owner.stdout is not None
        endpoint = owner.stdout.readline().strip()
        assert _listens(endpoint)
        owner.send_signal(signal.SIGKILL)
    until = time.monotonic() + 5
    while _listens(endpoint):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_bucket_is_made_before_it_is_used(weed: Weed) -> None:
    with pytest.raises(ClientError, match="NoSuchBucket"):
        weed.client().put_object(Bucket="made-later", Key="a", Body=b"x")
    weed.make_bucket("made-later")
    weed.client().put_object(Bucket="made-later", Key="a", Body=b"x")


def test_the_proxy_says_what_passed(weed: Weed) -> None:
    with Proxy(weed.endpoint) as proxy:
        client = weed.client(proxy.endpoint)
        client.put_object(Bucket="tests", Key="proxy/a b", Body=b"0123456789", IfNoneMatch="*")
        client.get_object(Bucket="tests", Key="proxy/a b", Range="bytes=2-4")["Body"].read()
        put, get = proxy.requests
        assert (put.method, put.path, put.sent_bytes, put.status) == ("PUT", "/tests/proxy/a b", 10, 200)
        assert (get.byte_range, get.received_bytes, get.status, get.fault) == ("bytes=2-4", 3, 206, "")
        proxy.reset()
        assert proxy.requests == ()


def test_faults_are_the_same_for_the_same_seed() -> None:
    def drawn(seed: int) -> list[str]:
        faults = Faults(rate=0.5, seed=seed)
        return [faults.next() for _ in range(200)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert set(drawn(1)) == {"", *FAULTS}
    assert {Faults().next() for _ in range(100)} == {""}
