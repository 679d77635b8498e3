"""S3 over good and bad lines: no request too many, one winner a key, and every answer right or an error."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvpstore.errors import ObjectExists, ObjectMissing, StoreError
from nvpstore.storage.contract import PIECE_BYTES
from nvpstore.storage.objects import ObjectStore, open_store
from nvpstore.storage.s3 import MULTIPART_FROM_BYTES, PART_BYTES

if TYPE_CHECKING:
    from benchmarks.servers.weed import Weed

from benchmarks.servers.proxy import FAULTS, Fault, Faults, Proxy

pytestmark = pytest.mark.s3


@pytest.fixture(scope="module")
def proxy(weed: Weed) -> Iterator[Proxy]:
    with Proxy(weed.endpoint) as server:
        yield server


@pytest.fixture
def root(s3_root: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> str:
    """A root that is reached through the proxy, over a good line at first."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    proxy.reset()
    return s3_root


@pytest.fixture
def store(root: str) -> ObjectStore:
    return open_store(root)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of three parts, the first ones as small as S3 allows."""
    monkeypatch.setattr("nvpstore.storage.s3.MULTIPART_FROM_BYTES", 10 * 2**20)
    monkeypatch.setattr("nvpstore.storage.s3.PART_BYTES", 5 * 2**20)
    path = tmp_path / "large"
    path.write_bytes(os.urandom(10 * 2**20 + 3))
    return path


def _methods(proxy: Proxy) -> list[str]:
    return [request.method for request in proxy.requests]


# ---------------------------------------------------------------- requests


def test_each_operation_is_one_request(store: ObjectStore, proxy: Proxy) -> None:
    store.put("log/0", b"0123456789")
    store.get("log/0")
    store.get_range("log/0", 2, 3)
    store.size("log/0")
    store.exists("log/1")
    store.list("log/")
    store.delete("log/0")
    store.delete_all(["log/0", "log/1", "log/2"])
    assert _methods(proxy) == ["PUT", "GET", "GET", "HEAD", "HEAD", "GET", "DELETE", "POST"]
    assert proxy.requests[2].byte_range == "bytes=2-4"
    assert proxy.requests[2].received_bytes == 3
    assert "prefix=" in proxy.requests[5].query


def test_a_missing_key_is_one_request(store: ObjectStore, proxy: Proxy) -> None:
    for read in (store.get, store.size, lambda key: store.get_range(key, 0, 5)):
        proxy.reset()
        with pytest.raises(ObjectMissing):
            read("nothing")
        assert len(proxy.requests) == 1


def test_opening_asks_for_nothing(root: str, proxy: Proxy) -> None:
    open_store(root)
    assert proxy.requests == ()


def test_a_taken_key_is_two_requests(store: ObjectStore, proxy: Proxy) -> None:
    store.put("log/0", b"0123456789")
    for data in (b"0123456789", b"x" * 5000):
        proxy.reset()
        try:
            store.put("log/0", data)
        except ObjectExists:
            assert data != b"0123456789"
        assert _methods(proxy) == ["PUT", "GET"]


def test_long_listings_come_in_pages(store: ObjectStore, proxy: Proxy) -> None:
    keys = [f"log/{n:04d}" for n in range(1005)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))
    store.put("log/checkpoint-1", b"")
    proxy.reset()
    assert store.list("log/0") == keys[:1000]
    assert store.list("log/") == [*keys, "log/checkpoint-1"]
    assert store.list("log/checkpoint-") == ["log/checkpoint-1"]
    assert len(proxy.requests) == 1 + 2 + 1
    proxy.reset()
    store.delete_all(keys)
    assert len(proxy.requests) == 2
    assert store.list() == ["log/checkpoint-1"]


# ---------------------------------------------------------------- large files


def test_large_files_go_up_in_parts_and_come_down_in_pieces(
    store: ObjectStore, proxy: Proxy, tmp_path: Path
) -> None:
    data, path = os.urandom(MULTIPART_FROM_BYTES + 3), tmp_path / "file"
    path.write_bytes(data)
    obj = store.put_file("sources/x", path)
    assert obj.size_bytes == store.size("sources/x") == len(data)
    assert obj.sha256 == hashlib.sha256(data).hexdigest()
    sent = [request.sent_bytes for request in proxy.requests if request.method == "PUT"]
    assert sorted(sent) == [3, *[PART_BYTES] * 4]
    proxy.reset()
    store.get_file(obj, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert [request.received_bytes for request in proxy.requests] == [*[PIECE_BYTES] * 4, 3]


def test_a_large_file_never_overwrites(store: ObjectStore, proxy: Proxy, large: Path, tmp_path: Path) -> None:
    obj = store.put_file("sources/x", large)
    other = tmp_path / "other"
    other.write_bytes(large.read_bytes()[:-1] + b"??")
    with pytest.raises(ObjectExists, match="sources/x exists in"):
        store.put_file("sources/x", other)
    assert store.put_file("sources/x", large) == obj
    assert store.sweep_unfinished(before=datetime.now(UTC) + timedelta(hours=1)) == 0
    assert store.get_verified(obj) == large.read_bytes()


def test_an_upload_that_fails_leaves_nothing(root: str, proxy: Proxy, large: Path) -> None:
    store, later = open_store(root, deadline_seconds=0.5), datetime.now(UTC) + timedelta(hours=1)
    # Some parts arrive, some do not; the abort may fail as well.
    proxy.reset(Faults(rate=0.7, kinds=("error_503",), seed=3))
    with pytest.raises(StoreError, match=r"cannot write sources/x in .*\(given up after \d+ attempts in \d"):
        store.put_file("sources/x", large)
    proxy.reset()
    store.sweep_unfinished(before=later)
    assert store.sweep_unfinished(before=later) == 0
    assert not store.exists("sources/x")


def test_uploads_begun_before_are_swept(store: ObjectStore, weed: Weed, root: str) -> None:
    client, prefix = weed.client(), root.removeprefix("s3://tests/")
    for key in ("videos/x/1/a", "videos/y/1/a"):
        client.create_multipart_upload(Bucket="tests", Key=f"{prefix}/{key}")
    now = datetime.now(UTC)
    assert store.sweep_unfinished(before=now - timedelta(hours=1)) == 0
    assert store.sweep_unfinished("videos/x/", before=now + timedelta(hours=1)) == 1
    assert store.sweep_unfinished(before=now + timedelta(hours=1)) == 1
    assert store.sweep_unfinished(before=now + timedelta(hours=1)) == 0


# ---------------------------------------------------------------- bad lines


def test_a_put_whose_answer_is_lost_meets_itself(store: ObjectStore, proxy: Proxy, large: Path) -> None:
    store.put("warm", b"")
    for n in range(6):
        proxy.reset(Faults(rate=0.5, kinds=("lost_answer",), seed=n))
        assert store.put(f"log/{n}", f"entry {n}".encode()).size_bytes == 7
    proxy.reset(Faults(rate=0.3, kinds=("lost_answer",), seed=1))
    obj = store.put_file("sources/x", large)
    assert any(request.fault for request in proxy.requests)
    proxy.reset()
    assert [store.get(f"log/{n}") for n in range(6)] == [f"entry {n}".encode() for n in range(6)]
    assert store.get_verified(obj) == large.read_bytes()


def test_lost_answers_never_make_two_winners(store: ObjectStore, proxy: Proxy) -> None:
    def put(n: int) -> int | None:
        try:
            store.put("log/1", f"writer {n}".encode())
        except ObjectExists:
            return None
        return n

    proxy.reset(Faults(rate=0.3, kinds=("lost_answer", "reset"), seed=5))
    with ThreadPoolExecutor(8) as pool:
        winners = [n for n in pool.map(put, range(24)) if n is not None]
    proxy.reset()
    assert [f"writer {n}".encode() for n in winners] == [store.get("log/1")]


@pytest.mark.parametrize("kind", FAULTS)
def test_operations_over_a_bad_line_are_right(store: ObjectStore, proxy: Proxy, kind: Fault) -> None:
    proxy.reset(Faults(rate=0.2, kinds=(kind,), seed=2, stall_seconds=0.3))
    contents = {f"a/{n}": os.urandom(3000 + n) for n in range(6)}
    for key, data in contents.items():
        store.put(key, data)
        assert store.get(key) == data
        assert store.get_range(key, 100, 2000) == data[100:2100]
        assert store.size(key) == len(data)
        assert not store.exists("nothing")
    assert store.list("a/") == list(contents)
    store.delete("a/0")
    store.delete_all(["a/1", "a/2"])
    assert store.list() == ["a/3", "a/4", "a/5"]
    assert any(request.fault for request in proxy.requests)


def test_many_threads_over_a_line_that_is_bad_in_all_ways(store: ObjectStore, proxy: Proxy) -> None:
    proxy.reset(Faults(rate=0.05, seed=7))

    def use(n: int) -> bool:
        data = os.urandom(20_000)
        obj = store.put(f"a/{n}", data)
        return store.get_verified(obj) == data and store.get_range(obj.key, n, 999) == data[n : n + 999]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(use, range(100)))
    assert sum(bool(request.fault) for request in proxy.requests) > 5
    proxy.reset()
    assert len(store.list("a/")) == 100


def test_a_dead_line_is_one_clear_line_at_the_deadline(root: str, proxy: Proxy, weed: Weed) -> None:
    store = open_store(root, deadline_seconds=1.0)
    proxy.reset(Faults(rate=1.0, kinds=("reset",)))
    with pytest.raises(
        StoreError, match=r"^cannot read a in s3://.*\(given up after \d+ attempts in \d s\)$"
    ):
        store.get("a")
    proxy.reset(Faults(rate=1.0, kinds=("error_503",)))
    with pytest.raises(
        StoreError, match=r"cannot write a in .*reduce your request rate \(given up"
    ) as caught:
        store.put("a", b"")
    assert weed.secret_key not in str(caught.value)


def test_an_endpoint_that_is_not_there(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"Could not connect to the endpoint.*given up"):
        open_store(root, deadline_seconds=0.3).list()


# ---------------------------------------------------------------- what is not tried again


def test_refusals_are_told_at_once_and_without_secrets(
    root: str, proxy: Proxy, weed: Weed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-key")
    store = open_store(root)
    for ask in (lambda: store.get("a"), lambda: store.put("a", b"x"), lambda: store.list()):
        proxy.reset()
        with pytest.raises(StoreError, match=r"^cannot \w+ .* in s3://") as caught:
            ask()
        assert len(proxy.requests) == 1
        assert not isinstance(caught.value, ObjectMissing | ObjectExists)
        for secret in ("not-the-secret-key", weed.access_key):
            assert secret not in str(caught.value)


def test_a_missing_bucket_is_no_missing_object(root: str, proxy: Proxy) -> None:
    store = open_store("s3://no-such-bucket/x")
    for ask in (lambda: store.get("a"), lambda: store.put("a", b"x"), lambda: store.list()):
        with pytest.raises(StoreError, match="bucket does not exist") as caught:
            ask()
        assert not isinstance(caught.value, ObjectMissing)


def test_no_credentials_are_one_clear_line(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match=r"^cannot read a in .*: Unable to locate credentials$"):
        open_store(root).get("a")


def test_credentials_may_come_from_options_or_files(
    root: str, weed: Weed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(variable)
    options = {"key": weed.access_key, "secret": weed.secret_key, "endpoint_url": weed.endpoint}
    open_store(root, storage_options=options).put("a", b"x")
    (tmp_path / "keys").write_text(
        f"[default]\naws_access_key_id = {weed.access_key}\naws_secret_access_key = {weed.secret_key}\n"
    )
    (tmp_path / "config").write_text(f"[default]\nendpoint_url = {weed.endpoint}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert open_store(root).get("a") == b"x"
