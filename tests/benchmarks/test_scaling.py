"""The series of `benchmarks.scaling`."""

import pytest

from benchmarks._measure import in_fresh_process
from benchmarks.scaling import WORDS, Figures, Point, excess, lines, rows_of


def figures(**changes: float) -> Figures:
    found = {
        "prepared": 1_000_000,
        "prepare_seconds": 1.5,
        "build_seconds": 0.5,
        "step_tokens": 500.0,
        "step_seconds": 0.1,
        "prepare_megabytes": 20.0,
        "step_megabytes": 40.0,
        "step_operations": 3.0,
    }
    return Figures(**{**found, **changes})  # type: ignore[arg-type]


def test_costs_are_per_unique_token():
    """2 s over 10^6 tokens are 2 us; 0.1 s over 500 are 200 us; 40 MB over 500 are 80 kB."""
    found = figures()
    assert (found.prepare_cost, found.step_cost, found.step_memory) == (2.0, 200.0, 80.0)


def test_ratios_are_to_the_first_of_the_series():
    table = lines([Point(10, 2), Point(20, 2)], [figures(), figures(step_seconds=0.15)])
    assert table[1][6:8] == ("200.00", "x1.00")
    assert table[2][6:8] == ("300.00", "x1.50")


def test_the_excess_is_that_of_the_largest():
    series = [figures(), figures(step_seconds=0.12), figures(step_seconds=0.11)]
    assert excess(series, ["step_cost"])["step_cost"] == pytest.approx(0.2)
    assert excess([figures(), figures(step_seconds=0.05)], ["step_cost"])["step_cost"] == 0


def test_rows_are_pairs_or_scored_groups_of_one_length():
    (pair,) = rows_of(Point(1, 2))
    (scored,) = rows_of(Point(1, 4))
    assert set(pair) == {"prompt", "chosen", "rejected"}
    assert [len(text.split()) for text in scored["responses"]] == [WORDS] * 4
    assert len(scored["rewards"]) == 4


@pytest.mark.slow
def test_the_points_of_a_series_take_turns_in_one_process():
    points = [Point(40, responses) for responses in (1, 2, 4)]
    series = in_fresh_process("benchmarks.scaling", [points, 2])
    for point, line in zip(points, series, strict=True):
        found = Figures(**line)
        assert found.prepared > 40 * WORDS * (1 + point.responses)
        assert min(found.prepare_cost, found.step_cost, found.step_memory) > 0
        assert found.step_operations > 20
