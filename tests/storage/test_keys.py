"""Keys: built and parsed by one table, and nothing else passes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvpstore.errors import UsageError
from nvpstore.storage import keys

VIDEO, HEX = "0af1" * 8, "0123456789abcdef" * 4
ATTEMPT = keys.new_attempt()


def test_every_key_is_spelled_as_designed_and_parses_back() -> None:
    cases = {
        keys.log_key(7): "log/00000000000000000007.json",
        keys.log_checkpoint_key(7, HEX): f"log/checkpoint-00000000000000000007-{HEX}.parquet",
        keys.manifest_key(VIDEO, ATTEMPT): f"videos/{VIDEO}/{ATTEMPT}/manifest.parquet",
        keys.weights_key(VIDEO, ATTEMPT, 64): f"videos/{VIDEO}/{ATTEMPT}/weights-64.parquet",
        keys.latents_key(VIDEO, ATTEMPT, 0): f"videos/{VIDEO}/{ATTEMPT}/latents-0.parquet",
        keys.audio_key(VIDEO, ATTEMPT): f"videos/{VIDEO}/{ATTEMPT}/audio.mka",
        keys.routes_key(VIDEO, HEX, ATTEMPT): f"videos/{VIDEO}/routes/{HEX}/{ATTEMPT}.parquet",
        keys.meta_key(VIDEO, ATTEMPT): f"videos/{VIDEO}/meta/{ATTEMPT}.json",
        keys.decoder_key(HEX): f"decoders/{HEX}.parquet",
        keys.archive_adapters_key(HEX, ATTEMPT): f"adapters/{HEX}/{ATTEMPT}.parquet",
        keys.task_key("labels", HEX): f"tasks/labels/{HEX}.json",
        keys.task_weights_key("labels", HEX): f"tasks/labels/{HEX}.safetensors",
        keys.view_key("night", ATTEMPT): f"views/night/{ATTEMPT}.json",
        keys.result_key(VIDEO, HEX, HEX[:32], ATTEMPT, HEX): (
            f"results/{VIDEO}/{HEX}/{HEX[:32]}/{ATTEMPT}-{HEX}.parquet"
        ),
        keys.source_key(VIDEO, ATTEMPT): f"sources/{VIDEO}/{ATTEMPT}",
    }
    assert all(built == spelled for built, spelled in cases.items())
    assert len({keys.parse_key(key).kind for key in cases}) == len(cases)
    parsed = keys.parse_key(keys.weights_key(VIDEO, ATTEMPT, 64))
    assert (parsed.video_id, parsed.attempt, parsed.first_segment) == (VIDEO, ATTEMPT, 64)
    assert keys.parse_key(keys.routes_key(VIDEO, HEX, ATTEMPT)).version == HEX


@given(st.integers(0, 10**20 - 1))
def test_log_numbers_come_back(number: int) -> None:
    assert keys.parse_key(keys.log_key(number)).number == number


@given(st.text(max_size=60))
def test_text_that_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        keys.parse_key(text)
    with pytest.raises(UsageError):
        keys.check_video_id(text)


@pytest.mark.parametrize("name", ["", "Labels", "1st", "a-b", "a/b", "a" * 64, "labels\n", "../x"])
def test_names_that_are_no_table_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="name "):
        keys.task_key(name, HEX)


@pytest.mark.parametrize("key", ["log/7.json", f"videos/{VIDEO}/x/manifest.parquet", "log/../x", "tasks/a"])
def test_keys_with_wrong_fields_are_refused(key: str) -> None:
    with pytest.raises(UsageError):
        keys.parse_key(key)


def test_attempts_are_ulids_that_sort_by_time_and_do_not_repeat() -> None:
    made = [keys.new_attempt() for _ in range(200)]
    assert len(set(made)) == 200
    assert all(keys.check_attempt(attempt) == attempt for attempt in made)
    times = [attempt[:10] for attempt in made]
    assert times == sorted(times)


def test_a_later_attempt_is_later_even_when_the_clock_is_behind() -> None:
    ahead = keys.first_attempt_at(datetime.now(UTC) + timedelta(hours=3))
    assert keys.new_attempt(later_than=ahead) > ahead
    assert keys.new_attempt(later_than=keys.new_attempt(later_than=ahead)) > ahead


@given(st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))
def test_an_attempt_tells_its_time_to_the_millisecond(when: datetime) -> None:
    attempt = keys.first_attempt_at(when)
    assert abs(keys.attempt_time(attempt) - when) <= timedelta(milliseconds=1)
    assert keys.first_attempt_at(when + timedelta(milliseconds=2)) > attempt
