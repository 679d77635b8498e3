"""Objects on S3 and what speaks its language, through s3fs: in as few requests as can be."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from botocore.exceptions import ConnectionError as NoConnection
from botocore.exceptions import FlexibleChecksumError, HTTPClientError, SSLError
from s3fs.core import S3_RETRYABLE_ERRORS

from nvpstore.errors import StoreError
from nvpstore.storage.contract import check_key, check_length, describe, opened_source, pieces, taken
from nvpstore.storage.remote import RemoteStore
from nvpstore.types import StoredObject

CONNECT_SECONDS = 5.0
READ_SECONDS = 20.0  # without a byte; a long answer may take longer
CONNECTIONS = 32

# Files from this size go up in parts, which are repeated on their own; S3 takes at most 10,000 of them.
MULTIPART_FROM_BYTES = 32 * 2**20
PART_BYTES = 8 * 2**20
_MOST_PARTS = 10_000
_PARTS_AT_ONCE = 4

_MOST_DELETES = 1000  # in one request

_PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
# Of these some come as 400 or 409: what arrived was damaged or late, not wrong.
_PASSING_CODES = frozenset(
    {
        "BadDigest", "ConditionalRequestConflict", "IncompleteBody", "InternalError", "OperationAborted",
        "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException",
        "XAmzContentSHA256Mismatch",
    }
)  # fmt: skip

_Part = Mapping[str, Any]  # what completing an upload needs of each part


class _ShortAnswer(ConnectionError):
    """A ranged read gave less than the object holds."""


class S3Store(RemoteStore):
    """A prefix of a bucket. Credentials and endpoint come from the options or by botocore's usual chain.

    Each operation is one request where all goes well: no look at the bucket, its region or a folder. Only
    this class repeats requests, so that no layers multiply.

    Puts use If-None-Match, which the server must honour: S3 does, also for uploads in parts. SeaweedFS 4.48
    lets several such uploads win that end in the same moment. No key of an archive that is written in parts
    is shared by two writers.
    """

    def _completed(self, options: dict[str, Any]) -> dict[str, Any]:
        config = {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "max_pool_connections": CONNECTIONS,
            "retries": {"mode": "standard", "total_max_attempts": 1},
        }
        config |= options.get("config_kwargs", {})
        # A file system that fsspec kept would have the credentials of when it was made.
        return super()._completed({"skip_instance_cache": True, **options, "config_kwargs": config})

    def _prepare(self, fs: Any) -> None:
        fs.retries = 1

    def _is_missing(self, error: Exception) -> bool:
        return super()._is_missing(error) and _code(_answer(error)) != "NoSuchBucket"

    def _is_transient(self, error: BaseException) -> bool:
        answer = _answer(error)
        if answer:
            return _status(answer) in _PASSING_STATUS or _code(answer) in _PASSING_CODES
        passing = (*S3_RETRYABLE_ERRORS, HTTPClientError, NoConnection, FlexibleChecksumError)
        return super()._is_transient(error) or (
            isinstance(error, passing) and not isinstance(error, SSLError)
        )

    # ------------------------------------------------------------ reading

    def get(self, key: str) -> bytes:
        path = self._path(key)
        # With more than one connection, s3fs would ask for the size first.
        return self._try("read", key, lambda: bytes(self._fs.cat_file(path, max_concurrency=1)))

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        if size_bytes == 0:
            self.size(key)
            return b""

        def read() -> bytes:
            data = self._range(key, offset, size_bytes)
            if len(data) < size_bytes and self._size(key) >= offset + size_bytes:
                raise _ShortAnswer(f"{size_bytes} bytes asked for at offset {offset}, {len(data)} came")
            return data

        data = self._try("read", key, read)
        return check_length(data, key=key, root=self.root, offset=offset, size_bytes=size_bytes)

    def size(self, key: str) -> int:
        return self._try("read", key, lambda: self._size(key))

    def list(self, prefix: str = "") -> list[str]:
        start = len(self._key(""))
        pages = self._pages("list", prefix, "list_objects_v2", {"ContinuationToken": "NextContinuationToken"})
        return sorted(found["Key"][start:] for page in pages for found in page.get("Contents", ()))

    # ------------------------------------------------------------ writing

    def put(self, key: str, data: bytes) -> StoredObject:
        name = self._key(check_key(key))

        def create() -> None:
            try:
                self._call("put_object", Key=name, Body=data, IfNoneMatch="*")
            except OSError as error:
                self._check_ours(error, key, io.BytesIO(data))

        self._try("write", key, create)
        return describe(key, data)

    def put_file(self, key: str, path: Path) -> StoredObject:
        with opened_source(path) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes < MULTIPART_FROM_BYTES:
                return self.put(key, file.read())
            return self._put_parts(key, file, part_bytes=max(PART_BYTES, -(-size_bytes // _MOST_PARTS)))

    def delete(self, key: str) -> None:
        name = self._key(check_key(key))
        self._try("delete", key, lambda: self._call("delete_object", Key=name))

    def delete_all(self, keys: Iterable[str]) -> None:
        names = [self._key(check_key(key)) for key in keys]
        for start in range(0, len(names), _MOST_DELETES):
            some = names[start : start + _MOST_DELETES]
            self._try("delete", f"{len(some)} objects", partial(self._delete_some, some))

    def sweep_unfinished(self, prefix: str = "", *, before: datetime) -> int:
        markers = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        pages = list(self._pages("sweep", prefix, "list_multipart_uploads", markers))
        old = [each for page in pages for each in page.get("Uploads", ()) if each["Initiated"] < before]
        for upload in old:
            self._abort(upload["Key"], upload["UploadId"])
        return len(old)

    # ------------------------------------------------------------ parts

    def _put_parts(self, key: str, file: BinaryIO, *, part_bytes: int) -> StoredObject:
        name = self._key(check_key(key))
        upload = self._try("write", key, lambda: self._call("create_multipart_upload", Key=name))["UploadId"]
        completed = False
        try:
            obj, parts = self._upload(key, upload, pieces(file, part_bytes))
            completed = self._try("write", key, lambda: self._complete(key, upload, parts, file))
            return obj
        finally:
            # What cannot be aborted now is swept later.
            if not completed:
                with contextlib.suppress(StoreError):
                    self._abort(name, upload)

    def _upload(self, key: str, upload: str, parts: Iterator[bytes]) -> tuple[StoredObject, Sequence[_Part]]:
        """Send all parts, a few at once; returns the whole, and what completing needs of each part."""

        def send(number: int, part: bytes) -> _Part:
            request = {"Key": self._key(key), "UploadId": upload, "PartNumber": number, "Body": part}
            answer = self._try("write", key, lambda: self._call("upload_part", **request))
            checksums = {field: value for field, value in answer.items() if field.startswith("Checksum")}
            return {"PartNumber": number, "ETag": answer["ETag"], **checksums}

        whole, size_bytes = hashlib.sha256(), 0
        sending: deque[Future[_Part]] = deque()
        sent = []
        with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
            for number, part in enumerate(parts, 1):
                # Only as many parts are in memory as are on their way.
                if len(sending) == _PARTS_AT_ONCE:
                    sent.append(sending.popleft().result())
                whole.update(part)
                size_bytes += len(part)
                sending.append(pool.submit(send, number, part))
            sent += [each.result() for each in sending]
        return StoredObject(key=key, size_bytes=size_bytes, sha256=whole.hexdigest()), sent

    def _complete(self, key: str, upload: str, parts: Sequence[_Part], file: BinaryIO) -> bool:
        """Make the parts one object; False if `key` holds these bytes already and the upload is left."""
        request = {"Key": self._key(key), "UploadId": upload, "MultipartUpload": {"Parts": parts}}
        try:
            self._call("complete_multipart_upload", **request, IfNoneMatch="*")
        except FileNotFoundError as error:
            # The upload is gone: completed by a request whose answer was lost, or swept.
            if not self._holds(key, file):
                raise StoreError(f"cannot write {key} in {self.root}: its upload was removed") from error
        except OSError as error:
            self._check_ours(error, key, file)
            return False
        return True

    def _abort(self, name: str, upload: str) -> None:
        def abort() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._call("abort_multipart_upload", Key=name, UploadId=upload)

        self._try("abort the upload of", name, abort)

    # ------------------------------------------------------------ single requests

    def _call(self, method: str, **request: Any) -> dict[str, Any]:
        answer = self._fs.call_s3(method, Bucket=self._bucket, **request)
        return dict(answer)

    def _pages(
        self, verb: str, prefix: str, method: str, markers: Mapping[str, str]
    ) -> Iterator[dict[str, Any]]:
        """All pages of a listing. `markers`: fields of a request, and of the answer that fills them next."""
        request: dict[str, Any] = {"Prefix": self._key(prefix)}
        while True:
            page = self._try(verb, prefix or "all objects", partial(self._call, method, **request))
            yield page
            if not page.get("IsTruncated"):
                return
            request |= {field: page[source] for field, source in markers.items() if page.get(source)}

    def _range(self, key: str, offset: int, size_bytes: int) -> bytes:
        try:
            return bytes(self._fs.cat_file(self._path(key), start=offset, end=offset + size_bytes))
        except OSError as error:
            # Behind the end there is an error, not nothing.
            if _status(_answer(error)) == 416:
                return b""
            raise

    def _size(self, key: str) -> int:
        return int(self._call("head_object", Key=self._key(check_key(key)))["ContentLength"])

    def _delete_some(self, names: Sequence[str]) -> None:
        objects = [{"Key": name} for name in names]
        answer = self._call("delete_objects", Delete={"Objects": objects, "Quiet": True})
        failed = [each for each in answer.get("Errors", ()) if each.get("Code") != "NoSuchKey"]
        if failed:
            message = f"{failed[0]['Key']}: {failed[0].get('Message') or failed[0].get('Code')}"
            passing = all(each.get("Code") in _PASSING_CODES for each in failed)
            raise ConnectionError(message) if passing else OSError(message)

    # ------------------------------------------------------------ keys already taken

    def _check_ours(self, error: OSError, key: str, file: BinaryIO) -> None:
        """Nothing if `error` says that `key` is taken, and it is by these bytes: an earlier answer was lost.

        Raises ObjectExists where it holds other bytes, and else `error`.
        """
        if not isinstance(error, FileExistsError) and _status(_answer(error)) != 412:
            raise error
        if not self._holds(key, file):
            raise taken(key, root=self.root) from None

    def _holds(self, key: str, file: BinaryIO) -> bool:
        """Whether `key` holds the file's bytes and no more; one request for each piece of it."""
        file.seek(0, os.SEEK_END)
        size_bytes, offset = file.tell(), 0
        try:
            for piece in pieces(file):
                offset += len(piece)
                # A byte more than ours at the end shows a longer object.
                more = 1 if offset == size_bytes else 0
                if self._range(key, offset - len(piece), len(piece) + more) != piece:
                    return False
            return size_bytes > 0 or self._range(key, 0, 1) == b""
        except FileNotFoundError:
            return False

    # ------------------------------------------------------------ names

    @property
    def _bucket(self) -> str:
        return self._base.partition("/")[0]

    def _key(self, key: str) -> str:
        """The key in the bucket, or the prefix, of one under the root."""
        folder = self._base.partition("/")[2]
        return f"{folder}/{key}" if folder else key

    def _path(self, key: str) -> str:
        return f"{self._base}/{check_key(key)}"


def _answer(error: BaseException | None) -> dict[str, Any]:
    """What the server said, where `error` comes of an answer of its; s3fs chains it below its own errors."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response
        error = error.__cause__
    return {}


def _status(answer: Mapping[str, Any]) -> int:
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(answer: Mapping[str, Any]) -> str:
    return str(answer.get("Error", {}).get("Code", ""))
