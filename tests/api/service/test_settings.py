"""What an operator may set: each variable read, and malformed ones named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nvpstore.api.service.settings import VARIABLES, ServiceSettings, load_service_settings
from nvpstore.errors import UsageError


def test_defaults_need_no_environment(tmp_path: Path) -> None:
    settings = load_service_settings({"XDG_STATE_HOME": str(tmp_path)})
    assert settings == ServiceSettings(state_dir=tmp_path / "nvpstore")
    assert settings.spool_dir == tmp_path / "nvpstore" / "uploads"


def test_every_variable_is_read() -> None:
    settings = load_service_settings(
        {
            "NVP_STATE": "/var/lib/nvp",
            "NVP_WORKERS": "0",
            "NVP_WORKER_MEMORY": "4GiB",
            "NVP_INGEST_ROOTS": "/footage  s3://bucket/in/",
            "NVP_UPLOAD_LIMIT": "2GB",
            "NVP_UPLOAD_DURATION": "90.5",
            "NVP_UPLOAD_STALL": "12",
            "NVP_UPLOAD_PIXELS": "1000000",
            "NVP_CLIP_CACHE": "0",
            "NVP_QUEUE_LIMIT": "7",
            "NVP_RATE_LIMIT": "10/second",
            "NVP_QUERIES_AT_ONCE": "3",
            "NVP_HOSTS": "nvp.example other.example",
            "NVP_SHUTDOWN_GRACE": "5",
        }
    )
    assert settings == ServiceSettings(
        state_dir=Path("/var/lib/nvp"),
        workers=0,
        worker_bytes=4 << 30,
        roots=("/footage", "s3://bucket/in/"),
        upload_bytes=2 * 10**9,
        upload_seconds=90.5,
        stall_seconds=12.0,
        clip_bytes=0,
        pixels=1_000_000,
        waiting_jobs=7,
        rate="10/second",
        queries_at_once=3,
        hosts=("nvp.example", "other.example"),
        grace_seconds=5,
    )


def test_every_setting_has_a_variable() -> None:
    assert {field.name for field in dataclasses.fields(ServiceSettings) if field.init} == set(VARIABLES)


@pytest.mark.parametrize(("variable", "text"), [
    ("NVP_WORKERS", "-1"), ("NVP_WORKERS", "many"), ("NVP_UPLOAD_LIMIT", "0"), ("NVP_UPLOAD_LIMIT", "much"),
    ("NVP_UPLOAD_DURATION", "nan"), ("NVP_UPLOAD_DURATION", "-5"), ("NVP_UPLOAD_PIXELS", "0"),
    ("NVP_WORKER_MEMORY", "1MB"),
    ("NVP_UPLOAD_STALL", "0"),
    ("NVP_QUEUE_LIMIT", "1.5"),
    ("NVP_QUERIES_AT_ONCE", "0"),
    ("NVP_SHUTDOWN_GRACE", "0"),
])  # fmt: skip
def test_malformed_variables_are_named(variable: str, text: str) -> None:
    with pytest.raises(UsageError, match=variable):
        load_service_settings({variable: text, "NVP_STATE": "/tmp/x"})


def test_each_archive_has_a_folder_of_its_own(tmp_path: Path) -> None:
    settings = ServiceSettings(state_dir=tmp_path).of_archive("01A")
    assert settings.state_dir == tmp_path / "01A"
    assert settings.spool_dir == tmp_path / "01A" / "uploads"
