"""Memory while groups stream: flat from a tenth of them to the end."""

import sys

import pytest

from benchmarks._measure import in_fresh_process
from benchmarks.streaming import FLAT, WORDS, Levels, groups, growth, report


def test_groups_are_short_pairs_with_names():
    (first, row), (second, other) = groups(2)
    assert (first, second) == ("stream[0]", "stream[1]")
    assert row != other
    assert {len(text.split()) for text in row.values()} == {WORDS}


def test_memory_is_looked_at_after_the_counts_asked_for():
    levels = Levels((2, 4))
    assert list(levels.passing(iter("abcd"), "stage")) == list("abcd")
    assert list(levels.found["stage"]) == [2, 4]
    assert all(level > 0 for level in levels.found["stage"].values())


def test_growth_is_told_by_stage():
    """110 MB after 100 MB are 10% more."""
    found = {"megabytes": {"training": {"1": 100.0, "10": 110.0}}, "seconds": {"training": 3.0}}
    said: list[str] = []
    report(found, said.append)
    assert growth({"1": 100.0, "10": 110.0}) == pytest.approx(0.1)
    assert said[-1] == "NOT FLAT: training: +10.0% in 3 s"


@pytest.mark.long
def test_a_hundred_thousand_groups_stream_with_flat_memory():
    found = in_fresh_process("benchmarks.streaming", 100_000)
    said: list[str] = []
    report(found, said.append)
    sys.stdout.write("\n".join(said) + "\n")
    assert list(found["megabytes"]) == ["preparing", "training"]
    for levels in found["megabytes"].values():
        assert list(levels) == ["10000", "100000"]
        assert growth(levels) < FLAT
