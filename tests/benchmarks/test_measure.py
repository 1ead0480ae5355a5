"""Arithmetic that all benchmarks share."""

from pathlib import Path

import pytest

from benchmarks._measure import Spread, in_fresh_process, peak, reset_peak, table


def test_a_spread_is_median_and_quartiles():
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == (3.0, 2.0, 4.0)


def test_a_table_aligns_its_columns():
    assert table([("", "a"), ("long", "1.5")]) == "        a\nlong  1.5"


def test_the_high_water_mark_is_that_since_the_reset():
    """32 MB are taken and given back in between."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")
    level = reset_peak("cpu")
    block = bytearray(32_000_000)
    del block
    assert 30e6 < peak("cpu") - level < 60e6
    assert peak("cpu") - reset_peak("cpu") > -4e6


@pytest.mark.slow
def test_what_a_process_says_when_it_fails_is_shown():
    with pytest.raises(RuntimeError, match=r"benchmarks\.scaling --one failed"):
        in_fresh_process("benchmarks.scaling", 1)
