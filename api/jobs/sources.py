"""Videos that are named by a URI: which ones this server may read, and how they come to it.

A name is judged by its text first (`permitted`), which asks nobody; then by where it really leads, when it is
read (`at_hand`): links are resolved, and hosts are looked up.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nvpstore.api.jobs import spool, web
from nvpstore.errors import ObjectMissing, SourceError, UsageError
from nvpstore.storage.objects import open_store
from nvpstore.upkeep import folders

WEB = ("http", "https")
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
SCHEMES = ("file", *STORES, *WEB)

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_NOT_IN_A_URI = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a URI points. `host` is a bucket for object stores, `name:port` on the web, empty for files.

    `path` is without its leading slash and as it is asked for, but for files, where it is the path. `named`:
    an operator has named this host, not just all of its kind.
    """

    scheme: str
    host: str
    path: str
    named: bool = True

    @property
    def uri(self) -> str:
        return f"{self.scheme}://{self.host}/{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AtHand:
    """A video as a local file. `uri` is where it can be found again, None where that is the file itself."""

    path: Path
    uri: str | None


def permitted(uri: str, roots: Sequence[str]) -> Place:
    """Where `uri` points. Raises UsageError unless it lies below one of the `roots`.

    Roots are folders, `file://…`, `s3://bucket/prefix`, `https://host/prefix`, or `https://` for all hosts
    with public addresses.
    """
    if not roots:
        raise UsageError("no videos are read from elsewhere here: upload them, or set NVP_INGEST_ROOTS")
    place = _place(uri)
    if any(part in (".", "..") for part in _decoded(place.path).split("/")):
        raise UsageError(f"{uri}: a path without . and .. is needed")
    if not place.path.rpartition("/")[2]:
        raise UsageError(f"{uri}: names a folder; the URI of one video is needed")
    below = [root for root in map(_place, roots) if _is_below(place, root)]
    if not below:
        raise UsageError(f"{uri}: lies below none of the places that videos are read from here")
    named = any(root.host for root in below)
    return Place(scheme=place.scheme, host=place.host, path=place.path, named=named)


@contextlib.contextmanager
def at_hand(
    uri: str,
    roots: Sequence[str],
    *,
    spool_dir: Path,
    most_bytes: int,
    resolve: web.Resolve = web.addresses_of,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[AtHand]:
    """The video at `uri` as a local file, fetched into `spool_dir` while it is needed where it is far away.

    `progress` gets the bytes fetched so far, and all of them (0 where that is not known). Raises UsageError
    where it may not be read, SourceError where it is not there or larger than `most_bytes`, StoreError where
    it cannot be fetched.
    """
    place = permitted(uri, roots)
    if place.scheme == "file":
        yield AtHand(path=_local_file(place, roots), uri=None)
        return
    with spool.room(spool_dir) as folder:
        if place.scheme in WEB:
            # No reference for later: whoever followed that would not look at the host again.
            path = web.fetch(
                place.uri,
                folder,
                most_bytes=most_bytes,
                named=place.named,
                resolve=resolve,
                progress=progress,
            )
            yield AtHand(path=path, uri=None)
            return
        with folders.at_hand(_object(place, folder, most_bytes=most_bytes), folder) as path:
            yield AtHand(path=path, uri=place.uri)


def _place(uri: str) -> Place:
    if _NOT_IN_A_URI.search(uri):
        raise UsageError(f"{uri!r}: a URI has no control characters and no \\")
    match = _SCHEME.match(uri)
    if match is None:
        if not uri.startswith("/"):
            raise UsageError(f"{uri!r}: an absolute path or a URI is needed, such as s3://bucket/clip.mp4")
        return Place(scheme="file", host="", path=uri)
    scheme, rest = match[1].lower(), uri[match.end() :]
    if scheme not in SCHEMES:
        raise UsageError(f"{uri}: {', '.join(SCHEMES)} are the schemes that videos are read by")
    host, _, path = rest.partition("/")
    if scheme in STORES and "::" in rest:
        raise UsageError(f"{uri}: a chain of file systems (::) is not allowed")
    if scheme == "file":
        if host not in ("", "localhost"):
            raise UsageError(f"{uri}: a file URI names no host, as in file:///folder/clip.mp4")
        return Place(scheme="file", host="", path="/" + unquote(path))
    return Place(scheme=scheme, host=_web_host(uri, scheme) if scheme in WEB else host, path=path)


def _web_host(uri: str, scheme: str) -> str:
    """`name:port`, in one spelling; empty where a root names none."""
    parts = urlsplit(uri)
    try:
        port = parts.port or {"http": 80, "https": 443}[scheme]
    except ValueError:
        raise UsageError(f"{uri}: its port is not a number up to 65535") from None
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise UsageError(f"{uri}: user names, passwords and fragments are not allowed")
    name = (parts.hostname or "").rstrip(".")
    if not name.isascii():
        raise UsageError(f"{uri}: its host is needed in ASCII (xn--…)")
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}" if name else ""


def _decoded(path: str) -> str:
    """As whoever decodes it, however often, may see it."""
    while (decoded := unquote(path)) != path:
        path = decoded
    return path


def _is_below(place: Place, root: Place) -> bool:
    if place.scheme != root.scheme:
        return False
    if not root.host and root.scheme != "file":
        # All hosts, but only where their kind of server answers.
        usual = {"http": ":80", "https": ":443"}
        return place.scheme in WEB and not root.path and place.host.endswith(usual[place.scheme])
    folder = root.path.rstrip("/") + "/" if root.path.strip("/") else root.path
    return place.host == root.host and place.path.startswith(folder)


def _local_file(place: Place, roots: Sequence[str]) -> Path:
    """The file itself, past all links, which may not lead out of the roots."""
    real = os.path.realpath(place.path)
    for root in map(_place, roots):
        if root.scheme == "file" and _is_below(place, root):
            folder = os.path.realpath(root.path).rstrip("/") + "/"
            if real.startswith(folder):
                return Path(real)
    raise UsageError(f"{place.path}: leads out of the folders that videos are read from here")


def _object(place: Place, folder: Path, *, most_bytes: int) -> folders.RemoteVideo:
    key_folder, _, name = place.path.rpartition("/")
    store = open_store(f"{place.scheme}://{place.host}/{key_folder}".rstrip("/"))
    video = folders.RemoteVideo(store=store, key=name)
    try:
        size_bytes = store.size(name)
    except ObjectMissing as cause:
        raise SourceError(f"{place.uri}: there is no such object") from cause
    if size_bytes > most_bytes:
        raise SourceError(f"{place.uri}: has {size_bytes} bytes; at most {most_bytes} are allowed")
    spool.check_free(folder, size_bytes)
    return video
