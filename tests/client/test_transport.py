from __future__ import annotations

import json

import pytest

import nvpstore
from nvpstore.client import connecting, failures, transport
from nvpstore.errors import (
    AccessDenied,
    NotFound,
    NvpError,
    QueryError,
    RouteError,
    ServiceError,
    UsageError,
)
from tests.client.proxy import Fault, Proxy
from tests.serving import Serving

KEY = "nvp_0123abcd_" + "s" * 40
UNAVAILABLE = Fault(status=503, headers={"Retry-After": "0"}, body=b"later")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_LONGEST_PAUSE_SECONDS", 0.05)


class TestConnecting:
    def test_asks_nothing_yet(self) -> None:
        assert nvpstore.connect("http://127.0.0.1:1").url == "http://127.0.0.1:1"

    @pytest.mark.parametrize(
        "url", ["ftp://host", "host:8000", "http://", "http://host/?a=1", "http://host/#x", "http://host:x"]
    )
    def test_refuses_what_is_no_address(self, url: str) -> None:
        with pytest.raises(UsageError, match="no server's address"):
            nvpstore.connect(url)

    def test_refuses_a_password_in_the_address_without_repeating_it(self) -> None:
        with pytest.raises(UsageError, match="give a key instead") as caught:
            nvpstore.connect("http://me:hush@host")
        assert "hush" not in str(caught.value)

    def test_refuses_a_malformed_key_without_repeating_it(self) -> None:
        with pytest.raises(UsageError, match="malformed") as caught:
            nvpstore.connect("http://host", key="two\r\nlines")
        assert "lines" not in str(caught.value)

    def test_takes_the_key_of_the_environment(self, served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(connecting.KEY_VARIABLE, KEY)
        with Proxy(served.url) as proxy:
            nvpstore.connect(proxy.url).tasks()
        assert proxy.seen[0].headers["Authorization"] == f"Bearer {KEY}"

    def test_shows_no_key(self) -> None:
        archive = nvpstore.connect("http://host", key=KEY)
        assert KEY not in repr(archive) + repr(archive._transport)

    def test_a_server_under_a_path_is_reached(self, served: Serving) -> None:
        missing = Fault(status=404, body=b"{}")
        with Proxy(served.url, missing) as proxy, pytest.raises(NotFound):
            nvpstore.connect(f"{proxy.url}/behind/a/proxy/").tasks()
        assert proxy.seen[0].path == "/behind/a/proxy/v1/tasks"


class TestErrors:
    def test_every_named_error_comes_back_as_itself(self) -> None:
        for name, kind in failures._BY_NAME.items():
            error = failures.error_of({"error": name, "detail": "so"}, status=500)
            assert type(error) is kind
            assert str(error) == "so"

    @pytest.mark.parametrize(
        ("status", "kind"),
        [(401, AccessDenied), (403, AccessDenied), (404, NotFound), (413, UsageError), (500, ServiceError)],
    )
    def test_unnamed_ones_follow_from_the_status(self, status: int, kind: type[NvpError]) -> None:
        assert type(failures.error_of({"detail": "so"}, status=status)) is kind

    def test_an_unnamed_wrong_query_is_a_query_error(self) -> None:
        assert type(failures.error_of({"detail": "so"}, status=422, query=True)) is QueryError

    def test_a_name_that_is_no_error_is_not_called(self) -> None:
        assert type(failures.error_of({"error": "annotations", "detail": "so"}, status=404)) is NotFound

    def test_the_server_s_words_are_kept(self, served: Serving) -> None:
        with pytest.raises(NotFound, match="no-such-video"):
            nvpstore.connect(served.url).show("no-such-video")

    def test_a_query_s_error_is_the_local_one(self, served: Serving) -> None:
        archive = nvpstore.connect(served.url)
        with pytest.raises(QueryError, match="nothing_there"):
            archive.sql("SELECT * FROM nothing_there").arrow()
        with pytest.raises(RouteError):
            archive.sql("SELECT * FROM labels(route := 'adapter')").arrow()

    def test_a_server_that_is_not_there_is_named(self) -> None:
        with pytest.raises(ServiceError, match=r"127\.0\.0\.1:1 cannot be reached"):
            nvpstore.connect("http://127.0.0.1:1").videos()

    def test_another_kind_of_server_is_told_apart(self, served: Serving) -> None:
        page = Fault(status=200, headers={"Content-Type": "text/html"}, body=b"<html>")
        with Proxy(served.url, page) as proxy, pytest.raises(ServiceError, match="is it nvpstore"):
            nvpstore.connect(proxy.url).tasks()


class TestTryingAgain:
    def test_reads_are_tried_again(self, served: Serving) -> None:
        with Proxy(served.url, UNAVAILABLE, UNAVAILABLE) as proxy:
            assert nvpstore.connect(proxy.url).tasks()
        assert len(proxy.seen) == 3

    def test_as_often_as_may_be(self, served: Serving) -> None:
        with Proxy(served.url, *[UNAVAILABLE] * 20) as proxy, pytest.raises(ServiceError):
            nvpstore.connect(proxy.url).tasks()
        assert len(proxy.seen) == transport._ATTEMPTS

    def test_an_answer_that_breaks_off_is_asked_for_again(self, served: Serving) -> None:
        with Proxy(served.url, Fault(cut_after=5)) as proxy:
            assert nvpstore.connect(proxy.url).tasks()
        assert len(proxy.seen) == 2

    def test_changes_are_not_tried_again(self, served: Serving) -> None:
        with Proxy(served.url, UNAVAILABLE) as proxy, pytest.raises(ServiceError):
            nvpstore.connect(proxy.url).fit("golden.mp4")
        assert len(proxy.seen) == 1

    def test_what_is_wrong_is_not_tried_again(self, served: Serving) -> None:
        with Proxy(served.url) as proxy, pytest.raises(NotFound):
            nvpstore.connect(proxy.url).show("nothing")
        assert len(proxy.seen) == 1

    def test_a_proxy_s_own_time_limit_does_not_repeat_a_query(self, served: Serving) -> None:
        late = Fault(status=504, body=b"gateway timeout")
        with Proxy(served.url, late) as proxy, pytest.raises(ServiceError):
            nvpstore.connect(proxy.url).sql("SELECT 1").arrow()
        assert len(proxy.seen) == 1

    def test_a_pause_that_the_server_asks_for_is_bounded(self, served: Serving) -> None:
        for_ever = Fault(status=429, headers={"Retry-After": "86400"})
        with Proxy(served.url, for_ever) as proxy:
            assert nvpstore.connect(proxy.url).tasks()


class TestRedirects:
    def test_the_key_goes_to_no_other_host(self, served: Serving) -> None:
        with Proxy(served.url) as other:
            elsewhere = Fault(status=307, headers={"Location": f"{other.url}/v1/tasks"})
            with Proxy(served.url, elsewhere) as proxy:
                assert nvpstore.connect(proxy.url, key=KEY).tasks()
        assert "Authorization" in proxy.seen[0].headers
        assert "Authorization" not in other.seen[0].headers

    def test_within_the_host_it_does(self, served: Serving) -> None:
        there = Fault(status=307, headers={"Location": "/v1/tasks?available=true"})
        with Proxy(served.url, there) as proxy:
            nvpstore.connect(proxy.url, key=KEY).tasks()
        assert [seen.headers["Authorization"] for seen in proxy.seen] == [f"Bearer {KEY}"] * 2


def test_a_huge_problem_is_not_read_to_its_end(served: Serving) -> None:
    body = json.dumps({"detail": "x" * 10_000_000}).encode()
    with Proxy(served.url, Fault(status=400, body=body)) as proxy, pytest.raises(UsageError) as caught:
        nvpstore.connect(proxy.url).tasks()
    assert len(str(caught.value)) < 1000
