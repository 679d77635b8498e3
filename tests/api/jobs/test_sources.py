"""Which places a server reads videos from: by their text, past links, through hosts that were looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import fsspec
import pytest

from nvpstore.api.jobs import sources, spool
from nvpstore.api.jobs.sources import at_hand, permitted
from nvpstore.errors import SourceError, StoreError, UsageError

ROOTS = ("/data/videos", "s3://bucket/cameras", "https://films.example/public", "https://")
MOST_BYTES = 10**6


def never(host: str, port: int) -> Sequence[str]:
    raise AssertionError(f"{host} was looked up")


class TestText:
    @pytest.mark.parametrize(
        ("uri", "scheme", "host", "path"),
        [
            ("/data/videos/clip.mp4", "file", "", "/data/videos/clip.mp4"),
            ("/data/videos/a/b/clip.mp4", "file", "", "/data/videos/a/b/clip.mp4"),
            ("file:///data/videos/a%20b.mp4", "file", "", "/data/videos/a b.mp4"),
            ("file://localhost/data/videos/x", "file", "", "/data/videos/x"),
            ("s3://bucket/cameras/gate/clip.mp4", "s3", "bucket", "cameras/gate/clip.mp4"),
            ("S3://bucket/cameras/a%20b", "s3", "bucket", "cameras/a%20b"),
            ("https://films.example/public/x", "https", "films.example:443", "public/x"),
            ("https://FILMS.example:443/public/x?token=1", "https", "films.example:443", "public/x?token=1"),
            ("https://elsewhere.example./x", "https", "elsewhere.example:443", "x"),
            ("https://[2001:db8::1]/x", "https", "[2001:db8::1]:443", "x"),
        ],
    )
    def test_what_lies_below_a_root_may_be_read(self, uri: str, scheme: str, host: str, path: str) -> None:
        place = permitted(uri, ROOTS)
        assert (place.scheme, place.host, place.path) == (scheme, host, path)

    @pytest.mark.parametrize(
        "uri",
        [
            "/etc/passwd",
            "/data/videos2/clip.mp4",
            "/data",
            "file:///etc/passwd",
            "s3://bucket/clip.mp4",
            "s3://bucket/cameras2/clip.mp4",
            "s3://other/cameras/clip.mp4",
            "s3a://bucket/cameras/clip.mp4",
            "http://films.example/public/clip.mp4",
            "https://films.example:8443/public/clip.mp4",
            "https://elsewhere.example:22/clip.mp4",
        ],
    )
    def test_what_does_not_is_refused(self, uri: str) -> None:
        with pytest.raises(UsageError, match="lies below none"):
            permitted(uri, ROOTS)

    @pytest.mark.parametrize(
        "uri",
        [
            "/data/videos/../secret.mp4",
            "/data/videos/a/../../secret.mp4",
            "/data/videos/./clip.mp4",
            "file:///data/videos/%2e%2e/secret.mp4",
            "file:///data/videos/%252e%252e/secret.mp4",
            "s3://bucket/cameras/../secret.mp4",
            "https://films.example/public/../secret.mp4",
            "https://films.example/public/%2e%2e%2fsecret.mp4",
            "https://films.example/public/%252E%252E/secret.mp4",
        ],
    )
    def test_no_path_leads_upwards(self, uri: str) -> None:
        with pytest.raises(UsageError, match=r"without \. and \.\."):
            permitted(uri, ROOTS)

    @pytest.mark.parametrize(
        ("uri", "said"),
        [
            ("clip.mp4", "absolute path or a URI"),
            ("~/clip.mp4", "absolute path or a URI"),
            ("", "absolute path or a URI"),
            ("/data/videos/clip\x00.mp4", "control characters"),
            ("https://films.example/public/a\r\nHost: b", "control characters"),
            ("https://films.example\\@evil.example/public/x", "control characters"),
            ("https://user:password@films.example/public/x", "user names"),
            ("https://films.example/public/x#y", "fragments"),
            ("https://films.example:99999/public/x", "port"),
            ("https://bücher.example/x", "ASCII"),
            ("file://host/data/videos/x", "names no host"),
            ("s3://bucket/cameras/x::https://evil.example/y", "chain"),
            ("ftp://host/x", "the schemes"),
            ("memory://x/y", "the schemes"),
            ("gopher://host/x", "the schemes"),
            ("/data/videos/", "names a folder"),
            ("s3://bucket/cameras/", "names a folder"),
            ("https://films.example", "names a folder"),
        ],
    )
    def test_what_is_no_place_at_all_is_refused(self, uri: str, said: str) -> None:
        with pytest.raises(UsageError, match=said):
            permitted(uri, ROOTS)

    def test_without_roots_there_are_uploads_only(self) -> None:
        with pytest.raises(UsageError, match="NVP_INGEST_ROOTS"):
            permitted("/data/videos/clip.mp4", ())

    def test_a_root_of_all_hosts_names_none_of_them(self) -> None:
        assert permitted("https://films.example/public/x", ROOTS).named
        assert not permitted("https://films.example/other/x", ROOTS).named
        assert not permitted("https://10.0.0.1/x", ROOTS).named


class TestFiles:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        root = tmp_path / "videos"
        (root / "inner").mkdir(parents=True)
        (root / "inner" / "clip.mp4").write_bytes(b"video")
        (tmp_path / "secret.mp4").write_bytes(b"secret")
        return root

    def read(self, uri: str, roots: Sequence[str], tmp_path: Path) -> bytes:
        spool_dir = tmp_path / "spool"
        with at_hand(uri, roots, spool_dir=spool_dir, most_bytes=MOST_BYTES, resolve=never) as found:
            return found.path.read_bytes()

    @pytest.mark.parametrize(
        "spelled", ["{}/inner/clip.mp4", "file://{}/inner/clip.mp4", "{}//inner//clip.mp4"]
    )
    def test_a_file_is_read_where_it_is(self, root: Path, tmp_path: Path, spelled: str) -> None:
        for roots in ([str(root)], [f"{root}/"], [root.as_uri()]):
            assert self.read(spelled.format(root), roots, tmp_path) == b"video"
        assert not (tmp_path / "spool").exists()

    def test_no_link_leads_out(self, root: Path, tmp_path: Path) -> None:
        (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
        (root / "folder").symlink_to(tmp_path)
        for name in ("link.mp4", "folder/secret.mp4"):
            with pytest.raises(UsageError, match="leads out"):
                self.read(f"{root}/{name}", [str(root)], tmp_path)

    def test_links_within_are_followed(self, root: Path, tmp_path: Path) -> None:
        (root / "link.mp4").symlink_to(root / "inner" / "clip.mp4")
        assert self.read(f"{root}/link.mp4", [str(root)], tmp_path) == b"video"

    def test_a_root_may_itself_be_a_link(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "mounted").symlink_to(root)
        uri = f"{tmp_path}/mounted/inner/clip.mp4"
        assert self.read(uri, [f"{tmp_path}/mounted"], tmp_path) == b"video"

    def test_a_link_into_another_root_is_refused(self, root: Path, tmp_path: Path) -> None:
        # Whoever may read below one of them was told so; where it leads, nobody was.
        (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
        with pytest.raises(UsageError, match="leads out"):
            self.read(f"{root}/link.mp4", [str(root), str(tmp_path / "other")], tmp_path)


class TestObjects:
    @pytest.fixture
    def bucket(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """An object store in this process's memory, which may be named here."""
        monkeypatch.setattr(sources, "STORES", (*sources.STORES, "memory"))
        monkeypatch.setattr(sources, "SCHEMES", (*sources.SCHEMES, "memory"))
        files = fsspec.filesystem("memory")
        files.pipe_file("/films/clip.mp4", b"video")
        files.pipe_file("/films/odd*name[1].mp4", b"odd")
        return "memory://films"

    def test_an_object_is_fetched_while_it_is_needed(self, bucket: str, tmp_path: Path) -> None:
        spool_dir = tmp_path / "spool"
        with at_hand(f"{bucket}/clip.mp4", [bucket], spool_dir=spool_dir, most_bytes=MOST_BYTES) as found:
            assert found.path.read_bytes() == b"video"
            assert spool_dir in found.path.parents
            assert found.uri == f"{bucket}/clip.mp4"
        assert list(spool_dir.iterdir()) == []

    def test_its_name_is_no_pattern(self, bucket: str, tmp_path: Path) -> None:
        uri = f"{bucket}/odd*name[1].mp4"
        with at_hand(uri, [bucket], spool_dir=tmp_path, most_bytes=MOST_BYTES) as found:
            assert found.path.read_bytes() == b"odd"

    def test_one_that_is_too_large_is_not_fetched(self, bucket: str, tmp_path: Path) -> None:
        with (
            pytest.raises(SourceError, match="has 5 bytes; at most 4 are allowed"),
            at_hand(f"{bucket}/clip.mp4", [bucket], spool_dir=tmp_path, most_bytes=4),
        ):
            pass
        assert list(tmp_path.iterdir()) == []

    def test_one_that_is_not_there_is_no_source(self, bucket: str, tmp_path: Path) -> None:
        with (
            pytest.raises(SourceError, match="there is no such object"),
            at_hand(f"{bucket}/other.mp4", [bucket], spool_dir=tmp_path, most_bytes=MOST_BYTES),
        ):
            pass

    def test_a_disk_without_room_is_not_filled(
        self, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(spool, "SPARE_BYTES", 2**62)
        with (
            pytest.raises(StoreError, match="the disk is full"),
            at_hand(f"{bucket}/clip.mp4", [bucket], spool_dir=tmp_path, most_bytes=MOST_BYTES),
        ):
            pass
