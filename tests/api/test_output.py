from __future__ import annotations

import io
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvpstore.api.output import JsonOutput, TextOutput, cell, plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    stage: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    name: str
    psnr: float
    parts: tuple[Part, ...]
    _secret: str = "hidden"


WHOLE = Whole(name="gate", psnr=31.25, parts=(Part(stage="0", bytes=7), Part(stage="rgb", bytes=1234)))


def json_of(write: str, *values: Any, **options: Any) -> Any:
    stream = io.StringIO()
    getattr(JsonOutput(stream), write)(*values, **options)
    return json.loads(stream.getvalue())


def text_of(write: str, *values: Any, **options: Any) -> str:
    stream = io.StringIO()
    getattr(TextOutput(stream), write)(*values, **options)
    return stream.getvalue()


def test_json_has_every_public_field() -> None:
    assert json_of("record", WHOLE) == {
        "name": "gate",
        "psnr": 31.25,
        "parts": [{"stage": "0", "bytes": 7}, {"stage": "rgb", "bytes": 1234}],
    }


def test_json_rows_are_one_list_whatever_the_columns() -> None:
    assert json_of("rows", WHOLE.parts, columns=("stage",)) == [
        {"stage": "0", "bytes": 7},
        {"stage": "rgb", "bytes": 1234},
    ]
    assert json_of("rows", [], columns=("stage",)) == []


def test_text_rows_are_aligned_columns() -> None:
    assert text_of("rows", WHOLE.parts, columns=("stage", "bytes")) == (
        "stage  bytes\n"
        "-----  -----\n"
        "0      7\n"
        "rgb    1234\n"
    )  # fmt: skip


def test_text_record_shows_nested_values_as_a_table() -> None:
    assert text_of("record", WHOLE) == (
        "name   gate\npsnr   31.25\nparts:\n  stage  bytes\n  -----  -----\n  0      7\n  rgb    1234\n"
    )


def test_done_says_words_to_people_and_the_value_to_programs() -> None:
    assert text_of("done", {"videos": 3}, text="rebuilt") == "rebuilt\n"
    assert json_of("done", {"videos": 3}, text="rebuilt") == {"videos": 3}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_json_floats_read_back_exactly(value: float) -> None:
    assert json_of("record", {"x": value})["x"] == value


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_json_single_precision_floats_read_back_exactly(value: float) -> None:
    assert np.float32(json_of("record", {"x": np.float32(value)})["x"]) == np.float32(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (float("-inf"), None),
        (np.int64(5), 5),
        (np.bool_(True), True),
        (Fraction(30000, 1001), 30000 / 1001),
        (Decimal("1.5"), 1.5),
        (b"\x00\xff", "AP8="),
        (datetime(2026, 11, 21, tzinfo=UTC), "2026-11-21T00:00:00+00:00"),
        (np.arange(3, dtype=np.float32), [0.0, 1.0, 2.0]),
        ({"camera": "gate"}, {"camera": "gate"}),
    ],
)
def test_values_have_one_json_form(value: object, expected: object) -> None:
    assert plain(value) == expected


def test_a_value_without_json_form_is_our_mistake() -> None:
    with pytest.raises(TypeError, match="no JSON form"):
        plain(object())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (0.123456789, "0.123457"),
        (b"12345", "<5 bytes>"),
        ({"camera": "gate"}, "{camera: gate}"),
        ([1.5, None], "[1.5, ]"),
        ("two\nlines", "two lines"),
    ],
)
def test_cells_are_short_and_one_line(value: object, expected: str) -> None:
    assert cell(value) == expected
