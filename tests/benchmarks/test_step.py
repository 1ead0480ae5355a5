"""The table of a training step, and the smallest run of it."""

import pytest

from benchmarks._measure import Spread
from benchmarks.step import (
    OURS,
    OURS_STORED,
    REAL,
    TRL,
    TRL_SORTED,
    TRL_STORED,
    Result,
    Work,
    compare,
    lines,
    verdicts,
    walk,
)


def result(seconds: float, megabytes: float = 100.0) -> Result:
    return Result(
        seconds=Spread(seconds, 0.9 * seconds, 1.1 * seconds),
        unique=600.0,
        padded=2.5,
        reference=0.0,
        megabytes=megabytes,
        loss_difference=1e-7,
        gradient_difference=2e-6,
    )


RESULTS = {
    TRL: result(8.0, 500.0),
    TRL_SORTED: result(6.0),
    TRL_STORED: result(5.0),
    OURS: result(2.0, 200.0),
    OURS_STORED: result(1.0),
}


def test_a_line_has_ratios_to_both_of_our_sides():
    """8 seconds are 4 times the 2 and 8 times the 1; 600 unique tokens in 8 seconds are 75."""
    header, first, *_ = lines(RESULTS)
    cells = dict(zip(header, first, strict=True))
    assert cells["time / ours"] == "4.00"
    assert cells["/ stored"] == "8.00"
    assert cells["tokens/s"] == "75"
    assert cells["quartiles"] == "7.200-8.800"
    assert (cells["loss"], cells["gradient"]) == ("1e-07", "2e-06")


def test_targets_are_checked_against_the_sides_they_name():
    """8 / 2 = 4 and 5 / 1 = 5 and 6 / 2 = 3 times as fast; 200 of 500 MB."""
    found = verdicts(Work(REAL), RESULTS)
    assert [verdict.found for verdict in found] == [4.0, 5.0, 3.0, 0.4]
    assert all(verdict.met for verdict in found)


def test_a_missed_target_is_not_met():
    slow = {**RESULTS, OURS: result(3.0, 301.0)}
    assert [verdict.met for verdict in verdicts(Work(REAL), slow)] == [False, True, True, False]


def test_work_without_a_target_has_no_verdict():
    assert verdicts(Work("hh"), RESULTS) == []


class Turn:
    def __init__(self, name: str, seconds: float, order: list[str]) -> None:
        self.name, self.seconds, self.order = name, seconds, order

    def step(self) -> float:
        self.order.append(self.name)
        return self.seconds


def test_sides_take_turns_step_by_step():
    order: list[str] = []
    turns = {name: Turn(name, seconds, order) for name, seconds in (("a", 1.0), ("b", 2.0))}
    assert walk(turns, 3) == {"a": 3.0, "b": 6.0}  # type: ignore[arg-type]
    assert order == ["a", "b"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("responses", [2, 3])
def test_all_sides_have_the_same_loss_and_gradient(responses: int):
    """Three steps of two short groups, twice; a difference is float32's."""
    from benchmarks._data import Lengths, Preset, drawn_groups, sorted_batches
    from benchmarks._sides import SIDES, Shape

    preset = Preset(Lengths(20, 0.5), Lengths(15, 0.5), "drawn here")
    batches = sorted_batches(drawn_groups(preset, responses, 12, seed=0), 2, 3)
    shape = Shape(
        vocabulary=16_000, hidden=32, intermediate=64, layers=1, heads=2, kv_heads=1, rank=4
    )
    results = compare(shape, batches, 2, SIDES)
    assert list(results) == list(SIDES)
    for found in results.values():
        assert found.loss_difference < 1e-4
        assert found.gradient_difference < 1e-4
        assert found.seconds.median > 0
        assert found.megabytes > 0
    assert results[TRL].padded > results[TRL_SORTED].padded > results[OURS].padded >= 1
    assert results[TRL].reference == pytest.approx(results[TRL].padded)
    assert results[TRL_STORED].reference == results[OURS_STORED].reference == 0
