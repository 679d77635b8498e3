from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvpstore.config import load_settings, parse_bytes
from nvpstore.errors import UsageError


def test_an_empty_environment_gives_usable_defaults() -> None:
    settings = load_settings({})
    assert settings.archive is None
    assert settings.threads >= 1
    assert settings.query_seconds is None
    assert settings.answers == "on"
    assert settings.cache_bytes == 10 * 10**9
    assert settings.cache_dir == Path.home() / ".cache" / "nvpstore"


def test_every_variable_is_read() -> None:
    settings = load_settings(
        {
            "NVP_ARCHIVE": "s3://bucket/prefix",
            "NVP_CACHE": "/var/cache/nvp",
            "NVP_CACHE_LIMIT": "40GiB",
            "NVP_MEMORY_LIMIT": "512MiB",
            "NVP_THREADS": "3",
            "NVP_QUERY_TIMEOUT": "2.5",
            "NVP_DEBUG": "1",
            "NVP_ANSWERS": "Read",
            "NVP_SHARING": "off",
            "NVP_CHECKPOINT": "2.5",
        }
    )
    assert settings.archive == "s3://bucket/prefix"
    assert settings.cache_dir == Path("/var/cache/nvp")
    assert settings.cache_bytes == 40 * 2**30
    assert settings.memory_bytes == 512 * 2**20
    assert settings.threads == 3
    assert settings.query_seconds == 2.5
    assert settings.debug
    assert settings.answers == "read"
    assert not settings.sharing
    assert settings.checkpoint_seconds == 2.5


def test_the_cache_follows_the_desktop_convention() -> None:
    assert load_settings({"XDG_CACHE_HOME": "/c"}).cache_dir == Path("/c/nvpstore")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NVP_CACHE_LIMIT", "-1"),
        ("NVP_MEMORY_LIMIT", "plenty"),
        ("NVP_MEMORY_LIMIT", "1MB"),
        ("NVP_MEMORY_LIMIT", "-1GB"),
        ("NVP_THREADS", "0"),
        ("NVP_THREADS", "two"),
        ("NVP_QUERY_TIMEOUT", "-1"),
        ("NVP_QUERY_TIMEOUT", "nan"),
        ("NVP_DEBUG", "maybe"),
        ("NVP_ANSWERS", "write"),
        ("NVP_SHARING", "some"),
        ("NVP_CHECKPOINT", "-1"),
    ],
)
def test_a_malformed_variable_is_named(variable: str, value: str) -> None:
    with pytest.raises(UsageError, match=variable):
        load_settings({variable: value})


@given(st.integers(0, 10**15))
def test_a_bare_number_is_bytes(count: int) -> None:
    # Beyond 2**53 a float would round; sizes below are exact.
    assert parse_bytes(str(count), name="x") == count
