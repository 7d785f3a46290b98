"""What is written beside a plot's axes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.plots.svg import labels, short, ticks


@given(st.floats(-1e5, 1e5), st.floats(1e-12, 1e9), st.integers(2, 8))
def test_ticks_are_round_lie_between_and_are_told_apart(offset: float, width: float, most: int) -> None:
    low = offset * width
    high = low + width
    found = ticks(low, high, most)
    slack = 1e-3 * width
    assert len(found) <= most + 1
    assert all(low - slack <= tick <= high + slack for tick in found)
    assert len(set(labels(found))) == len(set(found)) == len(found)


NUMBERS = {0: "0", 1.5e-7: "1.5e-7", 0.25: "0.25", 12345: "12.35k", 2_000_000: "2M", -3e9: "-3G"}


@pytest.mark.parametrize(("value", "said"), NUMBERS.items())
def test_a_number_is_short(value: float, said: str) -> None:
    assert short(value) == said
