"""Rates: who asks too often is told when to come back, and nobody else notices."""

from __future__ import annotations

import pytest

from nvpstore.api.auth import rates
from nvpstore.api.auth.rates import Rates
from nvpstore.errors import UsageError


def test_requests_are_allowed_until_the_limit() -> None:
    limit = Rates("3/hour")
    allowed = [limit.request("a").allowed for _ in range(5)]
    assert allowed == [True, True, True, False, False]


def test_keys_do_not_use_up_each_other() -> None:
    limit = Rates("1/hour")
    assert limit.request("a").allowed
    assert limit.request("b").allowed
    assert not limit.request("a").allowed


def test_requests_and_failures_are_counted_apart() -> None:
    limit = Rates("1/hour", failures="1/hour")
    assert limit.request("10.0.0.1").allowed
    assert limit.failure("10.0.0.1").allowed


def test_headers_say_the_policy_and_what_is_left() -> None:
    headers = Rates("3/hour").request("a").headers()
    assert headers["RateLimit-Policy"] == '"requests";q=3;w=3600'
    assert headers["RateLimit"].startswith('"requests";r=2;t=')
    assert "Retry-After" not in headers


def test_a_refusal_says_when_to_come_back() -> None:
    limit = Rates("1/hour")
    limit.request("a")
    refused = limit.request("a")
    assert not refused.allowed
    assert 3590 <= int(refused.headers()["Retry-After"]) <= 3600
    assert refused.remaining == 0


def test_all_addresses_of_an_ipv6_host_count_as_one() -> None:
    limit = Rates("1/hour", failures="1/hour")
    assert limit.failure("2001:db8:0:1::1").allowed
    assert not limit.failure("2001:db8:0:1:ffff::2").allowed
    assert limit.failure("2001:db8:0:2::1").allowed


def test_ipv4_addresses_and_names_count_for_themselves() -> None:
    limit = Rates("1/hour", failures="1/hour")
    assert all(
        limit.failure(who).allowed for who in ("10.0.0.1", "10.0.0.2", "::ffff:10.0.0.3", "testclient")
    )


def test_what_is_remembered_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MOST_REMEMBERED", 10)
    limit = Rates("1/hour", failures="1/hour")
    for number in range(100):
        limit.failure(f"10.0.0.{number}")
    assert len(limit._storage.events) <= 12


@pytest.mark.parametrize("text", ["", "often", "10", "10/fortnight", "-1/minute"])
def test_a_malformed_rate_names_its_variable(text: str) -> None:
    with pytest.raises(UsageError, match="NVP_RATE_LIMIT"):
        Rates(text)
