"""Who is let in: with which key, for what, how often, and from where."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from nvpstore.api.auth.keys import SCOPES, Scope
from nvpstore.api.auth.rates import Rates
from tests.api.service.small import bearer, service_behind, small_app, small_client, small_service

VIDEO = "/v1/videos/abc"


@pytest.fixture
def locked(tmp_path: Path) -> TestClient:
    """A server that others can reach."""
    return small_client(tmp_path, loopback=False)


class TestKeys:
    def test_a_key_with_the_scope_comes_in(self, locked: TestClient) -> None:
        headers = bearer(service_behind(locked), "read")
        answer = locked.get(VIDEO, headers=headers)
        assert answer.status_code == 200
        assert answer.json()["caller"] == service_behind(locked).keys.keys()[0].id

    def test_without_a_key_it_says_how(self, locked: TestClient) -> None:
        answer = locked.get(VIDEO)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="nvpstore"'
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert "Authorization: Bearer" in answer.json()["detail"]

    @pytest.mark.parametrize("value", [
        "", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "nvp_00000000_" + "0" * 64,
        "Bearer nvp_00000000_" + "0" * 64, "Bearer " + "x" * 10_000, "Bearer nvp_00000000_' OR '1'='1",
    ])  # fmt: skip
    def test_malformed_and_unknown_keys_are_refused(self, locked: TestClient, value: str) -> None:
        answer = locked.get(VIDEO, headers={"Authorization": value})
        assert answer.status_code == 401
        assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]

    def test_bytes_that_are_no_text_are_refused(self, locked: TestClient) -> None:
        answer = locked.get(VIDEO, headers=[(b"Authorization", b"Bearer nvp_\xff\xfe")])
        assert answer.status_code == 401

    def test_two_keys_are_refused_even_if_one_is_good(self, locked: TestClient) -> None:
        good = bearer(service_behind(locked), "admin")["Authorization"]
        for other in ("Bearer x", good):
            answer = locked.get(VIDEO, headers=[("Authorization", good), ("Authorization", other)])
            assert answer.status_code == 401

    def test_a_key_in_the_url_is_ignored(self, locked: TestClient) -> None:
        secret = bearer(service_behind(locked), "admin")["Authorization"].removeprefix("Bearer ")
        for name in ("key", "api_key", "access_token", "authorization"):
            assert locked.get(VIDEO, params={name: secret}).status_code == 401
        assert locked.get(VIDEO, headers={"Cookie": f"key={secret}"}).status_code == 401

    def test_the_word_bearer_has_no_case(self, locked: TestClient) -> None:
        secret = bearer(service_behind(locked), "read")["Authorization"].removeprefix("Bearer ")
        assert locked.get(VIDEO, headers={"Authorization": f"bearer {secret}"}).status_code == 200

    def test_revoked_and_expired_keys_stop_at_once(self, locked: TestClient) -> None:
        service = service_behind(locked)
        headers = bearer(service, "read")
        short = bearer(service, "read", expires_at=time.time() + 0.2)
        assert locked.get(VIDEO, headers=headers).status_code == 200
        service.keys.revoke(service.keys.keys()[0].id)
        assert locked.get(VIDEO, headers=headers).status_code == 401
        time.sleep(0.25)
        assert locked.get(VIDEO, headers=short).status_code == 401


class TestScopes:
    @pytest.mark.parametrize("scope", SCOPES)
    def test_each_opens_its_own_routes_only(self, locked: TestClient, scope: Scope) -> None:
        headers = bearer(service_behind(locked), scope)
        asked = {
            "read": locked.get(VIDEO, headers=headers),
            "query": locked.post("/v1/query", json={"words": []}, headers=headers),
            "ingest": locked.post("/v1/videos", content=b"x", headers=headers),
            "admin": locked.delete(VIDEO, headers=headers),
        }
        opened = {name for name, answer in asked.items() if answer.status_code == 200}
        assert opened == (set(SCOPES) if scope == "admin" else {scope})

    def test_a_refusal_names_the_scope(self, locked: TestClient) -> None:
        answer = locked.delete(VIDEO, headers=bearer(service_behind(locked), "read", "query"))
        assert answer.status_code == 403
        assert 'error="insufficient_scope", scope="admin"' in answer.headers["WWW-Authenticate"]
        assert "'admin'" in answer.json()["detail"]

    def test_the_description_tells_of_keys(self, locked: TestClient) -> None:
        described = locked.get("/openapi.json").json()
        assert described["components"]["securitySchemes"]["key"] == {
            "type": "http",
            "scheme": "bearer",
            "description": described["components"]["securitySchemes"]["key"]["description"],
        }
        assert described["paths"]["/v1/videos/{video_id}"]["get"]["security"] == [{"key": []}]


class TestLoopback:
    def test_without_keys_none_is_needed(self, tmp_path: Path) -> None:
        answer = small_client(tmp_path).delete(VIDEO)
        assert (answer.status_code, answer.json()["caller"]) == (200, "local")

    def test_once_there_is_a_key_one_is_needed(self, tmp_path: Path) -> None:
        client = small_client(tmp_path)
        headers = bearer(service_behind(client), "read")
        assert client.get(VIDEO).status_code == 401
        assert client.get(VIDEO, headers=headers).status_code == 200

    def test_revoking_the_last_key_does_not_open_the_door(self, tmp_path: Path) -> None:
        client = small_client(tmp_path)
        keys = service_behind(client).keys
        keys.revoke(keys.add("test", ["read"])[0].id)
        assert client.get(VIDEO).status_code == 401

    @pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Forwarded-Host"])
    def test_what_a_proxy_passes_on_needs_a_key(self, tmp_path: Path, name: str) -> None:
        client = small_client(tmp_path)
        assert client.get(VIDEO, headers={name: "127.0.0.1"}).status_code == 401
        assert client.get("/metrics", headers={name: "127.0.0.1"}).status_code == 401

    def test_off_loopback_a_key_is_needed_although_there_is_none(self, locked: TestClient) -> None:
        assert locked.get(VIDEO).status_code == 401

    def test_a_header_does_not_make_a_caller_local(self, locked: TestClient) -> None:
        for name in ("X-Forwarded-For", "X-Real-IP", "Forwarded", "Host"):
            assert locked.get(VIDEO, headers={name: "127.0.0.1"}).status_code == 401


class TestRates:
    def test_a_key_that_asks_too_often_waits(self, tmp_path: Path) -> None:
        client = small_client(tmp_path, loopback=False, rate="2/hour")
        one, other = bearer(service_behind(client), "read"), bearer(service_behind(client), "read")
        first = client.get(VIDEO, headers=one)
        assert first.headers["RateLimit"].startswith('"requests";r=1;')
        client.get(VIDEO, headers=one)
        refused = client.get(VIDEO, headers=one)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) > 3500
        assert refused.headers["RateLimit-Policy"] == '"requests";q=2;w=3600'
        assert client.get(VIDEO, headers=other).status_code == 200

    def test_wrong_keys_of_an_address_are_slowed_down_but_good_ones_are_not(self, tmp_path: Path) -> None:
        service = small_service(tmp_path, loopback=False)
        object.__setattr__(service, "rates", Rates("100/hour", failures="3/hour"))
        client = TestClient(small_app(service))
        good = bearer(service, "read")
        wrong = {"Authorization": "Bearer nvp_00000000_" + "0" * 64}
        assert [client.get(VIDEO, headers=wrong).status_code for _ in range(5)] == [401] * 3 + [429] * 2
        forged = {**wrong, "X-Forwarded-For": "203.0.113.9"}
        refused = client.get(VIDEO, headers=forged)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) > 0
        assert client.get(VIDEO, headers=good).status_code == 200

    def test_to_ask_without_any_key_is_no_wrong_key(self, tmp_path: Path) -> None:
        service = small_service(tmp_path, loopback=False)
        object.__setattr__(service, "rates", Rates("100/hour", failures="1/hour"))
        client = TestClient(small_app(service))
        assert [client.get(VIDEO).status_code for _ in range(4)] == [401] * 4

    def test_where_no_key_is_needed_nothing_is_counted(self, tmp_path: Path) -> None:
        client = small_client(tmp_path, rate="1/hour")
        assert [client.get(VIDEO).status_code for _ in range(4)] == [200] * 4
