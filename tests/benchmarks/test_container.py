"""What a container may cost beside its payload."""

from __future__ import annotations

import pytest

from benchmarks.container import drawn_segment, measure


@pytest.mark.parametrize(
    ("payload_bytes", "segments", "limit"),
    [(500_000, 1, 0.03), (500_000, 8, 0.03), (50_000, 1, 0.19), (50_000, 64, 0.10)],
)
def test_overhead_stays_within_its_bound(payload_bytes: int, segments: int, limit: float) -> None:
    found = measure([drawn_segment(number, payload_bytes) for number in range(segments)])
    assert found["payload_bytes"] == pytest.approx(payload_bytes, rel=0.05)
    assert 0 < found["overhead"] <= limit


def test_parts_add_up_to_the_whole_and_real_weights_compress() -> None:
    found = measure([drawn_segment(0, 500_000)])
    # Scales of weights are payload; those of latents stand in the footer, in another spelling.
    assert sum(found["of_which"].values()) == pytest.approx(found["overhead_bytes"], abs=200)
    assert found["stored_to_payload"] < 1
